-- What nobody needs any more; used by pruning.py. Each is one statement in autocommit, deletes a portion, and
-- waits for nobody. held: the caller leads (or epoch is NULL); if not, nothing was deleted.

-- name: prune_history(me uuid, epoch bigint, days integer, most bigint) :one
-- Old history that no day's partition took; days are dropped as a whole.
WITH may AS MATERIALIZED (
    SELECT {schema}.still_leads($1, $2) AS held
), old AS MATERIALIZED (
    SELECT h.ctid AS place FROM {schema}.job_history_default h
     WHERE h.finished_at < statement_timestamp() - make_interval(days => $3) AND (SELECT may.held FROM may)
     ORDER BY h.finished_at
     LIMIT $4
       FOR UPDATE SKIP LOCKED
), pruned AS (
    DELETE FROM {schema}.job_history_default h WHERE h.ctid = ANY (ARRAY(SELECT o.place FROM old o))
    RETURNING h.id
)
SELECT (SELECT may.held FROM may) AS held, count(*) AS looked, count(*) AS rows, 0::bigint AS last FROM pruned;

-- name: prune_periods(me uuid, epoch bigint, most bigint) :one
-- Unique keys whose time is over.
-- plan: job_periods_expires_idx
WITH may AS MATERIALIZED (
    SELECT {schema}.still_leads($1, $2) AS held
), old AS MATERIALIZED (
    SELECT p.unique_key FROM {schema}.job_periods p
     WHERE p.expires_at < statement_timestamp() AND (SELECT may.held FROM may)
     ORDER BY p.expires_at
     LIMIT $3
       FOR UPDATE SKIP LOCKED
), pruned AS (
    DELETE FROM {schema}.job_periods p USING old o WHERE p.unique_key = o.unique_key
    RETURNING p.job
)
SELECT (SELECT may.held FROM may) AS held, count(*) AS looked, count(*) AS rows, 0::bigint AS last FROM pruned;

-- name: prune_senders(me uuid, epoch bigint, age double precision, most bigint) :one
-- Senders that have sent nothing for so many seconds: nobody tries again what is that old.
WITH may AS MATERIALIZED (
    SELECT {schema}.still_leads($1, $2) AS held
), old AS MATERIALIZED (
    SELECT s.id FROM {schema}.job_senders s
     WHERE s.sent_at < statement_timestamp() - make_interval(secs => $3) AND (SELECT may.held FROM may)
     LIMIT $4
       FOR UPDATE SKIP LOCKED
), pruned AS (
    DELETE FROM {schema}.job_senders s USING old o WHERE s.id = o.id
    RETURNING s.id
)
SELECT (SELECT may.held FROM may) AS held, count(*) AS looked, count(*) AS rows, 0::bigint AS last FROM pruned;

-- name: prune_edges(me uuid, epoch bigint, beyond bigint, most bigint) :one
-- Looks at a portion of the edges beyond a child, and deletes those whose child is neither live nor dead.
-- last: the child up to which it looked.
-- plan: job_edges_pkey
WITH may AS MATERIALIZED (
    SELECT {schema}.still_leads($1, $2) AS held
), looked AS MATERIALIZED (
    SELECT e.child, e.parent FROM {schema}.job_edges e
     WHERE e.child > $3 AND (SELECT may.held FROM may)
     ORDER BY e.child, e.parent
     LIMIT $4
), pruned AS (
    DELETE FROM {schema}.job_edges e
     USING looked l
     WHERE e.child = l.child AND e.parent = l.parent
       AND NOT EXISTS (SELECT FROM {schema}.jobs j WHERE j.id = l.child)
       AND NOT EXISTS (SELECT FROM {schema}.dead_jobs d WHERE d.id = l.child)
    RETURNING e.child
)
SELECT (SELECT may.held FROM may) AS held, (SELECT count(*) FROM looked) AS looked,
       (SELECT count(*) FROM pruned) AS rows, coalesce((SELECT max(l.child) FROM looked l), $3) AS last;

-- name: prune_batches(me uuid, epoch bigint, days integer, beyond bigint, most bigint) :one
-- Looks at a portion of the batches beyond one, and deletes those that ended long ago and whose jobs are gone.
-- last: the batch up to which it looked.
-- plan: job_batches_pkey
WITH may AS MATERIALIZED (
    SELECT {schema}.still_leads($1, $2) AS held
), looked AS MATERIALIZED (
    SELECT b.id, b.ended_at FROM {schema}.job_batches b
     WHERE b.id > $4 AND (SELECT may.held FROM may)
     ORDER BY b.id
     LIMIT $5
), pruned AS (
    DELETE FROM {schema}.job_batches b
     USING looked l
     WHERE b.id = l.id AND l.ended_at < statement_timestamp() - make_interval(days => $3)
       AND NOT EXISTS (SELECT FROM {schema}.jobs j WHERE j.batch = l.id)
       AND NOT EXISTS (SELECT FROM {schema}.dead_jobs d WHERE d.batch = l.id)
    RETURNING b.id
)
SELECT (SELECT may.held FROM may) AS held, (SELECT count(*) FROM looked) AS looked,
       (SELECT count(*) FROM pruned) AS rows, coalesce((SELECT max(l.id) FROM looked l), $4) AS last;
