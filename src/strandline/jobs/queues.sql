-- Queues with settings of their own: declared by code, changed by operators, read by every node; used by queues.py.
-- Order of locks: queues, then jobs.

-- name: list_settings() :many
-- Settings of the queues that have any.
SELECT q.name, q.concurrency, q.at_most, q.per_key, q.rate, q.rate_seconds, q.paused_at, q.paused_reason, q.set_by
  FROM {schema}.queues q
 ORDER BY q.name;

-- name: declare_queue(name text, concurrency integer, at_most integer, per_key integer, rate integer, rate_seconds double precision, channel text) :one
-- What code says of a queue, unless an operator has set it. No row: nothing was to be changed.
-- plan: queues_pkey
WITH said AS (
    INSERT INTO {schema}.queues AS q (name, concurrency, at_most, per_key, rate, rate_seconds)
    VALUES ($1, $2, $3, $4, $5, $6)
        ON CONFLICT (name) DO UPDATE
       SET concurrency = excluded.concurrency, at_most = excluded.at_most, per_key = excluded.per_key,
           rate = excluded.rate, rate_seconds = excluded.rate_seconds, changed_at = clock_timestamp()
     WHERE q.set_by = 'code'
       AND (q.concurrency, q.at_most, q.per_key, q.rate, q.rate_seconds)
           IS DISTINCT FROM (excluded.concurrency, excluded.at_most, excluded.per_key, excluded.rate, excluded.rate_seconds)
    RETURNING q.name
), told AS (
    SELECT count(pg_notify($7, s.name)) AS n FROM said s
)
SELECT s.name FROM said s, told;

-- name: set_queue(name text, said text, channel text) :one
-- An operator's settings: of those named in the JSON object, the others stay. Code does not change them any more.
WITH given AS MATERIALIZED (
    SELECT $2::text::jsonb AS g
), said AS (
    INSERT INTO {schema}.queues AS q (name, concurrency, at_most, per_key, rate, rate_seconds, set_by)
    SELECT $1, (g->>'concurrency')::integer, (g->>'at_most')::integer, (g->>'per_key')::integer, (g->>'rate')::integer,
           (g->>'rate_seconds')::double precision, 'operator'
      FROM given
        ON CONFLICT (name) DO UPDATE
       SET concurrency = CASE WHEN $2::text::jsonb ? 'concurrency' THEN excluded.concurrency ELSE q.concurrency END,
           at_most = CASE WHEN $2::text::jsonb ? 'at_most' THEN excluded.at_most ELSE q.at_most END,
           per_key = CASE WHEN $2::text::jsonb ? 'per_key' THEN excluded.per_key ELSE q.per_key END,
           rate = CASE WHEN $2::text::jsonb ? 'rate' THEN excluded.rate ELSE q.rate END,
           rate_seconds = CASE WHEN $2::text::jsonb ? 'rate' THEN excluded.rate_seconds ELSE q.rate_seconds END,
           set_by = 'operator', changed_at = clock_timestamp()
    RETURNING q.name, q.concurrency, q.at_most, q.per_key, q.rate, q.rate_seconds, q.paused_at, q.paused_reason, q.set_by
), told AS (
    SELECT count(pg_notify($3, s.name)) AS n FROM said s
)
SELECT s.* FROM said s, told;

-- name: pause_queue(name text, reason text, channel text) :one
-- From now on nothing is fetched from it; what runs goes on. One that is paused already gets the new reason.
WITH said AS (
    INSERT INTO {schema}.queues AS q (name, paused_at, paused_reason)
    VALUES ($1, clock_timestamp(), $2)
        ON CONFLICT (name) DO UPDATE
       SET paused_at = coalesce(q.paused_at, excluded.paused_at), paused_reason = excluded.paused_reason,
           changed_at = clock_timestamp()
    RETURNING q.name
), told AS (
    SELECT count(pg_notify($3, s.name)) AS n FROM said s
)
SELECT s.name FROM said s, told;

-- name: resume_queue(name text, channel text) :one
-- No row: it was not paused.
-- plan: queues_pkey
WITH said AS (
    UPDATE {schema}.queues q
       SET paused_at = NULL, paused_reason = '', changed_at = clock_timestamp()
     WHERE q.name = $1 AND q.paused_at IS NOT NULL
    RETURNING q.name
), told AS (
    SELECT count(pg_notify($2, s.name)) AS n FROM said s
)
SELECT s.name FROM said s, told;

-- name: forget_queue(name text, channel text) :one
-- All that was said of it; what code says comes back when a node starts. No row: nothing was said.
-- plan: queues_pkey
WITH gone AS (
    DELETE FROM {schema}.queues q WHERE q.name = $1 RETURNING q.name
), told AS (
    SELECT count(pg_notify($2, g.name)) AS n FROM gone g
)
SELECT g.name FROM gone g, told;

-- name: count_running(names text[]) :none
-- Lets running jobs count that were claimed before their queue had limits. Those that are being settled are let be.
-- plan: jobs_running_idx
WITH uncounted AS MATERIALIZED (
    SELECT j.id
      FROM {schema}.jobs j
     WHERE j.state = 2 AND j.claim IS NOT NULL AND j.flags & 256 = 0 AND j.queue = ANY ($1)
     ORDER BY j.id
       FOR UPDATE SKIP LOCKED
)
UPDATE {schema}.jobs j SET flags = j.flags | 256 FROM uncounted u WHERE j.id = u.id;

-- name: list_queues(most bigint) :many
-- Queues that have settings or jobs to run. available is exact up to $1 and stops there; oldest: seconds its first
-- job has waited.
WITH RECURSIVE step AS (
    (SELECT j.queue FROM {schema}.jobs j WHERE j.state = 0 ORDER BY j.queue LIMIT 1)
    UNION ALL
    SELECT f.queue
      FROM step s
     CROSS JOIN LATERAL (
           SELECT j.queue FROM {schema}.jobs j WHERE j.state = 0 AND j.queue > s.queue ORDER BY j.queue LIMIT 1) f
), running AS MATERIALIZED (
    SELECT j.queue, count(*) AS n FROM {schema}.jobs j WHERE j.state = 2 GROUP BY j.queue
), scheduled AS MATERIALIZED (
    SELECT d.queue, count(*) AS n
      FROM (SELECT j.queue FROM {schema}.jobs j WHERE j.state = 1 ORDER BY j.run_at LIMIT $1) d
     GROUP BY d.queue
), known AS (
    SELECT q.name FROM {schema}.queues q
    UNION SELECT s.queue FROM step s
    UNION SELECT r.queue FROM running r
    UNION SELECT d.queue FROM scheduled d
)
SELECT k.name, q.concurrency, q.at_most, q.per_key, q.rate, q.rate_seconds, q.paused_at,
       coalesce(q.paused_reason, '') AS paused_reason, coalesce(q.set_by, '') AS set_by,
       (SELECT count(*)
          FROM (SELECT FROM {schema}.jobs j WHERE j.state = 0 AND j.queue = k.name LIMIT $1) a) AS available,
       coalesce(d.n, 0) AS scheduled, coalesce(r.n, 0) AS running,
       (SELECT extract(epoch FROM clock_timestamp() - j.created_at)::float8
          FROM {schema}.jobs j
         WHERE j.state = 0 AND j.queue = k.name
         ORDER BY j.priority, j.seq
         LIMIT 1) AS oldest
  FROM known k
  LEFT JOIN {schema}.queues q ON q.name = k.name
  LEFT JOIN running r ON r.queue = k.name
  LEFT JOIN scheduled d ON d.queue = k.name
 ORDER BY k.name;
