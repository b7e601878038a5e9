-- Looking at jobs; used by looking.py. Lists go by id; a filter that is NULL is none.

-- name: list_jobs(live boolean, dead boolean, ended boolean, state smallint, attempted boolean, outcome text, queue text, kind text, tag text, tenant text, key text, ids bigint[], fingerprint text, beyond bigint, most bigint) :many
-- Jobs that are live, dead, or in the history, as words.
-- plan: jobs_pkey
(SELECT j.id, j.kind, j.queue,
        CASE j.state WHEN 0 THEN 'available' WHEN 2 THEN 'running' WHEN 3 THEN 'blocked'
                     ELSE CASE WHEN j.attempt > 0 THEN 'retryable' ELSE 'scheduled' END END AS state,
        j.priority::integer AS priority, j.attempt::integer AS attempt, j.max_attempts::integer AS max_attempts,
        j.flags::integer AS flags, j.key, j.unique_key, j.tenant, j.batch, j.args, j.meta, j.errors::text AS errors,
        j.progress::text AS progress, NULL AS result, coalesce(j.cancel_reason, '') AS reason, '' AS fingerprint,
        j.claim >> 32 AS node, j.created_at, j.run_at, j.claimed_at, j.cancel_at, NULL::timestamptz AS finished_at
   FROM {schema}.jobs j
  WHERE $1 AND ($4::smallint IS NULL OR j.state = $4) AND ($5::boolean IS NULL OR (j.attempt > 0) = $5)
    AND ($7::text IS NULL OR j.queue = $7) AND ($8::text IS NULL OR j.kind = $8)
    AND ($9::text IS NULL OR j.meta IS NOT NULL AND jsonb_exists(j.meta::jsonb -> 'tags', $9))
    AND ($10::text IS NULL OR j.tenant = $10) AND ($11::text IS NULL OR j.key = $11)
    AND ($12::bigint[] IS NULL OR j.id = ANY ($12)) AND j.id {beyond} $14
  ORDER BY j.id {order}
  LIMIT $15)
UNION ALL
(SELECT d.id, d.kind, d.queue, 'dead', d.priority, d.attempt, d.max_attempts, d.flags, d.key, d.unique_key, d.tenant,
        d.batch, d.args, d.meta, d.errors::text, NULL, NULL, '', d.fingerprint, NULL, d.created_at, NULL, NULL, NULL,
        d.died_at
   FROM {schema}.dead_jobs d
  WHERE $2
    AND ($7::text IS NULL OR d.queue = $7) AND ($8::text IS NULL OR d.kind = $8)
    AND ($9::text IS NULL OR d.meta IS NOT NULL AND jsonb_exists(d.meta::jsonb -> 'tags', $9))
    AND ($10::text IS NULL OR d.tenant = $10) AND ($11::text IS NULL OR d.key = $11)
    AND ($12::bigint[] IS NULL OR d.id = ANY ($12)) AND ($13::text IS NULL OR d.fingerprint = $13)
    AND d.id {beyond} $14
  ORDER BY d.id {order}
  LIMIT $15)
UNION ALL
(SELECT h.id, h.kind, h.queue, h.outcome, h.priority, h.attempt, NULL, 0, h.key, NULL, h.tenant, NULL, h.args, h.meta,
        h.errors::text, NULL, h.result, coalesce(h.reason, ''), '', h.node, h.created_at, NULL, h.claimed_at, NULL,
        h.finished_at
   FROM {schema}.job_history h
  WHERE $3 AND ($6::text IS NULL OR h.outcome = $6)
    AND ($7::text IS NULL OR h.queue = $7) AND ($8::text IS NULL OR h.kind = $8)
    AND ($9::text IS NULL OR h.meta IS NOT NULL AND jsonb_exists(h.meta::jsonb -> 'tags', $9))
    AND ($10::text IS NULL OR h.tenant = $10) AND ($11::text IS NULL OR h.key = $11)
    AND ($12::bigint[] IS NULL OR h.id = ANY ($12)) AND h.id {beyond} $14
  ORDER BY h.id {order}
  LIMIT $15)
ORDER BY id {order}
LIMIT $15;

-- name: sizes() :one
-- Pages of the tables, dead rows included.
SELECT pg_relation_size('{schema}.jobs') / current_setting('block_size')::bigint AS live,
       pg_relation_size('{schema}.dead_jobs') / current_setting('block_size')::bigint AS dead,
       (SELECT coalesce(sum(pg_relation_size(t.relid)), 0)::bigint / current_setting('block_size')::bigint
          FROM pg_partition_tree('{schema}.job_history') t) AS ended;

-- name: count_jobs(live real, dead real, ended real) :many
-- Counts from a share of the pages, in percent. oldest: since when the longest waiting one of them can run, or has
-- ended.
SELECT j.queue,
       CASE j.state WHEN 0 THEN 'available' WHEN 2 THEN 'running' WHEN 3 THEN 'blocked'
                    ELSE CASE WHEN j.attempt > 0 THEN 'retryable' ELSE 'scheduled' END END AS state,
       (count(*) * 100 / $1::float8)::bigint AS count, min(coalesce(j.run_at, j.created_at)) AS oldest,
       $1 < 100 AS is_estimate
  FROM {schema}.jobs j TABLESAMPLE SYSTEM ($1::real)
 GROUP BY 1, 2
UNION ALL
SELECT d.queue, 'dead', (count(*) * 100 / $2::float8)::bigint, min(d.died_at), $2 < 100
  FROM {schema}.dead_jobs d TABLESAMPLE SYSTEM ($2::real)
 GROUP BY 1
UNION ALL
SELECT h.queue, h.outcome, (count(*) * 100 / $3::float8)::bigint, min(h.finished_at), $3 < 100
  FROM {schema}.job_history h TABLESAMPLE SYSTEM ($3::real)
 GROUP BY 1, 2
 ORDER BY 1, 2;
