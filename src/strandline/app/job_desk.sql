-- Enqueueing for those who have no declarations; used by job_desk.py.

-- name: enqueue_by_name(kind text, args text, queue text, priority integer, delay float8, key text, unique_key text, max_attempts integer, tenant text) :one
-- The job's id, or that of the one with the same unique key. Raises SL004 for what cannot be stored.
SELECT {schema}.enqueue(
           $1, $2::text::jsonb, coalesce($3, 'default'), coalesce($4, 5),
           clock_timestamp() + $5::float8 * interval '1 second', $6, $7, coalesce($8, 20), $9) AS id;
