-- Flows: who waits for whom, and what is freed or cancelled when a job has ended; used by flows.py.
--
-- Order of locks: batches by id, then rows of jobs by id (hold_jobs takes all that a transaction is going to need), then
-- edges. An edge is only touched by whoever has locked the job that waits.

-- name: insert_batches(ids bigint[], members bigint[], thens bigint[], always bigint[], batches bigint[]) :none
INSERT INTO {schema}.job_batches (id, members, then_job, always_job, batch)
SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[]);

-- name: insert_edges(children bigint[], parents bigint[], names text[], lenient boolean[]) :none
INSERT INTO {schema}.job_edges (child, parent, name, lenient)
SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::boolean[]);

-- name: hold(ids bigint[], failed boolean[]) :none
-- Locks these jobs and every one that their end frees or cancels.
SELECT {schema}.hold_jobs($1, $2);

-- name: follow(ids bigint[], batches bigint[], outcomes text[], results text[]) :many
-- Queues with something available now; with a key, those whose next one of that key is to be found after the commit.
SELECT f.queue, f.key FROM {schema}.follow_jobs($1, $2, $3, $4) AS f;

-- name: results(child bigint) :many
-- What its parents answered.
-- plan: job_edges_pkey
SELECT e.name, e.result
  FROM {schema}.job_edges e
 WHERE e.child = $1 AND e.ended = 'completed' AND e.result IS NOT NULL
 ORDER BY e.parent;
