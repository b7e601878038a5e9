-- What an operator may do to work; used by work_control.py. Each is one statement in autocommit.
-- The order of locks is work, assignments, cluster, and by name where there are several rows.

-- name: list_work() :many
-- Every work with where it should and does run. unplaced is what the leader said last about work
-- that nobody can run.
WITH said AS MATERIALIZED (
    SELECT r.reason, names.name
      FROM (SELECT l.detail->'unplaced' AS unplaced FROM {schema}.node_log l
             WHERE l.kind = 'plan' AND l.detail ? 'unplaced'
             ORDER BY l.id DESC LIMIT 1) last,
           jsonb_each(last.unplaced) AS r(reason, names),
           jsonb_array_elements_text(r.names) AS names(name)
)
SELECT w.name, w.needs, w.together, w.apart, w.weight, w.pinned_to,
       CASE WHEN w.rests_until < clock_timestamp() THEN NULL ELSE w.paused_at END AS paused_at, w.rests_for, w.reason,
       t.name AS target, a.owner, coalesce(o.name, CASE WHEN a.owner IS NOT NULL THEN a.owner_name END) AS owner_name,
       CASE WHEN a.owner IS NOT NULL THEN coalesce(o.state, 'dead') END AS owner_state,
       coalesce(a.epoch, 0) AS epoch,
       extract(epoch FROM clock_timestamp() - CASE WHEN a.owner IS NOT NULL THEN a.owned_at END)::float8 AS owned,
       coalesce(a.failures, 0) AS failures,
       coalesce((SELECT string_agg(v.key, ', ' ORDER BY v.key) FROM jsonb_each_text(a.avoid) v
                  WHERE v.value::timestamptz > clock_timestamp()), '') AS avoid,
       CASE WHEN a.target IS NULL AND (w.paused_at IS NULL OR w.rests_until < clock_timestamp())
            THEN (SELECT s.reason FROM said s WHERE s.name = w.name LIMIT 1) END AS unplaced
  FROM {schema}.work w
  LEFT JOIN {schema}.assignments a ON a.work = w.name
  LEFT JOIN {schema}.nodes t ON t.id = a.target
  LEFT JOIN {schema}.nodes o ON o.id = a.owner
 ORDER BY w.name;

-- name: pin_work(work text, node_name text, channel text) :one
-- From now on it runs only on nodes of that name; NULL: on any. No row: there is no such work.
-- plan: work_pkey
WITH pinned AS (
    UPDATE {schema}.work SET pinned_to = $2 WHERE name = $1 RETURNING name
), logged AS (
    INSERT INTO {schema}.node_log (kind, work, detail)
    SELECT CASE WHEN $2 IS NULL THEN 'work_unpinned' ELSE 'work_pinned' END, name,
           jsonb_strip_nulls(jsonb_build_object('to', $2))
      FROM pinned
), bumped AS (
    UPDATE {schema}.cluster SET version = version + 1 WHERE EXISTS (SELECT FROM pinned)
), told AS (
    SELECT pg_notify($3, 'work') FROM pinned
)
SELECT name FROM pinned WHERE (SELECT count(*) FROM told) > 0;

-- name: pause_work(names text[], reason text, channel text) :many
-- Its target is taken away here, and not by the leader's next plan: a plan that is under way waits
-- for these rows, or these wait for it, and either way the pause comes out on top. Work that is
-- paused already gets the new reason. One row for each work found.
WITH meant AS MATERIALIZED (
    SELECT w.name FROM {schema}.work w WHERE w.name = ANY ($1) ORDER BY w.name FOR UPDATE
), paused AS (
    UPDATE {schema}.work w
       SET paused_at = coalesce(w.paused_at, clock_timestamp()), reason = $2, rests_until = NULL, rests_for = NULL
      FROM meant m WHERE w.name = m.name
    RETURNING w.name
), held AS MATERIALIZED (
    SELECT a.work FROM {schema}.assignments a
     WHERE a.work IN (SELECT p.name FROM paused p) ORDER BY a.work FOR UPDATE
), stopped AS (
    UPDATE {schema}.assignments a SET target = NULL, target_at = clock_timestamp()
      FROM held h WHERE a.work = h.work
    RETURNING a.work
), done AS MATERIALIZED (
    SELECT count(*) AS stopped, (SELECT jsonb_agg(p.name ORDER BY p.name) FROM paused p) AS names FROM stopped
), logged AS (
    INSERT INTO {schema}.node_log (kind, detail)
    SELECT 'work_paused', jsonb_build_object('work', names, 'reason', $2) FROM done WHERE names IS NOT NULL
), bumped AS (
    UPDATE {schema}.cluster c SET version = c.version + 1 FROM done WHERE done.names IS NOT NULL
), told AS (
    SELECT pg_notify($3, 'work') FROM done WHERE names IS NOT NULL
)
SELECT p.name FROM paused p WHERE (SELECT count(*) FROM told) > 0 ORDER BY p.name;

-- name: resume_work(names text[], channel text) :many
-- The leader places it in its next plan. One row for each work that was paused; what rests for a rebuild goes on
-- resting until that ends.
WITH meant AS MATERIALIZED (
    SELECT w.name FROM {schema}.work w
     WHERE w.name = ANY ($1) AND w.paused_at IS NOT NULL AND w.rests_until IS NULL ORDER BY w.name FOR UPDATE
), resumed AS (
    UPDATE {schema}.work w SET paused_at = NULL, reason = ''
      FROM meant m WHERE w.name = m.name
    RETURNING w.name
), done AS MATERIALIZED (
    SELECT jsonb_agg(r.name ORDER BY r.name) AS names FROM resumed r
), logged AS (
    INSERT INTO {schema}.node_log (kind, detail)
    SELECT 'work_resumed', jsonb_build_object('work', names) FROM done WHERE names IS NOT NULL
), bumped AS (
    UPDATE {schema}.cluster c SET version = c.version + 1 FROM done WHERE done.names IS NOT NULL
), told AS (
    SELECT pg_notify($2, 'work') FROM done WHERE names IS NOT NULL
)
SELECT r.name FROM resumed r WHERE (SELECT count(*) FROM told) > 0 ORDER BY r.name;

-- name: rest_work(names text[], token uuid, seconds double precision, channel text) :many
-- Pauses work for some seconds, or renews that: for a rebuild, say. Rows: what rests under the token now. Not what an
-- operator has paused, and not what rests for somebody else.
WITH meant AS MATERIALIZED (
    SELECT w.name, w.rests_for IS NOT DISTINCT FROM $2 AND w.paused_at IS NOT NULL AS is_ours
      FROM {schema}.work w
     WHERE w.name = ANY ($1)
       AND (w.paused_at IS NULL OR w.rests_until < clock_timestamp() OR w.rests_for = $2)
     ORDER BY w.name FOR UPDATE
), rested AS (
    UPDATE {schema}.work w
       SET paused_at = coalesce(w.paused_at, clock_timestamp()), reason = 'at rest for a while', rests_for = $2,
           rests_until = clock_timestamp() + make_interval(secs => $3)
      FROM meant m WHERE w.name = m.name
    RETURNING w.name
), held AS MATERIALIZED (
    SELECT a.work, a.target FROM {schema}.assignments a
     WHERE a.work IN (SELECT r.name FROM rested r) ORDER BY a.work FOR UPDATE
), stopped AS (  -- by the target that the lock found: a plan may just have set it
    UPDATE {schema}.assignments a SET target = NULL, target_at = clock_timestamp()
      FROM held h WHERE a.work = h.work AND h.target IS NOT NULL
    RETURNING a.work
), done AS MATERIALIZED (
    SELECT count(*) + (SELECT count(*) FROM stopped) AS news FROM meant WHERE NOT is_ours
), bumped AS (
    UPDATE {schema}.cluster c SET version = c.version + 1 FROM done WHERE done.news > 0
), told AS (
    SELECT pg_notify($4, 'work') FROM done WHERE news > 0
)
SELECT r.name FROM rested r WHERE (SELECT count(*) FROM told) >= 0 ORDER BY r.name;

-- name: end_rest(token uuid, channel text) :many
-- What rests under the token goes on. Rows: what that is.
WITH meant AS MATERIALIZED (
    SELECT w.name FROM {schema}.work w WHERE w.rests_for = $1 ORDER BY w.name FOR UPDATE
), ended AS (
    UPDATE {schema}.work w
       SET paused_at = NULL, reason = '', rests_until = NULL, rests_for = NULL
      FROM meant m WHERE w.name = m.name
    RETURNING w.name
), bumped AS (
    UPDATE {schema}.cluster SET version = version + 1 WHERE (SELECT count(*) FROM ended) > 0
), told AS (
    SELECT pg_notify($2, 'work') WHERE EXISTS (SELECT FROM ended)
)
SELECT e.name FROM ended e WHERE (SELECT count(*) FROM told) >= 0 ORDER BY e.name;

-- name: forget_work(work text, channel text) :one
-- Deletes work that no code offers any more. Not while a node that is there owns it: the row of the
-- assignment is locked first, so a claim comes before (it is owned) or after (it is gone).
-- No row: there is no such work.
-- plan: work_pkey
WITH known AS MATERIALIZED (
    SELECT w.name FROM {schema}.work w WHERE w.name = $1 FOR UPDATE
), held AS MATERIALIZED (
    SELECT a.work, a.owner, a.owner_name FROM {schema}.assignments a
     WHERE a.work IN (SELECT k.name FROM known k) FOR UPDATE
), taken AS MATERIALIZED (
    SELECT h.owner_name FROM held h JOIN {schema}.nodes n ON n.id = h.owner
     WHERE n.state NOT IN ('left', 'dead')
), forgotten AS (
    DELETE FROM {schema}.work w USING known k
     WHERE w.name = k.name AND NOT EXISTS (SELECT FROM taken)
    RETURNING w.name
), logged AS (
    INSERT INTO {schema}.node_log (kind, work) SELECT 'work_forgotten', name FROM forgotten
), bumped AS (
    UPDATE {schema}.cluster SET version = version + 1 WHERE EXISTS (SELECT FROM forgotten)
), told AS (
    SELECT pg_notify($2, 'work') FROM forgotten
)
SELECT EXISTS (SELECT FROM forgotten) AS is_forgotten, coalesce((SELECT owner_name FROM taken), '') AS owner_name
  FROM known WHERE (SELECT count(*) FROM told) >= 0;
