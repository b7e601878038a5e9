-- How jobs end: every statement names the claim under which the job was run; used by completion.py. A job that does not
-- come back is no longer held under its claim, or has been settled before by a try whose answer was lost (see traces).

-- name: complete(ids bigint[], claims bigint[], firsts integer[], lasts integer[]) :none
-- Deletes jobs of which nothing is kept: ids[first..last] are held under a claim. The arithmetic keeps the planner at
-- the primary key: by the index of running jobs all jobs of a fetch would be looked at for each flush.
-- plan: jobs_pkey
DELETE FROM {schema}.jobs j
 USING unnest($2::bigint[], $3::integer[], $4::integer[]) AS g(claim, first, last)
 WHERE j.id = ANY (($1::bigint[])[g.first:g.last]) AND j.claim - g.claim = 0 AND j.state + 0 = 2;

-- name: complete_kept(ids bigint[], claims bigint[], results text[]) :none
-- Moves completed jobs into the history.
-- plan: jobs_pkey
WITH gone AS (
    DELETE FROM {schema}.jobs j
     USING unnest($1::bigint[], $2::bigint[], $3::text[]) AS g(id, claim, result)
     WHERE j.id = g.id AND j.claim - g.claim = 0 AND j.state + 0 = 2
    RETURNING j.*, g.result
)
INSERT INTO {schema}.job_history
       (id, outcome, created_at, claimed_at, node, priority, attempt, queue, kind, key, tenant, args, meta, errors, result)
SELECT id, 'completed', created_at, claimed_at, claim >> 32, priority, attempt, queue, kind, key, tenant, args, meta,
       errors, result
  FROM gone;

-- name: settle(ids bigint[], claims bigint[], endings text[], results text[], delays float8[], errors text[], reasons text[], fingerprints text[]) :many
-- Ends attempts in any way; a job that is given twice ends once.
SELECT s.id, s.claim, s.ending, s.queue, s.key, s.flags, s.batch, s.is_available
  FROM {schema}.settle_jobs($1, $2, $3, $4, $5, $6, $7, $8) s;

-- name: settle_linked(ids bigint[], claims bigint[], endings text[], results text[], delays float8[], errors text[], reasons text[], fingerprints text[], waited_for boolean[]) :many
-- The same for jobs on which others wait, with what follows from their end: rows without an id name a queue with something
-- available now, or with a key whose next one is to be promoted after the commit.
SELECT s.id, s.claim, s.ending, s.queue, s.key, s.flags, s.batch, s.is_available
  FROM {schema}.settle_linked_jobs($1, $2, $3, $4, $5, $6, $7, $8, $9) s;

-- name: traces(ids bigint[], claims bigint[], attempts integer[]) :many
-- What shows, after a lost answer, whether these were settled by their claim. is_ours: something says so; is_there: it
-- is live, dead or in the history. node_is_here: their node has not been declared dead, so that nobody else could have
-- taken them; read in the same snapshot.
-- plan: jobs_pkey
SELECT g.id, g.claim,
       coalesce(j.errors @> c.record, false) OR coalesce(d.errors @> c.record, false)
       OR coalesce(h.node = g.claim >> 32 AND h.attempt = g.attempt, false) AS is_ours,
       j.id IS NOT NULL OR d.id IS NOT NULL OR h.id IS NOT NULL AS is_there,
       EXISTS (SELECT
                 FROM {schema}.nodes n
                WHERE n.number = g.claim >> 32 AND n.state NOT IN ('left', 'dead')) AS node_is_here
  FROM unnest($1::bigint[], $2::bigint[], $3::integer[]) AS g(id, claim, attempt)
 CROSS JOIN LATERAL jsonb_build_array(jsonb_build_object('claim', g.claim)) AS c(record)
  LEFT JOIN {schema}.jobs j ON j.id = g.id
  LEFT JOIN {schema}.dead_jobs d ON d.id = g.id
  LEFT JOIN LATERAL (
       SELECT k.id, k.node, k.attempt FROM {schema}.job_history k WHERE k.id = g.id LIMIT 1) h ON true;

-- name: still_there(ids bigint[]) :many
-- Of jobs whose completion has been written under their claims, those that are live: some whose claim was lost.
-- plan: jobs_pkey
SELECT j.id FROM {schema}.jobs j WHERE j.id = ANY ($1) LIMIT 20;

-- name: locked(ids bigint[]) :many
-- Of these, jobs whose rows somebody else has locked right now.
-- plan: jobs_pkey
WITH free AS MATERIALIZED (
    SELECT j.id FROM {schema}.jobs j WHERE j.id = ANY ($1) FOR UPDATE SKIP LOCKED
)
SELECT j.id FROM {schema}.jobs j WHERE j.id = ANY ($1) AND j.id NOT IN (SELECT f.id FROM free f);
