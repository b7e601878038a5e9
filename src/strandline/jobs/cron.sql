-- Schedules: jobs enqueued again and again; used by cron.py.

-- name: declare_schedule(name text, spec text, zone text, missed text, job text, next_at timestamptz) :one
-- Writes down what code declares. A moment that is due already stays due, unless the times have changed.
-- No row: an operator has set it otherwise, so nothing was changed.
-- plan: schedules_pkey
INSERT INTO {schema}.schedules AS s (name, spec, zone, missed, job, next_at)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (name) DO UPDATE
   SET spec = excluded.spec, zone = excluded.zone, missed = excluded.missed, job = excluded.job, error = NULL,
       next_at = CASE WHEN s.spec = excluded.spec AND s.zone = excluded.zone THEN s.next_at ELSE excluded.next_at END
 WHERE s.set_by = 'code'
RETURNING s.name, s.next_at;

-- name: server_now() :one
SELECT clock_timestamp() AS now;

-- name: undeclared(names text[]) :many
-- Schedules that code declared once and that are not among these.
SELECT s.name FROM {schema}.schedules s
 WHERE s.set_by = 'code' AND s.paused_at IS NULL AND s.name <> ALL ($1)
 ORDER BY s.name;

-- name: due_schedules(without text[], most bigint) :many
-- Those that are due, the longest first, without those named.
-- plan: schedules_due_idx
SELECT s.name, s.spec, s.zone, s.missed, s.job, s.next_at, statement_timestamp() AS now
  FROM {schema}.schedules s
 WHERE s.paused_at IS NULL AND s.next_at <= statement_timestamp() AND s.name <> ALL ($1)
 ORDER BY s.next_at
 LIMIT $2;

-- name: next_schedule() :one
-- Seconds until the next one is due that is not due yet. No row: there is none.
-- plan: schedules_due_idx
SELECT extract(epoch FROM s.next_at - clock_timestamp())::float8 AS due_in
  FROM {schema}.schedules s
WHERE s.paused_at IS NULL AND s.next_at > statement_timestamp() AND s.next_at < 'infinity'
 ORDER BY s.next_at
 LIMIT 1;

-- name: advance(me uuid, epoch bigint, name text, was timestamptz, next_at timestamptz, fired bigint, last_at timestamptz, last_job bigint) :one
-- Moves a schedule on from the moment that was read; whoever comes second finds another moment there.
-- held: the caller leads (or epoch is NULL); if not, nothing was written.
WITH may AS MATERIALIZED (  -- the lease is held until the commit, which is all that comes: a client that stops lets go
    SELECT {schema}.still_leads($1, $2)
           AND set_config('idle_in_transaction_session_timeout', '1s', true) IS NOT NULL AS held
), moved AS (
    UPDATE {schema}.schedules s
       SET next_at = $5, fired = s.fired + $6, last_at = coalesce($7, s.last_at),
           last_job = coalesce($8, s.last_job), error = NULL
     WHERE s.name = $3 AND s.next_at = $4 AND s.paused_at IS NULL AND (SELECT may.held FROM may)
    RETURNING s.name
)
SELECT (SELECT may.held FROM may) AS held, EXISTS (SELECT FROM moved) AS is_moved;

-- name: fail_schedule(me uuid, epoch bigint, name text, was timestamptz, error text) :one
-- Writes down why it could not be fired. held: as above.
-- plan: schedules_pkey
WITH may AS MATERIALIZED (
    SELECT {schema}.still_leads($1, $2) AS held
), failed AS (
    UPDATE {schema}.schedules s SET error = $5
     WHERE s.name = $3 AND s.next_at = $4 AND (SELECT may.held FROM may)
    RETURNING s.name
)
SELECT (SELECT may.held FROM may) AS held, EXISTS (SELECT FROM failed) AS is_moved;

-- name: list_schedules() :many
-- All schedules, by name.
SELECT s.name, s.spec, s.zone, s.missed, s.job, s.next_at, s.last_at, s.last_job, s.fired, s.paused_at, s.set_by,
       s.error, s.created_at, statement_timestamp() AS now
  FROM {schema}.schedules s ORDER BY s.name;

-- name: find_schedule(name text) :one
-- No row: there is none of that name.
-- plan: schedules_pkey
SELECT s.name, s.spec, s.zone, s.missed, s.job, s.next_at, s.last_at, s.last_job, s.fired, s.paused_at, s.set_by,
       s.error, s.created_at, statement_timestamp() AS now
  FROM {schema}.schedules s WHERE s.name = $1;

-- name: pause_schedule(name text) :one
-- No row: there is none of that name. Pausing twice keeps the first moment.
-- plan: schedules_pkey
UPDATE {schema}.schedules s SET paused_at = coalesce(s.paused_at, clock_timestamp())
 WHERE s.name = $1
RETURNING s.name, s.next_at;

-- name: resume_schedule(name text, was timestamptz, next_at timestamptz) :one
-- Due again from next_at on: what was missed while it was paused is not made up for.
-- No row: it is gone, or not paused, or has been moved meanwhile.
-- plan: schedules_pkey
UPDATE {schema}.schedules s SET paused_at = NULL, next_at = $3, error = NULL
 WHERE s.name = $1 AND s.next_at = $2 AND s.paused_at IS NOT NULL
RETURNING s.name, s.next_at;

-- name: note_run(name text, job bigint, fired bigint) :one
-- A job of it that somebody asked for, out of turn; fired: how many are new. No row: it is gone.
-- plan: schedules_pkey
UPDATE {schema}.schedules s SET last_at = clock_timestamp(), last_job = $2, fired = s.fired + $3
 WHERE s.name = $1
RETURNING s.name, s.next_at;

-- name: forget_schedule(name text) :one
-- No row: there is none of that name.
-- plan: schedules_pkey
DELETE FROM {schema}.schedules s WHERE s.name = $1 RETURNING s.name, s.next_at;
