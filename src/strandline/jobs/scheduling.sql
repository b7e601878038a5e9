-- When what is scheduled becomes available; used by scheduling.py.

-- name: promote_due(me uuid, epoch bigint, most bigint) :one
-- Makes at most so many jobs available whose time has come, the longest due first; rows that others have locked
-- are left for the next look. held: the caller leads (or epoch is NULL: there is no cluster); if not, nothing
-- was written. next_in: seconds until the next one that is not due yet.
-- plan: jobs_due_idx
WITH may AS MATERIALIZED (
    SELECT {schema}.still_leads($1, $2) AS held
), due AS MATERIALIZED (
    SELECT j.id FROM {schema}.jobs j
     WHERE j.state = 1 AND j.run_at <= statement_timestamp() AND (SELECT may.held FROM may)
     ORDER BY j.run_at
     LIMIT $3
       FOR UPDATE SKIP LOCKED
), placed AS MATERIALIZED (
    SELECT due.id, nextval('{schema}.job_order') AS seq FROM due
), promoted AS (
    UPDATE {schema}.jobs j SET state = 0, seq = p.seq
      FROM placed p
     WHERE j.id = p.id AND j.state + 0 = 1  -- by the primary key, not by going through all that is scheduled
    RETURNING j.queue
)
SELECT (SELECT may.held FROM may) AS held, count(*) AS moved,
       coalesce(array_agg(DISTINCT p.queue), '{}')::text[] AS queues,
       (SELECT extract(epoch FROM j.run_at - clock_timestamp())::float8 FROM {schema}.jobs j
         WHERE j.state = 1 AND j.run_at > statement_timestamp() AND j.run_at < 'infinity'
         ORDER BY j.run_at LIMIT 1) AS next_in
  FROM promoted p;
