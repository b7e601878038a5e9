-- The statements of a leader; used by leading.py. Each is one statement in autocommit. Those that write
-- share-lock the lease under (holder, epoch) first: a take-over needs that row alone, so they come before it
-- whole, or find another holder and write nothing. FOR KEY SHARE would let the take-over pass.
-- The order of locks is lease, nodes, work, assignments, cluster; the last one comes when all others are taken,
-- so it asks for their count. Rows that others have locked are left for the next look: the leader waits for nobody.

-- name: look(me uuid, epoch bigint, grace double precision) :one
-- Everything that a plan is made of, in one snapshot, as JSON. leads: the caller holds the lease under this epoch.
-- A node is_due when it has expired by the server's clock, and has been silent for its ttl since the caller's own
-- beats are steady: after an outage of the database everybody has a whole ttl to come back.
-- No row: the table cluster is empty.
WITH moment AS MATERIALIZED (
    SELECT clock_timestamp() AS now
), me AS MATERIALIZED (
    SELECT n.steady_since, n.beat_at > m.now - make_interval(secs => n.ttl / 2) AS is_steady
      FROM {schema}.nodes n, moment m
     WHERE n.id = $1 AND n.state IN ('joining', 'active', 'stalled', 'draining')
), seen AS (
    SELECT n.*, n.state IN ('joining', 'active', 'stalled', 'draining') AS is_here, m.now,
           greatest(n.expires_at, greatest(me.steady_since, n.beat_at) + make_interval(secs => n.ttl)) AS due_at,
           coalesce(me.is_steady, false) AS can_judge
      FROM moment m
     CROSS JOIN {schema}.nodes n
      LEFT JOIN me ON true
     WHERE n.state NOT IN ('left', 'dead') OR n.left_at > m.now - make_interval(secs => $3)
)
SELECT EXISTS (SELECT FROM {schema}.leases l WHERE l.name = 'leader' AND l.holder = $1 AND l.epoch = $2) AS leads,
       (SELECT coalesce(json_agg(json_build_array(
                   s.id, s.name, s.state, s.labels, s.capacity, s.beats,
                   s.is_here AND s.expires_at > s.now,
                   s.is_here AND s.id <> $1 AND s.beat_at < s.now - make_interval(secs => s.ttl / 2),
                   s.is_here AND s.can_judge AND s.id <> $1 AND s.due_at <= s.now,
                   CASE WHEN s.is_here AND s.id <> $1 THEN extract(epoch FROM s.due_at - s.now) END,
                   CASE WHEN NOT s.is_here THEN extract(epoch FROM s.now - s.left_at) END)), '[]')::text
          FROM seen s) AS nodes,
       (SELECT coalesce(json_agg(json_build_array(
                   w.name, w.needs, w.together, w.apart, w.weight, w.pinned_to,
                   w.paused_at IS NOT NULL AND coalesce(w.rests_until >= m.now, true),
                   a.target, a.owner, a.owner_name,
                   CASE WHEN a.avoid = '{}' THEN '{}'
                        ELSE (SELECT coalesce(array_agg(v.key ORDER BY v.key), '{}')
                                FROM jsonb_each_text(a.avoid) v
                               WHERE v.value::timestamptz > m.now) END)), '[]')::text
          FROM moment m
         CROSS JOIN {schema}.work w
          JOIN {schema}.assignments a ON a.work = w.name) AS work
  FROM {schema}.cluster;

-- name: mark_dead(me uuid, epoch bigint, nodes uuid[], beats bigint[], channel text) :one
-- Declares those of the nodes dead that have not beaten since (the count of beats is the same) and that are
-- due by the rule of look, judged anew: a late beat wins, or the node is out, never both.
-- dead: [[id, name, seconds of silence], ...]. held: the caller leads; if not, nothing was written.
WITH fence AS MATERIALIZED (
    SELECT l.epoch FROM {schema}.leases l
     WHERE l.name = 'leader' AND l.holder = $1 AND l.epoch = $2
       FOR SHARE
), me AS MATERIALIZED (
    SELECT n.steady_since FROM {schema}.nodes n, fence
     WHERE n.id = $1 AND n.state IN ('joining', 'active', 'stalled', 'draining')
       AND n.beat_at > clock_timestamp() - make_interval(secs => n.ttl / 2)
), due AS MATERIALIZED (
    SELECT n.id, n.beat_at
      FROM {schema}.nodes n
      JOIN unnest($3::uuid[], $4::bigint[]) AS s(id, beats) ON s.id = n.id
     CROSS JOIN me
     WHERE n.beats = s.beats AND n.id <> $1
       AND n.state IN ('joining', 'active', 'stalled', 'draining')
       AND greatest(n.expires_at, greatest(me.steady_since, n.beat_at) + make_interval(secs => n.ttl)) <= clock_timestamp()
       FOR UPDATE OF n SKIP LOCKED
), dead AS (
    UPDATE {schema}.nodes n
       SET state = 'dead', left_at = clock_timestamp(),
           left_reason = format('no beat for %s s', round(extract(epoch FROM clock_timestamp() - d.beat_at), 1))
      FROM due d WHERE n.id = d.id
    RETURNING n.id, n.name, n.left_reason, extract(epoch FROM n.left_at - n.beat_at) AS silent
), logged AS (
    INSERT INTO {schema}.node_log (kind, node, name, epoch, detail)
    SELECT 'node_dead', id, name, $2, jsonb_build_object('reason', left_reason, 'by', $1) FROM dead
), bumped AS (
    UPDATE {schema}.cluster SET version = version + 1 WHERE (SELECT count(*) FROM dead) > 0
), told AS (
    SELECT pg_notify($5, 'dead') WHERE EXISTS (SELECT FROM dead)
)
SELECT EXISTS (SELECT FROM fence) AS held,
       (SELECT coalesce(json_agg(json_build_array(d.id, d.name, d.silent)), '[]')::text FROM dead d) AS dead
 WHERE (SELECT count(*) FROM told) >= 0;

-- name: publish(me uuid, epoch bigint, work text[], targets uuid[], detail text, channel text) :one
-- Sets the targets that differ, and logs the plan. Work that is paused gets no target, whatever the plan
-- says: its row is share-locked, so a pause comes before (and is seen here) or after (and takes the target away).
-- held: the caller leads; if not, nothing was written.
WITH fence AS MATERIALIZED (
    SELECT l.epoch FROM {schema}.leases l
     WHERE l.name = 'leader' AND l.holder = $1 AND l.epoch = $2
       FOR SHARE
), wanted AS MATERIALIZED (
    SELECT w.work, w.target FROM unnest($3::text[], $4::uuid[]) AS w(work, target), fence
), free AS MATERIALIZED (
    SELECT w.name FROM {schema}.work w
     WHERE w.name IN (SELECT t.work FROM wanted t WHERE t.target IS NOT NULL)
       AND (w.paused_at IS NULL OR w.rests_until < clock_timestamp())
       FOR SHARE SKIP LOCKED
), open AS MATERIALIZED (
    SELECT a.work, t.target
      FROM {schema}.assignments a
      JOIN wanted t ON t.work = a.work
     WHERE a.target IS DISTINCT FROM t.target
       AND (t.target IS NULL OR a.work IN (SELECT f.name FROM free f))
       FOR UPDATE OF a SKIP LOCKED
), changed AS (
    UPDATE {schema}.assignments a
       SET target = o.target, target_at = clock_timestamp(), leader_epoch = $2
      FROM open o WHERE a.work = o.work
    RETURNING a.work
), done AS MATERIALIZED (
    SELECT count(*)::int AS changes FROM changed
), logged AS (
    INSERT INTO {schema}.node_log (kind, node, name, epoch, detail)
    SELECT 'plan', $1, coalesce((SELECT n.name FROM {schema}.nodes n WHERE n.id = $1), ''), fence.epoch,
           $5::text::jsonb || jsonb_build_object('changes', done.changes)
      FROM fence, done
), bumped AS (
    UPDATE {schema}.cluster c SET version = c.version + 1 FROM done WHERE done.changes > 0
), told AS (
    SELECT pg_notify($6, 'plan') FROM done WHERE done.changes > 0
)
SELECT EXISTS (SELECT FROM fence) AS held, done.changes
  FROM done WHERE (SELECT count(*) FROM told) >= 0;

-- name: log_brake(me uuid, epoch bigint, detail text) :one
-- Says that many nodes are due at once and that the leader waits. No row: the caller does not lead.
WITH fence AS MATERIALIZED (
    SELECT l.epoch FROM {schema}.leases l
     WHERE l.name = 'leader' AND l.holder = $1 AND l.epoch = $2
       FOR SHARE
)
INSERT INTO {schema}.node_log (kind, node, name, epoch, detail)
SELECT 'brake', $1, coalesce((SELECT n.name FROM {schema}.nodes n WHERE n.id = $1), ''), fence.epoch, $3::text::jsonb
  FROM fence
RETURNING epoch;
