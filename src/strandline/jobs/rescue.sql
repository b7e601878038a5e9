-- Jobs whose node is gone; used by rescue.py.

-- name: rescue(me uuid, epoch bigint, own bigint, most bigint) :one
-- Takes at most so many running jobs from nodes that are gone: available again, or dead letters where all
-- attempts are used up and this is the third node that it was lost with: it may never have begun there, so that one
-- loss proves nothing against it, but a job that ends every node must not go on for ever. Gone is who is not among
-- the nodes that are there, whatever the age of the job; own given: whoever had a number before that one, and nodes after it that are known to be gone. Rows that others have
-- locked are left for the next look. A job is taken under the claim that it has when it is locked: one that somebody
-- has claimed anew meanwhile, or that has ended, is not. held: the caller leads (or epoch is NULL); if not, nothing
-- was written. to_cancel, claims: of these, those that were to be cancelled; they are left as they are.
-- plan: jobs_running_idx
WITH RECURSIVE may AS MATERIALIZED (
    SELECT {schema}.still_leads($1, $2) AS held
), holder(number) AS (  -- one step of the index for each node, not for each job
    SELECT (SELECT j.claim >> 32 FROM {schema}.jobs j
             WHERE j.state = 2 AND j.claim IS NOT NULL ORDER BY j.claim LIMIT 1)
     WHERE (SELECT may.held FROM may)
    UNION ALL
    SELECT (SELECT j.claim >> 32 FROM {schema}.jobs j
             WHERE j.state = 2 AND j.claim >= (holder.number + 1) << 32 ORDER BY j.claim LIMIT 1)
      FROM holder WHERE holder.number IS NOT NULL
), gone AS MATERIALIZED (
    SELECT h.number FROM holder h
     WHERE h.number IS NOT NULL
       AND CASE WHEN $3::bigint IS NULL
                THEN NOT EXISTS (SELECT FROM {schema}.nodes n
                                  WHERE n.number = h.number AND n.state NOT IN ('left', 'dead'))
                ELSE h.number < $3 OR h.number > $3
                     AND EXISTS (SELECT FROM {schema}.nodes n
                                  WHERE n.number = h.number AND n.state IN ('left', 'dead')) END
), lost AS MATERIALIZED (
    SELECT j.id, j.claim, j.seq, j.is_cancelled, j.is_spent AND NOT j.is_cancelled AS is_dead
      FROM gone g
     CROSS JOIN LATERAL (SELECT i.id, i.claim, i.seq, i.cancel_at IS NOT NULL AS is_cancelled,
                                i.attempt >= i.max_attempts AND 2 <= coalesce(jsonb_array_length(
                                    jsonb_path_query_array(i.errors, '$[*] ? (@.class == "NodeLost")')), 0) AS is_spent
                           FROM {schema}.jobs i
                          WHERE i.state = 2 AND i.claim >= g.number << 32 AND i.claim < (g.number + 1) << 32
                          ORDER BY i.claim
                          LIMIT $4
                            FOR UPDATE SKIP LOCKED) j
     LIMIT $4
), placed AS MATERIALIZED (
    SELECT o.id, o.claim, nextval('{schema}.job_order') AS seq
      FROM (SELECT l.id, l.claim FROM lost l WHERE NOT l.is_dead AND NOT l.is_cancelled ORDER BY l.seq) o
), freed AS (
    UPDATE {schema}.jobs j
       SET state = 0, seq = p.seq, claim = NULL, claimed_at = NULL, progress = NULL,
           errors = CASE WHEN jsonb_array_length(j.errors) >= 50 THEN j.errors - 1 ELSE coalesce(j.errors, '[]') END || jsonb_build_object(
               'attempt', j.attempt, 'at', clock_timestamp(), 'class', 'NodeLost',
               'message', format('node %s is gone', j.claim >> 32))
      FROM placed p
     WHERE j.id = p.id AND j.claim = p.claim AND j.state = 2
    RETURNING j.queue
), dead AS (  -- one whose place there is taken stays as it is, and keeps no others from theirs
    INSERT INTO {schema}.dead_jobs (id, batch, created_at, priority, attempt, max_attempts, flags, queue, kind, key,
                                    unique_key, tenant, args, meta, errors, fingerprint)
    SELECT e.id, e.batch, e.created_at, e.priority, e.attempt, e.max_attempts, e.flags, e.queue, e.kind, e.key,
           e.unique_key, e.tenant, e.args, e.meta,
           CASE WHEN jsonb_array_length(e.errors) >= 50 THEN e.errors - 1 ELSE coalesce(e.errors, '[]') END || jsonb_build_object(
               'attempt', e.attempt, 'at', clock_timestamp(), 'class', 'NodeLost',
               'message', format('node %s is gone', e.claim >> 32)),
           left(encode(sha256(convert_to('NodeLost ' || e.kind, 'UTF8')), 'hex'), 16)
      FROM lost l
      JOIN {schema}.jobs e ON e.id = l.id AND e.claim = l.claim AND e.state + 0 = 2
     WHERE l.is_dead
        ON CONFLICT DO NOTHING
    RETURNING id
), ended AS (
    DELETE FROM {schema}.jobs j USING dead d WHERE j.id = d.id
)
SELECT (SELECT may.held FROM may) AS held,
       (SELECT count(*) FROM lost) AS seen,
       (SELECT count(*) FROM freed) AS freed,
       (SELECT coalesce(array_agg(d.id), '{}')::bigint[] FROM dead d) AS dead,
       (SELECT coalesce(array_agg(DISTINCT f.queue), '{}')::text[] FROM freed f) AS queues,
       (SELECT coalesce(array_agg(g.number), '{}')::bigint[] FROM gone g) AS nodes,
       (SELECT coalesce(array_agg(l.id ORDER BY l.id), '{}')::bigint[] FROM lost l WHERE l.is_cancelled) AS to_cancel,
       (SELECT coalesce(array_agg(l.claim ORDER BY l.id), '{}')::bigint[] FROM lost l WHERE l.is_cancelled) AS claims;

-- name: end_sessions(own bigint) :many
-- Ends sessions in which nodes that are gone (see above) claimed or completed jobs, while they hold rows of ours: a
-- process that stands still, or whose machine is gone, would keep them for as long as its connection seems to be there.
SELECT a.application_name AS application, pg_terminate_backend(a.pid) AS is_ended
  FROM pg_stat_activity a
 CROSS JOIN LATERAL (SELECT substring(a.application_name FROM '^strandline jobs(?: done)? ([0-9]{1,18})$')::bigint AS number) h
 WHERE a.datname = current_database() AND a.usename = current_user AND h.number IS NOT NULL
   AND CASE WHEN $1::bigint IS NULL
            THEN NOT EXISTS (SELECT FROM {schema}.nodes n
                              WHERE n.number = h.number AND n.state NOT IN ('left', 'dead'))
            ELSE h.number < $1 OR h.number > $1
                 AND EXISTS (SELECT FROM {schema}.nodes n WHERE n.number = h.number AND n.state IN ('left', 'dead')) END
   AND EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND l.relation = '{schema}.jobs'::regclass);

-- name: draw_number() :one
-- A number for a process that is no node of the cluster, and nobody else's ever.
SELECT nextval(pg_get_serial_sequence('{schema}.nodes', 'number')) AS number;
