-- What a pulse says of its node. Each is one statement in autocommit; the order of locks is
-- node, lease, cluster.

-- name: join_cluster(id uuid, name text, mode text, labels text[], capacity real, priority smallint, version text, host text, pid integer, pulse text, ttl double precision, channel text) :one
-- No row: it is there already, from a try whose answer was lost.
-- plan: nodes_pkey
WITH joined AS (
    INSERT INTO {schema}.nodes
           (id, name, state, mode, labels, capacity, priority, version, host, pid, pulse, ttl, expires_at)
    VALUES ($1, $2, 'joining', $3, $4, $5, $6, $7, $8, $9, $10, $11::float8::real,
            clock_timestamp() + make_interval(secs => $11::float8))
    ON CONFLICT (id) DO NOTHING
    RETURNING number
), logged AS (
    INSERT INTO {schema}.node_log (kind, node, name, detail)
    SELECT 'node_joined', $1, $2,
           jsonb_build_object('host', $8, 'pid', $9, 'version', $7, 'labels', $4, 'pulse', $10)
      FROM joined
), bumped AS (
    UPDATE {schema}.cluster SET version = version + 1 WHERE EXISTS (SELECT FROM joined)
), told AS (
    SELECT pg_notify($12, 'joined') FROM joined
)
SELECT number FROM joined WHERE (SELECT count(*) FROM told) > 0;

-- name: tick(id uuid, state text, ttl double precision, loop_lag double precision, progress bigint, lease text, epoch bigint, leader_ttl double precision, priority smallint, channel text) :one
-- Beats, renews the term epoch of the lease (NULL: none), and reads back what the cluster wants.
-- state is NULL: the node was declared dead or has left; nothing was written for it.
-- No row: the lease or the cluster has no row, so something of the schema is damaged.
-- plan: nodes_pkey
WITH beat AS (
    UPDATE {schema}.nodes
       SET beats = beats + 1, beat_at = clock_timestamp(),
           expires_at = clock_timestamp() + make_interval(secs => $3),
           steady_since = CASE WHEN clock_timestamp() - beat_at > make_interval(secs => $3 / 2)
                               THEN clock_timestamp() ELSE steady_since END,
           loop_lag = $4::float8::real, progress = $5,
           state = CASE WHEN state = 'draining' OR $2 = 'joining' THEN state ELSE $2 END
     WHERE id = $1 AND state IN ('joining', 'active', 'stalled', 'draining')
    RETURNING name, state, drain_requested_at, drain_reason
), changed AS (
    SELECT beat.name, beat.state FROM beat, {schema}.nodes before
     WHERE before.id = $1 AND before.state <> beat.state
), renewed AS (
    UPDATE {schema}.leases
       SET renewed_at = clock_timestamp(), renewals = renewals + 1,
           expires_at = clock_timestamp() + make_interval(secs => $8)
     WHERE name = $6 AND holder = $1 AND epoch = $7 AND expires_at > clock_timestamp()
       AND EXISTS (SELECT FROM beat)
    RETURNING renewals, expires_at
), logged AS (
    INSERT INTO {schema}.node_log (kind, node, name, detail)
    SELECT 'node_' || state, $1, name, jsonb_build_object('loop_lag', $4) FROM changed
), bumped AS (
    UPDATE {schema}.cluster SET version = version + 1
     WHERE EXISTS (SELECT FROM changed) AND (SELECT count(*) FROM renewed) >= 0  -- the lease is locked before, as by all
    RETURNING version
), told AS (
    SELECT pg_notify($10, state) FROM changed
)
SELECT (SELECT state FROM beat) AS state,
       (SELECT left_reason FROM {schema}.nodes WHERE id = $1) AS end_reason,
       (SELECT drain_reason FROM beat WHERE drain_requested_at IS NOT NULL) AS drain_reason,
       coalesce((SELECT version FROM bumped), c.version) AS version,
       l.holder, l.epoch,
       coalesce((SELECT renewals FROM renewed), l.renewals) AS renewals,
       CASE WHEN l.holder IS NULL OR NOT isfinite(l.expires_at) THEN 0
            ELSE extract(epoch FROM coalesce((SELECT expires_at FROM renewed), l.expires_at)
                                    - clock_timestamp())::float8 END AS expires_in,
       CASE WHEN l.holder IS NULL OR NOT isfinite(l.expires_at) THEN 0
            ELSE extract(epoch FROM l.expires_at - l.renewed_at)::float8 END AS lease_ttl,
       EXISTS (SELECT FROM renewed) AS is_renewed,
       CASE WHEN l.resign_requested_at IS NOT NULL THEN l.resign_reason END AS resign_reason,
       CASE WHEN l.holder IS NULL OR l.expires_at <= clock_timestamp() THEN
            (SELECT count(DISTINCT n.priority)::int FROM {schema}.nodes n
              WHERE n.state = 'active' AND n.mode = 'cluster' AND n.priority > $9
                AND n.expires_at > clock_timestamp())
            ELSE 0 END AS rivals
  FROM {schema}.leases l, {schema}.cluster c
 WHERE l.name = $6 AND (SELECT count(*) FROM told) >= 0;

-- name: end_node(id uuid, state text, reason text, report text, channel text) :one
-- Final: 'left' (it went by itself) or 'dead'; leases it holds are given up in the same statement.
-- The state that its row has now. No row: the node has none.
-- plan: nodes_pkey
WITH ended AS (
    UPDATE {schema}.nodes
       SET state = $2, left_at = clock_timestamp(), left_reason = $3,
           report = coalesce($4::text::jsonb, report)
     WHERE id = $1 AND state IN ('joining', 'active', 'stalled', 'draining')
    RETURNING name, state
), resigned AS (
    UPDATE {schema}.leases
       SET holder = NULL, expires_at = '-infinity', renewals = renewals + 1,
           resign_requested_at = NULL, resign_reason = ''
     WHERE holder = $1
    RETURNING name, epoch
), logged AS (
    INSERT INTO {schema}.node_log (kind, node, name, epoch, detail)
    SELECT e.kind, $1, coalesce((SELECT n.name FROM {schema}.nodes n WHERE n.id = $1), ''), e.epoch, e.detail
      FROM (SELECT 1 AS place, CASE WHEN $2 = 'left' THEN 'leader_resigned' ELSE 'leader_lost' END AS kind,
                   epoch, jsonb_build_object('lease', name, 'reason', $3) AS detail
              FROM resigned
             UNION ALL
            SELECT 2, 'node_' || state, NULL, jsonb_build_object('reason', $3) FROM ended
             UNION ALL
            SELECT 3, 'shutdown', NULL, $4::text::jsonb FROM ended WHERE $4::text IS NOT NULL) e
     ORDER BY e.place
), bumped AS (
    UPDATE {schema}.cluster SET version = version + 1
     WHERE (SELECT count(*) FROM ended) + (SELECT count(*) FROM resigned) > 0  -- both before: the order of locks
), told AS (
    SELECT pg_notify($5, $2)
     WHERE EXISTS (SELECT FROM ended) OR EXISTS (SELECT FROM resigned)
)
SELECT coalesce((SELECT state FROM ended), n.state) AS state
  FROM {schema}.nodes n
 WHERE n.id = $1 AND (SELECT count(*) FROM told) >= 0;
