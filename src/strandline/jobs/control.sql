-- Steering jobs; used by control.py. Portions go by id; a filter that is NULL is none.

-- name: choose_live(state smallint, attempted boolean, queue text, kind text, tag text, tenant text, key text, ids bigint[], beyond bigint, most bigint) :many
-- Live jobs of a filter, to be locked by the next statement.
-- plan: jobs_pkey
SELECT j.id, j.flags::integer AS flags
  FROM {schema}.jobs j
 WHERE ($1::smallint IS NULL OR j.state = $1) AND ($2::boolean IS NULL OR (j.attempt > 0) = $2)
   AND ($3::text IS NULL OR j.queue = $3) AND ($4::text IS NULL OR j.kind = $4)
   AND ($5::text IS NULL OR j.meta IS NOT NULL AND jsonb_exists(j.meta::jsonb -> 'tags', $5))
   AND ($6::text IS NULL OR j.tenant = $6) AND ($7::text IS NULL OR j.key = $7)
   AND ($8::bigint[] IS NULL OR j.id = ANY ($8)) AND j.id > $9
 ORDER BY j.id
 LIMIT $10;

-- name: choose_dead(fingerprint text, queue text, kind text, tag text, tenant text, key text, ids bigint[], beyond bigint, most bigint) :many
-- Dead letters of a filter, to be locked by the next statement.
-- plan: dead_jobs_pkey
SELECT d.id, d.flags::integer AS flags
  FROM {schema}.dead_jobs d
 WHERE ($1::text IS NULL OR d.fingerprint = $1)
   AND ($2::text IS NULL OR d.queue = $2) AND ($3::text IS NULL OR d.kind = $3)
   AND ($4::text IS NULL OR d.meta IS NOT NULL AND jsonb_exists(d.meta::jsonb -> 'tags', $4))
   AND ($5::text IS NULL OR d.tenant = $5) AND ($6::text IS NULL OR d.key = $6)
   AND ($7::bigint[] IS NULL OR d.id = ANY ($7)) AND d.id > $8
 ORDER BY d.id
 LIMIT $9;

-- name: cancel_jobs(ids bigint[], reason text) :many
-- Ends those that do not run; asks for the end of those that do. is_ended: it will not run any more.
-- plan: jobs_pkey
WITH held AS MATERIALIZED (
    SELECT * FROM {schema}.jobs WHERE id = ANY ($1) ORDER BY id FOR UPDATE
), asked AS (
    UPDATE {schema}.jobs j
       SET cancel_at = coalesce(j.cancel_at, clock_timestamp()), cancel_reason = $2
      FROM held h
     WHERE j.id = h.id AND h.state = 2
), gone AS (
    DELETE FROM {schema}.jobs j USING held h WHERE j.id = h.id AND h.state <> 2
), kept AS (
    INSERT INTO {schema}.job_history
           (id, outcome, created_at, priority, attempt, queue, kind, key, tenant, args, meta, errors, reason)
    SELECT id, 'cancelled', created_at, priority, attempt, queue, kind, key, tenant, args, meta, errors, $2
      FROM held
     WHERE state <> 2 AND flags & 128 = 0
)
SELECT id, queue, key, flags::integer AS flags, batch, state <> 2 AS is_ended FROM held;

-- name: cancel_lost(ids bigint[], claims bigint[]) :many
-- Ends running jobs whose cancellation was asked for, under the claims of nodes that are gone. One that is missing has
-- ended, or is somebody else's.
-- plan: jobs_pkey
WITH gone AS (
    DELETE FROM {schema}.jobs j
     USING unnest($1::bigint[], $2::bigint[]) AS g(id, claim)
     WHERE j.id = g.id AND j.claim - g.claim = 0 AND j.state + 0 = 2 AND j.cancel_at IS NOT NULL
    RETURNING j.*
), kept AS (
    INSERT INTO {schema}.job_history
           (id, outcome, created_at, claimed_at, node, priority, attempt, queue, kind, key, tenant, args, meta, errors,
            reason)
    SELECT id, 'cancelled', created_at, claimed_at, claim >> 32, priority, attempt, queue, kind, key, tenant, args, meta,
           errors, cancel_reason
      FROM gone
     WHERE flags & 128 = 0
)
SELECT id, queue, key, flags::integer AS flags, batch, true AS is_ended FROM gone ORDER BY id;

-- name: discard_jobs(ids bigint[], reason text) :many
-- Ends dead letters.
-- plan: dead_jobs_pkey
WITH gone AS (
    DELETE FROM {schema}.dead_jobs WHERE id = ANY ($1) RETURNING *
), kept AS (
    INSERT INTO {schema}.job_history
           (id, outcome, created_at, priority, attempt, queue, kind, key, tenant, args, meta, errors, reason)
    SELECT id, 'discarded', created_at, priority, attempt, queue, kind, key, tenant, args, meta, errors, $2
      FROM gone
     WHERE flags & 128 = 0
)
SELECT id, queue, key, flags::integer AS flags, batch, true AS is_ended FROM gone ORDER BY id;

-- name: lock_dead(ids bigint[]) :many
-- Holds dead letters, so that only one of two operators decides about each.
-- plan: dead_jobs_pkey
SELECT id FROM {schema}.dead_jobs WHERE id = ANY ($1) ORDER BY id FOR UPDATE;

-- name: revive_jobs(ids bigint[], attempts integer) :many
-- Makes dead letters available for so many more attempts at least. One whose unique key is taken by a live job stays.
-- plan: dead_jobs_pkey
WITH back AS (
    INSERT INTO {schema}.jobs
           (id, batch, created_at, priority, attempt, max_attempts, flags, queue, kind, key, unique_key, tenant, args,
            meta, errors)
    SELECT id, batch, created_at, priority, attempt,
           least(greatest(max_attempts::integer, attempt + $2::integer), 32767)::smallint, flags, queue, kind, key, unique_key,
           tenant, args, meta, errors
      FROM {schema}.dead_jobs
     WHERE id = ANY ($1)
     ORDER BY id
        ON CONFLICT DO NOTHING
    RETURNING id, queue, key, flags, batch
), gone AS (
    DELETE FROM {schema}.dead_jobs d USING back b WHERE d.id = b.id
)
SELECT id, queue, key, flags::integer AS flags, batch, false AS is_ended FROM back ORDER BY id;

-- name: hasten_jobs(ids bigint[]) :many
-- Makes jobs available that wait for their time.
-- plan: jobs_pkey
WITH held AS MATERIALIZED (
    SELECT id FROM {schema}.jobs WHERE id = ANY ($1) AND state + 0 = 1 ORDER BY id FOR UPDATE
)
UPDATE {schema}.jobs j
   SET state = 0, run_at = NULL, seq = nextval('{schema}.job_order')
  FROM held h
 WHERE j.id = h.id AND j.state + 0 = 1
RETURNING j.id, j.queue, j.key, j.flags::integer AS flags, j.batch, false AS is_ended;
