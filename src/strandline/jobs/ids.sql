-- Ids of jobs; used by ids.py.

-- name: draw_blocks(count integer) :many
-- That many values of the sequence, each standing for 1,024 ids.
SELECT nextval('{schema}.job_ids') AS number FROM generate_series(1, $1::integer);
