-- Enqueueing; used by enqueue.py and enqueuer.py.

-- name: insert_jobs(ids bigint[], kinds text[], args text[], queues text[], priorities smallint[], max_attempts smallint[], flags smallint[], run_ats timestamptz[], delays double precision[], keys text[], tenants text[], batches bigint[], metas text[], blocked boolean[]) :none
-- Jobs without a unique key, in order. What is due later, by this server's clock, is scheduled.
WITH c AS MATERIALIZED (
    SELECT clock_timestamp() AS now
)
INSERT INTO {schema}.jobs
       (id, kind, args, queue, priority, max_attempts, flags, run_at, key, tenant, batch, meta, state)
SELECT u.id, u.kind, u.args, u.queue, u.priority, u.max_attempts, u.flags,
       coalesce(u.run_at, c.now + u.delay * interval '1 second'), u.key, u.tenant, u.batch, u.meta,
       CASE WHEN u.blocked THEN 3
            WHEN coalesce(u.run_at, c.now + u.delay * interval '1 second') > c.now THEN 1
            ELSE 0 END
  FROM c, unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::smallint[], $6::smallint[], $7::smallint[],
                 $8::timestamptz[], $9::double precision[], $10::text[], $11::text[], $12::bigint[], $13::text[],
                 $14::boolean[])
       AS u(id, kind, args, queue, priority, max_attempts, flags, run_at, delay, key, tenant, batch, meta, blocked);

-- name: insert_jobs_once(ids bigint[], kinds text[], args text[], queues text[], priorities smallint[], max_attempts smallint[], flags smallint[], run_ats timestamptz[], delays double precision[], keys text[], tenants text[], batches bigint[], metas text[], blocked boolean[], sender bigint, number bigint) :none
-- insert_jobs for a sender that may send it again: the second time nothing is inserted. One that comes while the first
-- is still under way waits for its end at the sender's row.
WITH c AS MATERIALIZED (
    SELECT clock_timestamp() AS now
), mark AS (
    INSERT INTO {schema}.job_senders AS s (id, number) VALUES ($15, $16)
        ON CONFLICT (id) DO UPDATE SET number = excluded.number, sent_at = clock_timestamp()
     WHERE s.number < excluded.number
    RETURNING s.number
)
INSERT INTO {schema}.jobs
       (id, kind, args, queue, priority, max_attempts, flags, run_at, key, tenant, batch, meta, state)
SELECT u.id, u.kind, u.args, u.queue, u.priority, u.max_attempts, u.flags,
       coalesce(u.run_at, c.now + u.delay * interval '1 second'), u.key, u.tenant, u.batch, u.meta,
       CASE WHEN u.blocked THEN 3
            WHEN coalesce(u.run_at, c.now + u.delay * interval '1 second') > c.now THEN 1
            ELSE 0 END
  FROM c, mark,
       unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::smallint[], $6::smallint[], $7::smallint[],
              $8::timestamptz[], $9::double precision[], $10::text[], $11::text[], $12::bigint[], $13::text[],
              $14::boolean[])
       AS u(id, kind, args, queue, priority, max_attempts, flags, run_at, delay, key, tenant, batch, meta, blocked);

-- name: enqueue_batch(batch text) :many
-- Jobs with unique keys, each with its own outcome.
SELECT item, outcome, job FROM {schema}.enqueue_batch($1);

-- name: enqueue_together(batch text) :many
-- Jobs with unique keys, all or none.
SELECT item, outcome, job FROM {schema}.enqueue_together($1);

-- name: enqueue_once(sender bigint, number bigint, batch text) :many
-- enqueue_batch for a sender that may send it again. No row: the sender has gone on since.
SELECT item, outcome, job FROM {schema}.enqueue_once($1, $2, $3);

-- name: current_transaction() :one
-- The number of this transaction, so that it can be asked later whether it was committed.
SELECT pg_current_xact_id()::text AS number;

-- name: transaction_status(number text) :one
-- committed, aborted, in progress, or null where it is too long ago. In progress is also a number that this server has
-- not come to: after a fail-over.
SELECT CASE WHEN pg_visible_in_snapshot($1::text::xid8, pg_current_snapshot()) THEN pg_xact_status($1::text::xid8)
            ELSE 'in progress' END AS status;
