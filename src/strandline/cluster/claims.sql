-- What a node runs: offered, looked at, claimed, released. Each statement alone decides, by rows locked in it.
-- The order of locks is work, assignments, cluster; counting, unlike EXISTS, has all rows written before the version.

-- name: offer_work(offered text, channel text) :one
-- Work that this node's code can run; what it needs follows the code. changed: rows that were new or another.
WITH given AS MATERIALIZED (
    SELECT g.name, g.needs, g.together, g.apart, g.weight
      FROM jsonb_to_recordset($1::text::jsonb) AS g(name text, needs text[], together text, apart text, weight real)
     ORDER BY g.name  -- one order for everybody: nodes that start together cannot deadlock
), written AS (
    INSERT INTO {schema}.work AS w (name, needs, together, apart, weight)
    SELECT g.name, g.needs, g.together, g.apart, g.weight FROM given g
    ON CONFLICT (name) DO UPDATE
       SET needs = excluded.needs, together = excluded.together, apart = excluded.apart, weight = excluded.weight
     WHERE (w.needs, w.together, w.apart, w.weight)
           IS DISTINCT FROM (excluded.needs, excluded.together, excluded.apart, excluded.weight)
    RETURNING w.name
), placed AS (
    INSERT INTO {schema}.assignments (work)
    SELECT g.name FROM given g
    ON CONFLICT (work) DO NOTHING
    RETURNING work
), altered AS (
    SELECT (SELECT count(*) FROM written) + (SELECT count(*) FROM placed) AS number
), bumped AS (
    UPDATE {schema}.cluster c SET version = c.version + 1 FROM altered a WHERE a.number > 0
    RETURNING pg_notify($2, 'work') AS told
)
SELECT a.number AS changed FROM altered a LEFT JOIN bumped ON true;

-- name: look_at_work(me uuid) :many
-- Everything that is or should be this node's. owned: the node has it, under epoch. wanted: it should have it.
-- plan: assignments_owner_idx
SELECT a.work, a.epoch, coalesce(a.owner = $1, false) AS owned,
       coalesce(a.target = $1, false) AND (w.paused_at IS NULL OR w.rests_until < clock_timestamp()) AS wanted
  FROM {schema}.assignments a
  JOIN {schema}.work w ON w.name = a.work
 WHERE a.target = $1 OR a.owner = $1;

-- name: claim_work(me uuid, name text, revoke double precision, most bigint, channel text) :many
-- Takes what is meant for this node and is nobody's any more: released, of a node that is gone or whose loop stands
-- still, or not given up in time. No row: there is none, or this node may take nothing, since it is not active or has
-- not beaten in time.
-- plan: assignments_target_idx
WITH node AS MATERIALIZED (
    SELECT n.id
      FROM {schema}.nodes n
     WHERE n.id = $1 AND n.state = 'active' AND n.expires_at > clock_timestamp()
       FOR SHARE  -- whoever declares it dead comes before or after this claim, never in between
), free AS MATERIALIZED (
    SELECT a.work
      FROM {schema}.assignments a
      JOIN {schema}.work w ON w.name = a.work
      JOIN node n ON n.id = a.target
     WHERE a.target = $1
       AND a.owner IS DISTINCT FROM $1
       AND (w.paused_at IS NULL OR w.rests_until < clock_timestamp())
       AND (a.owner IS NULL
            OR a.target_at + make_interval(secs => $3) < clock_timestamp()
            OR NOT EXISTS (SELECT FROM {schema}.nodes o
                            WHERE o.id = a.owner AND o.state NOT IN ('left', 'dead', 'stalled')))
     ORDER BY a.work
     LIMIT $4
       FOR UPDATE OF a SKIP LOCKED
), claimed AS (
    UPDATE {schema}.assignments a
       SET owner = $1, owner_name = $2, epoch = a.epoch + 1, owned_at = clock_timestamp()
      FROM free f
     WHERE a.work = f.work
    RETURNING a.work, a.epoch
), bumped AS (
    UPDATE {schema}.cluster c SET version = c.version + 1 WHERE (SELECT count(*) FROM claimed) > 0
    RETURNING pg_notify($5, 'claimed') AS told
), logged AS (
    INSERT INTO {schema}.node_log (kind, node, name, work, epoch, detail)
    SELECT 'work_claimed', $1, $2, CASE WHEN count(*) = 1 THEN min(c.work) END,
           CASE WHEN count(*) = 1 THEN min(c.epoch) END, jsonb_build_object('work', jsonb_object_agg(c.work, c.epoch))
      FROM claimed c
    HAVING count(*) > 0
)
SELECT c.work, c.epoch FROM claimed c LEFT JOIN bumped ON true;

-- name: release_work(me uuid, name text, works text[], epochs bigint[], channel text) :many
-- Gives up what is still this node's under these epochs; the others see it at once. Rows: what was given up.
-- plan: assignments_pkey
WITH mine AS MATERIALIZED (
    SELECT a.work
      FROM {schema}.assignments a
      JOIN unnest($3::text[], $4::bigint[]) AS g(work, epoch) ON a.work = g.work AND a.epoch = g.epoch
     WHERE a.owner = $1
     ORDER BY a.work
       FOR UPDATE OF a
), released AS (
    UPDATE {schema}.assignments a
       SET owner = NULL, failures = 0
      FROM mine m
     WHERE a.work = m.work
    RETURNING a.work, a.epoch
), bumped AS (
    UPDATE {schema}.cluster c SET version = c.version + 1 WHERE (SELECT count(*) FROM released) > 0
    RETURNING pg_notify($5, 'released') AS told
), logged AS (
    INSERT INTO {schema}.node_log (kind, node, name, work, epoch, detail)
    SELECT 'work_released', $1, $2, CASE WHEN count(*) = 1 THEN min(r.work) END,
           CASE WHEN count(*) = 1 THEN min(r.epoch) END,
           jsonb_build_object('work', jsonb_object_agg(r.work, r.epoch))
      FROM released r
    HAVING count(*) > 0
)
SELECT r.work, r.epoch FROM released r LEFT JOIN bumped ON true;

-- name: give_work_back(me uuid, name text, channel text) :many
-- Gives up whatever is still this node's. Rows: what that was.
-- plan: assignments_owner_idx
WITH mine AS MATERIALIZED (
    SELECT a.work FROM {schema}.assignments a WHERE a.owner = $1 ORDER BY a.work FOR UPDATE OF a
), released AS (
    UPDATE {schema}.assignments a
       SET owner = NULL, failures = 0
      FROM mine m
     WHERE a.work = m.work
    RETURNING a.work, a.epoch
), bumped AS (
    UPDATE {schema}.cluster c SET version = c.version + 1 WHERE (SELECT count(*) FROM released) > 0
    RETURNING pg_notify($3, 'released') AS told
), logged AS (
    INSERT INTO {schema}.node_log (kind, node, name, detail)
    SELECT 'work_released', $1, $2,
           jsonb_build_object('work', jsonb_object_agg(r.work, r.epoch), 'reason', 'given back')
      FROM released r
    HAVING count(*) > 0
)
SELECT r.work, r.epoch FROM released r LEFT JOIN bumped ON true;

-- name: work_failed(me uuid, name text, work text, epoch bigint, detail jsonb) :none
-- It ended by itself, could not be started, or got nowhere, and will be started here again.
WITH counted AS (
    UPDATE {schema}.assignments a
       SET failures = a.failures + 1
     WHERE a.work = $3 AND a.owner = $1 AND a.epoch = $4
)
INSERT INTO {schema}.node_log (kind, node, name, work, epoch, detail)
VALUES ('work_failed', $1, $2, $3, $4, $5);

-- name: avoid_work(me uuid, name text, work text, epoch bigint, seconds double precision, detail jsonb, channel text) :one
-- Gives it up and asks not to get it again for some seconds, since it fails here. No row: no other node can run it,
-- or it is no longer this node's; nothing was changed.
-- plan: assignments_pkey
WITH mine AS MATERIALIZED (
    SELECT a.work
      FROM {schema}.assignments a
      JOIN {schema}.work w ON w.name = a.work
     WHERE a.work = $3 AND a.owner = $1 AND a.epoch = $4
       AND EXISTS (SELECT FROM {schema}.nodes n
                    WHERE n.id <> $1 AND n.name <> $2 AND n.state = 'active'
                      AND n.expires_at > clock_timestamp() AND w.needs <@ n.labels
                      AND coalesce(w.pinned_to = n.name, true))
       FOR UPDATE OF a
), released AS (
    UPDATE {schema}.assignments a
       SET owner = NULL, failures = 0, target = NULL, target_at = clock_timestamp(),  -- the next plan knows better
           avoid = a.avoid || jsonb_build_object($2, clock_timestamp() + make_interval(secs => $5))
      FROM mine m
     WHERE a.work = m.work
    RETURNING a.work, a.epoch
), bumped AS (
    UPDATE {schema}.cluster c SET version = c.version + 1 WHERE (SELECT count(*) FROM released) > 0
    RETURNING pg_notify($7, 'avoided') AS told
), logged AS (
    INSERT INTO {schema}.node_log (kind, node, name, work, epoch, detail)
    SELECT 'work_avoided', $1, $2, r.work, r.epoch, $6::jsonb || jsonb_build_object('seconds', $5)
      FROM released r
)
SELECT r.work, r.epoch FROM released r LEFT JOIN bumped ON true;

-- name: owner_of_work(work text) :one
-- Who has it now, for people. No row: there is no such work any more.
-- plan: assignments_pkey
SELECT a.owner, CASE WHEN a.owner IS NULL THEN '' ELSE a.owner_name END AS node, a.epoch
  FROM {schema}.assignments a WHERE a.work = $1;

-- name: log_lost_work(me uuid, name text, work text, epoch bigint, detail jsonb) :none
INSERT INTO {schema}.node_log (kind, node, name, work, epoch, detail)
VALUES ('ownership_lost', $1, $2, $3, $4, $5);
