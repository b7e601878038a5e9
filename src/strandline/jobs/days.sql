-- The history's partitions, one a day (UTC); used by days.py.

-- name: days(ahead integer, keep integer) :many
-- The days that are there, and those that should be: today and so many ahead. is_old: over for so many days.
WITH today AS MATERIALIZED (
    SELECT (statement_timestamp() AT TIME ZONE 'UTC')::date AS day
), there AS (
    SELECT c.relname::text AS name, to_date(right(c.relname, 8), 'YYYYMMDD') AS day
      FROM pg_inherits i
      JOIN pg_class c ON c.oid = i.inhrelid
     WHERE i.inhparent = to_regclass('{schema}.job_history') AND c.relname ~ '^job_history_[0-9]+$' AND length(c.relname) = 20
), wanted AS (
    SELECT 'job_history_' || to_char(t.day + n.n, 'YYYYMMDD') AS name, t.day + n.n AS day
      FROM today t CROSS JOIN generate_series(0, $1::integer) n(n)
)
SELECT coalesce(t.name, w.name) AS name, coalesce(t.day, w.day) AS day, t.name IS NOT NULL AS is_there,
       coalesce(t.day, w.day) < today.day - $2::integer AS is_old
  FROM there t
  FULL JOIN wanted w ON w.name = t.name
 CROSS JOIN today
 ORDER BY 2;

-- name: make_day(day date, most bigint, me uuid, epoch bigint) :one
-- Makes the partition of a day: made, left or refused, see the function.
SELECT {schema}.make_job_day($1, $2, $3, $4) AS outcome;

-- name: drop_day(day date, me uuid, epoch bigint) :one
-- Drops the partition of a day: dropped or refused.
SELECT {schema}.drop_job_day($1, $2, $3) AS outcome;
