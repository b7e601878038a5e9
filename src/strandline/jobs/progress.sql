-- How far running jobs are; used by progress.py.

-- name: write_progress(ids bigint[], claims bigint[], told text[]) :none
-- The latest of each job that is still held under its claim. One that is being settled right now is
-- passed over: nobody waits here for a lock. The commit is not waited for.
-- plan: jobs_pkey
WITH calm AS MATERIALIZED (
    SELECT set_config('synchronous_commit', 'off', true)
), held AS MATERIALIZED (
    SELECT j.id, g.told
    FROM unnest($1::bigint[], $2::bigint[], $3::text[]) AS g (id, claim, told)
    JOIN {schema}.jobs AS j ON j.id = g.id AND j.claim = g.claim AND j.state = 2
    ORDER BY j.id
    FOR NO KEY UPDATE OF j SKIP LOCKED
)
UPDATE {schema}.jobs AS j
SET progress = held.told::jsonb
FROM calm, held
WHERE j.id = held.id;
