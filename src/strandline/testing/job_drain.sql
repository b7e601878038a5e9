-- What the kit for tests asks about jobs, and how it lets time pass; used by job_drain.py.

-- name: next_available(kinds text[], queues text[]) :one
-- The queue of the job that is next of those queues; of all where none are named. No row: nothing
-- is available.
SELECT j.queue
FROM {schema}.jobs AS j
LEFT JOIN {schema}.queues AS q ON q.name = j.queue
WHERE j.state = 0 AND j.kind = ANY ($1::text[]) AND (cardinality($2::text[]) = 0 OR j.queue = ANY ($2::text[]))
  AND q.paused_at IS NULL
ORDER BY j.priority, j.seq
LIMIT 1;

-- name: bring_forward(kinds text[], queues text[]) :one
-- Makes the scheduled job that is due next, due now. No row: none is scheduled.
UPDATE {schema}.jobs AS j
SET run_at = statement_timestamp()
WHERE j.id = (
    SELECT s.id
    FROM {schema}.jobs AS s
    WHERE s.state = 1 AND s.kind = ANY ($1::text[]) AND (cardinality($2::text[]) = 0 OR s.queue = ANY ($2::text[]))
    ORDER BY s.run_at, s.seq
    LIMIT 1
)
RETURNING j.id;

-- name: waiting(kinds text[]) :many
-- Jobs that have not ended, in the order in which they were enqueued.
SELECT j.id, j.kind, j.queue, j.state, j.priority, j.attempt, j.max_attempts, j.flags, j.run_at, j.key,
       j.unique_key, j.tenant, j.args, j.meta
FROM {schema}.jobs AS j
WHERE cardinality($1::text[]) = 0 OR j.kind = ANY ($1::text[])
ORDER BY j.id;

-- name: advance(seconds double precision) :none
-- Everything that waits for a moment waits so much less.
WITH jobs AS (
    UPDATE {schema}.jobs SET run_at = run_at - make_interval(secs => $1) WHERE run_at IS NOT NULL
), schedules AS (
    UPDATE {schema}.schedules SET next_at = next_at - make_interval(secs => $1)
), queues AS (
    UPDATE {schema}.queues SET refilled_at = refilled_at - make_interval(secs => $1)
)
UPDATE {schema}.job_periods SET expires_at = expires_at - make_interval(secs => $1);
