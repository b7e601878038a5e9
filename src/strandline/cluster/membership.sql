-- Who is in the cluster, and what an operator may ask of a node; used by membership.py. Each is one
-- statement in autocommit. The order of locks is node, lease, cluster.

-- name: list_nodes(gone bigint) :many
-- Every node that is there, by number, and then the last ones that have left or died, newest first.
WITH shown AS (
    SELECT n.id FROM {schema}.nodes n WHERE n.state NOT IN ('left', 'dead')
    UNION ALL
    (SELECT n.id FROM {schema}.nodes n WHERE n.state IN ('left', 'dead') ORDER BY n.number DESC LIMIT $1)
)
SELECT n.id, n.number, n.name, n.state, n.mode, n.labels,
       n.capacity, n.priority, n.version, n.host, n.pid, n.pulse,
       extract(epoch FROM coalesce(n.left_at, clock_timestamp()) - n.started_at)::float8 AS age,
       extract(epoch FROM clock_timestamp() - n.beat_at)::float8 AS silent,
       extract(epoch FROM n.expires_at - clock_timestamp())::float8 AS expires_in,
       n.loop_lag, n.progress,
       (SELECT count(*)::int FROM {schema}.assignments a WHERE a.owner = n.id) AS work,
       EXISTS (SELECT FROM {schema}.leases l
                WHERE l.name = 'leader' AND l.holder = n.id AND l.expires_at > clock_timestamp()) AS is_leader,
       CASE WHEN n.drain_requested_at IS NOT NULL THEN n.drain_reason END AS drain_reason,
       n.left_reason, n.report::text AS report,
       extract(epoch FROM clock_timestamp() - n.left_at)::float8 AS gone
  FROM shown
  JOIN {schema}.nodes n ON n.id = shown.id
 ORDER BY n.state IN ('left', 'dead'),
          CASE WHEN n.state IN ('left', 'dead') THEN -n.number ELSE n.number END;

-- name: number_of(node uuid) :one
-- The number of a node that is there. No row: it has left, or was declared dead.
-- plan: nodes_pkey
SELECT n.number FROM {schema}.nodes n
 WHERE n.id = $1 AND n.state IN ('joining', 'active', 'stalled', 'draining');

-- name: match_nodes(word text) :many
-- Nodes that the word may mean, the likeliest first: of that name, number or id, before ids that
-- begin with it (six letters at least: a mistyped number must not hit another node); present ones
-- before those that are gone.
SELECT m.id, m.number, m.name, m.state, m.likely
  FROM (SELECT n.id, n.number, n.name, n.state,
               CASE WHEN n.name = $1 OR n.number::text = $1 OR n.id::text = lower($1) THEN 0 ELSE 2 END
               + CASE WHEN n.state IN ('left', 'dead') THEN 1 ELSE 0 END AS likely
          FROM {schema}.nodes n
         WHERE n.name = $1 OR n.number::text = $1 
            OR (length($1) >= 6 AND starts_with(n.id::text, lower($1)))) m
 ORDER BY m.likely, m.number DESC
 LIMIT 20;

-- name: request_drain(node uuid, reason text, channel text) :one
-- The node reads it in its next beat, or at once where it listens. No row: it is not there (any more).
-- plan: nodes_pkey
WITH asked AS (
    UPDATE {schema}.nodes
       SET drain_requested_at = clock_timestamp(), drain_reason = $2
     WHERE id = $1 AND state IN ('joining', 'active', 'stalled', 'draining')
    RETURNING id, name
), logged AS (
    INSERT INTO {schema}.node_log (kind, node, name, detail)
    SELECT 'node_draining', id, name, jsonb_build_object('requested', true, 'reason', $2) FROM asked
), bumped AS (
    UPDATE {schema}.cluster SET version = version + 1 WHERE EXISTS (SELECT FROM asked)
), told AS (
    SELECT pg_notify($3, 'drain') FROM asked
)
SELECT id, name FROM asked WHERE (SELECT count(*) FROM told) > 0;

-- name: request_resign(reason text, channel text) :one
-- Asks the leader to give its lease up. No row: nobody holds it.
-- plan: leases_pkey
WITH asked AS (
    UPDATE {schema}.leases
       SET resign_requested_at = clock_timestamp(), resign_reason = $1
     WHERE name = 'leader' AND holder IS NOT NULL AND expires_at > clock_timestamp()
    RETURNING holder, epoch
), named AS (
    SELECT a.holder, a.epoch, coalesce(n.name, '') AS name
      FROM asked a LEFT JOIN {schema}.nodes n ON n.id = a.holder
), logged AS (
    INSERT INTO {schema}.node_log (kind, node, name, epoch, detail)
    SELECT 'leader_requested', holder, name, epoch, jsonb_build_object('reason', $1) FROM named
), bumped AS (
    UPDATE {schema}.cluster SET version = version + 1 WHERE EXISTS (SELECT FROM named)
), told AS (
    SELECT pg_notify($2, 'resign') FROM named
)
SELECT holder, name, epoch FROM named WHERE (SELECT count(*) FROM told) > 0;

-- name: evict_node(node uuid, reason text, channel text) :one
-- Declares a node dead by an operator's word. A lease that it holds is free in the same statement.
-- No row: it is not there (any more).
-- plan: nodes_pkey
WITH evicted AS (
    UPDATE {schema}.nodes
       SET state = 'dead', left_at = clock_timestamp(), left_reason = $2
     WHERE id = $1 AND state IN ('joining', 'active', 'stalled', 'draining')
    RETURNING id, name
), freed AS (
    UPDATE {schema}.leases l
       SET holder = NULL, expires_at = '-infinity', renewals = l.renewals + 1,
           resign_requested_at = NULL, resign_reason = ''
      FROM evicted e
     WHERE l.holder = e.id
    RETURNING l.name, l.epoch
), logged AS (
    INSERT INTO {schema}.node_log (kind, node, name, epoch, detail)
    SELECT o.kind, o.id, o.name, o.epoch, o.detail
      FROM (SELECT 1 AS place, 'leader_lost' AS kind, e.id, e.name, f.epoch,
                   jsonb_build_object('lease', f.name, 'reason', $2) AS detail
              FROM evicted e CROSS JOIN freed f
             UNION ALL
            SELECT 2, 'node_dead', e.id, e.name, NULL,
                   jsonb_build_object('evicted', true, 'reason', $2)
              FROM evicted e) o
     ORDER BY o.place
), bumped AS (
    UPDATE {schema}.cluster SET version = version + 1 WHERE EXISTS (SELECT FROM evicted)
), told AS (
    SELECT pg_notify($3, 'dead') FROM evicted
)
SELECT id, name FROM evicted WHERE (SELECT count(*) FROM told) > 0;

-- name: prune_nodes(age double precision, keep bigint, recent double precision, most bigint) :one
-- Deletes at most so many rows of nodes that have left or died: those gone for longer than age, and those
-- beyond the newest keep unless they went recently. Never one that work still names: whoever claims
-- that work must see that its owner is gone.
WITH gone AS (
    SELECT n.id, n.left_at, row_number() OVER (ORDER BY n.number DESC) AS place
      FROM {schema}.nodes n WHERE n.state IN ('left', 'dead')
), pruned AS (
    DELETE FROM {schema}.nodes n
     USING (SELECT g.id FROM gone g
             WHERE (g.left_at < clock_timestamp() - make_interval(secs => $1)
                    OR (g.place > $2 AND g.left_at < clock_timestamp() - make_interval(secs => $3)))
               AND NOT EXISTS (SELECT FROM {schema}.assignments a WHERE a.owner = g.id)
               AND NOT EXISTS (SELECT FROM {schema}.assignments a WHERE a.target = g.id)
             ORDER BY g.place DESC
             LIMIT $4) old
     WHERE n.id = old.id
    RETURNING n.id
)
SELECT count(*)::int AS rows FROM pruned;
