-- Builds of projections in the shadow: asked for, begun, sealed, ended; used by rebuilds.py.
-- Locks are taken in this order: the row of rebuilds, then slicings and shards, each by name, dead_letters, work,
-- assignments, cluster. Whoever waits for a batch under way gives up soon, and tries again.

-- name: request_rebuild(label text, purpose text, scope text, parts integer, on_error text) :one
-- No row: one of the label is under way already.
INSERT INTO {schema}.rebuilds (label, purpose, scope, parts, on_error)
VALUES ($1, $2, $3::text::jsonb, $4, $5)
ON CONFLICT (label) WHERE state IN ('queued', 'building', 'sealed') DO NOTHING
RETURNING number, label, purpose, scope::text AS scope, parts, on_error, state, reason, target, outcome::text AS outcome,
          requested_at, started_at, sealed_at, ended_at;

-- name: read_rebuild(number bigint) :one
-- plan: rebuilds_pkey
SELECT number, label, purpose, scope::text AS scope, parts, on_error, state, reason, target, outcome::text AS outcome,
       requested_at, started_at, sealed_at, ended_at
  FROM {schema}.rebuilds
 WHERE number = $1;

-- name: open_rebuilds(labels text[]) :many
-- Those of the labels that have not ended, the oldest first; NULL: of all labels.
-- plan: rebuilds_open_idx
SELECT number, label, purpose, scope::text AS scope, parts, on_error, state, reason, target, outcome::text AS outcome,
       requested_at, started_at, sealed_at, ended_at
  FROM {schema}.rebuilds
 WHERE state IN ('queued', 'building', 'sealed') AND ($1::text[] IS NULL OR label = ANY ($1))
 ORDER BY number;

-- name: rebuild_progress(labels text[], ended bigint) :many
-- One row for each shard of those that have not ended, one without a shard for queued ones and for the last ended
-- ones. known_by: nodes of the cluster whose code has the projection; in mode solo nobody is counted.
WITH last AS (
    SELECT r.number
      FROM {schema}.rebuilds r
     WHERE r.state NOT IN ('queued', 'building', 'sealed') AND ($1::text[] IS NULL OR r.label = ANY ($1))
     ORDER BY r.number DESC
     LIMIT $2
)
SELECT r.number, r.label, r.purpose, r.scope::text AS scope, r.parts, r.on_error, r.state, r.reason, r.target,
       r.outcome::text AS outcome, r.requested_at, r.started_at, r.sealed_at, r.ended_at,
       (SELECT count(*) FROM {schema}.nodes n
         WHERE n.state NOT IN ('left', 'dead') AND n.expires_at > clock_timestamp() AND r.label = ANY (n.labels)) AS known_by,
       (SELECT m.position FROM {schema}.high_water m) AS mark,
       s.name AS shard, s.position, s.seal, t.node, t.state AS shard_state, t.reason AS shard_reason, t.category,
       t.failure::text AS failure,
       CASE WHEN t.changed_at > clock_timestamp() - interval '10 seconds' THEN t.rate ELSE 0 END AS rate
  FROM {schema}.rebuilds r
  LEFT JOIN {schema}.slicings c ON c.label = r.label || '~' || r.number AND r.state IN ('building', 'sealed')
  LEFT JOIN LATERAL generate_series(1, c.parts) AS n ON true
  LEFT JOIN {schema}.shards s ON s.name = c.label || CASE WHEN c.parts = 1 THEN ':all' ELSE ':' || n || '/' || c.parts END
  LEFT JOIN {schema}.shard_status t ON t.name = s.name
 WHERE (r.state IN ('queued', 'building', 'sealed') AND ($1::text[] IS NULL OR r.label = ANY ($1)))
    OR r.number IN (SELECT l.number FROM last l)
 ORDER BY r.number, n;

-- name: lock_rebuild(number bigint) :one
-- No row: somebody else takes a step of it at this moment, or there is none.
SELECT number, label, purpose, scope::text AS scope, parts, on_error, state, reason, target, outcome::text AS outcome,
       requested_at, started_at, sealed_at, ended_at
  FROM {schema}.rebuilds
 WHERE number = $1
   FOR UPDATE SKIP LOCKED;

-- name: lock_open_rebuild(label text) :one
-- The one of the label that has not ended; waits for a step of it. No row: there is none.
SELECT number, label, purpose, scope::text AS scope, parts, on_error, state, reason, target, outcome::text AS outcome,
       requested_at, started_at, sealed_at, ended_at
  FROM {schema}.rebuilds
 WHERE label = $1 AND state IN ('queued', 'building', 'sealed')
   FOR UPDATE;

-- name: be_patient() :none
-- How long each lock of this transaction is waited for.
SET LOCAL lock_timeout = {milliseconds};

-- name: take_turn(key text) :one
-- Whether nobody else holds the key; held until the transaction ends.
SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0)) AS is_ours;

-- name: one_snapshot() :none
-- The transaction sees what is committed at its first statement, to its end.
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ;

-- name: count_building() :one
SELECT count(*) AS count FROM {schema}.rebuilds WHERE state IN ('building', 'sealed');

-- name: create_shadow() :none
CREATE SCHEMA {shadow};

-- name: mark_shadow() :none
COMMENT ON SCHEMA {shadow} IS {mark};

-- name: drop_shadow() :none
DROP SCHEMA {shadow} CASCADE;

-- name: drop_empty() :none
DROP SCHEMA {shadow};

-- name: shadow_mark(shadow text) :one
-- Whose a schema is, in words that only mark_shadow writes. No row: there is no such schema.
SELECT coalesce(obj_description(n.oid, 'pg_namespace'), '') AS mark FROM pg_namespace n WHERE n.nspname::text = $1;

-- name: begin_shards(shadow text, number bigint, parts integer) :one
-- The shards of a build, all at the beginning; no side effect is ever raised by them.
WITH said AS (
    INSERT INTO {schema}.slicings (label, parts, wanted, build, effects_after)
    VALUES ($1, $3, $3, $2, NULL)
    RETURNING label, parts
), begun AS (
    INSERT INTO {schema}.shards (name, position)
    SELECT s.label || CASE WHEN s.parts = 1 THEN ':all' ELSE ':' || n || '/' || s.parts END, 0
      FROM said s, generate_series(1, s.parts) AS n
    RETURNING name
)
SELECT count(*) AS count FROM begun;

-- name: begin_work(shadow text, label text, parts integer, channel text) :one
-- The work of its shards, for nodes whose code has the projection.
WITH made AS (
    INSERT INTO {schema}.work (name, needs, apart)
    SELECT $1 || CASE WHEN $3 = 1 THEN ':all' ELSE ':' || n || '/' || $3 END, ARRAY[$2],
           CASE WHEN $3 = 1 THEN '' ELSE $1 END
      FROM generate_series(1, $3) AS n
     ORDER BY 1
    ON CONFLICT (name) DO NOTHING
    RETURNING name
), placed AS (
    INSERT INTO {schema}.assignments (work) SELECT m.name FROM made m
    ON CONFLICT (work) DO NOTHING
    RETURNING work
), told AS (
    UPDATE {schema}.cluster SET version = version + 1 WHERE (SELECT count(*) FROM placed) > 0
    RETURNING pg_notify($4, 'work')
)
SELECT (SELECT count(*) FROM placed) AS count FROM (SELECT count(*) FROM told) AS t;

-- name: note_begun(number bigint) :none
-- What was committed before it began is in it, however far behind the mark is.
UPDATE {schema}.rebuilds
   SET state = 'building', started_at = clock_timestamp(), reason = '',
       target = greatest((SELECT m.position FROM {schema}.high_water m),
                         (SELECT e.position FROM {schema}.events e ORDER BY e.position DESC LIMIT 1))
 WHERE number = $1;

-- name: weigh_rebuild(label text, shadow text, number bigint) :one
-- Where both sides stand. is_settled: what serves is cut as it is wanted, and sealed for nobody else. seal: of the
-- shadow. sealed_for: seconds since it was sealed the last time. pauses, live_pauses: why a shard of the build, of what
-- serves, rests, if one does.
-- No row: one of the two has no slicing.
WITH cut AS (
    SELECT c.label, c.parts, c.wanted, c.build, h.name, h.position, h.seal
      FROM {schema}.slicings c
     CROSS JOIN LATERAL generate_series(1, c.parts) AS n
      LEFT JOIN {schema}.shards h
        ON h.name = c.label || CASE WHEN c.parts = 1 THEN ':all' ELSE ':' || n || '/' || c.parts END
     WHERE c.label IN ($1, $2)
)
SELECT (SELECT m.position FROM {schema}.high_water m) AS mark,
       bool_and(c.name IS NOT NULL) AND bool_and(c.parts = c.wanted)
       AND bool_and(coalesce(c.build, $3) = $3) AS is_settled,
       coalesce(min(c.position) FILTER (WHERE c.label = $1), 0) AS live_low,
       coalesce(max(c.position) FILTER (WHERE c.label = $1), 0) AS live_high,
       coalesce(min(c.position) FILTER (WHERE c.label = $2), 0) AS shadow_low,
       coalesce(max(c.position) FILTER (WHERE c.label = $2), 0) AS shadow_high,
       CASE WHEN count(c.seal) FILTER (WHERE c.label = $2) = count(*) FILTER (WHERE c.label = $2)
             AND min(c.seal) FILTER (WHERE c.label = $2) = max(c.seal) FILTER (WHERE c.label = $2)
            THEN max(c.seal) FILTER (WHERE c.label = $2) END AS seal,
       (SELECT extract(epoch FROM clock_timestamp() - r.sealed_at) FROM {schema}.rebuilds r WHERE r.number = $3)::float8 AS sealed_for,
       (SELECT max(t.name || ': ' || t.reason) FROM {schema}.shard_status t
         WHERE t.state = 'paused' AND t.name IN (SELECT p.name FROM cut p WHERE p.label = $2)) AS pauses,
       (SELECT max(t.name || ': ' || t.reason) FROM {schema}.shard_status t
         WHERE t.state = 'paused' AND t.name IN (SELECT p.name FROM cut p WHERE p.label = $1)) AS live_pauses
  FROM cut c
HAVING count(DISTINCT c.label) = 2;

-- name: seal_build(label text, shadow text, number bigint, near bigint) :one
-- Every shard of both sides must stop at one position: as far as the first of them has come. Their owners are refused
-- from now on, and learn the seal with their next claim. No row: a shard of the build is not yet as far as near, or
-- what serves is being cut otherwise.
WITH cut AS MATERIALIZED (
    SELECT c.label, c.parts
      FROM {schema}.slicings c
     WHERE c.label IN ($1, $2) AND c.parts = c.wanted AND coalesce(c.build, $3) = $3
     ORDER BY c.label
       FOR UPDATE OF c
), held AS MATERIALIZED (
    SELECT h.name, h.position, h.seal, c.label
      FROM cut c
     CROSS JOIN generate_series(1, c.parts) AS n
      JOIN {schema}.shards h ON h.name = c.label || CASE WHEN c.parts = 1 THEN ':all' ELSE ':' || n || '/' || c.parts END
     ORDER BY h.name
       FOR UPDATE OF h
), seal AS MATERIALIZED (
    SELECT max(h.position) AS position
      FROM held h
    HAVING count(*) = (SELECT sum(c.parts) FROM cut c)
       AND (SELECT count(*) FROM cut) = 2
       AND bool_and(h.seal IS NULL)
       AND min(h.position) FILTER (WHERE h.label = $2) >= $4
), sealed AS (
    UPDATE {schema}.shards s
       SET seal = seal.position, epoch = s.epoch + 1, owner = NULL
      FROM held h, seal
     WHERE s.name = h.name
    RETURNING s.name
), marked AS (
    UPDATE {schema}.slicings c SET build = $3 FROM seal WHERE c.label = $1
    RETURNING c.label
)
SELECT max(seal.position) AS position, count(*) AS shards
  FROM sealed, seal, (SELECT count(*) FROM marked) AS m
HAVING count(*) > 0;

-- name: note_sealed(number bigint) :none
UPDATE {schema}.rebuilds SET state = 'sealed', sealed_at = clock_timestamp(), reason = '' WHERE number = $1;

-- name: open_build(label text, shadow text, number bigint) :one
-- Takes the seal away on both sides. Owners keep their epochs: until they look again they stop at a seal that is no
-- more.
WITH cut AS MATERIALIZED (
    SELECT c.label, c.parts
      FROM {schema}.slicings c
     WHERE c.label IN ($1, $2) AND c.build = $3
     ORDER BY c.label
       FOR UPDATE OF c
), held AS MATERIALIZED (
    SELECT h.name
      FROM cut c
     CROSS JOIN generate_series(1, c.parts) AS n
      JOIN {schema}.shards h ON h.name = c.label || CASE WHEN c.parts = 1 THEN ':all' ELSE ':' || n || '/' || c.parts END
     ORDER BY h.name
       FOR UPDATE OF h
), opened AS (
    UPDATE {schema}.shards s SET seal = NULL FROM held h WHERE s.name = h.name AND s.seal IS NOT NULL
    RETURNING s.name
), unmarked AS (
    UPDATE {schema}.slicings c SET build = NULL FROM cut WHERE c.label = $1 AND cut.label = $1
    RETURNING c.label
)
SELECT (SELECT count(*) FROM opened) AS count FROM (SELECT count(*) FROM unmarked) AS u;

-- name: hold_sealed(label text, shadow text, number bigint, exact boolean) :one
-- Locks both sides while they may be exchanged: the shadow stands at the seal, what serves has not come beyond it (is
-- at it, if exact). Waits for batches under way. No row: not yet, or not any more.
WITH cut AS MATERIALIZED (
    SELECT c.label, c.parts
      FROM {schema}.slicings c
     WHERE c.label IN ($1, $2) AND c.build = $3
     ORDER BY c.label
       FOR UPDATE OF c
), held AS MATERIALIZED (
    SELECT h.name, h.position, h.seal, c.label
      FROM cut c
     CROSS JOIN generate_series(1, c.parts) AS n
      JOIN {schema}.shards h ON h.name = c.label || CASE WHEN c.parts = 1 THEN ':all' ELSE ':' || n || '/' || c.parts END
     ORDER BY h.name
       FOR UPDATE OF h
)
SELECT max(h.seal) AS position, count(*) AS shards
  FROM held h
HAVING count(*) = (SELECT sum(c.parts) FROM cut c)
   AND (SELECT count(*) FROM cut) = 2
   AND bool_and(coalesce(h.seal, -1) = h.position) FILTER (WHERE h.label = $2 OR $4)
   AND min(h.seal) FILTER (WHERE h.label = $2) = max(h.seal) FILTER (WHERE h.label = $2)
   AND max(h.position) FILTER (WHERE h.label = $1) <= max(h.seal) FILTER (WHERE h.label = $2);

-- name: advance_live(label text, position bigint) :one
-- What serves goes on from the seal, under a new epoch: whoever runs it forgets what it kept in memory.
WITH cut AS MATERIALIZED (
    SELECT label, parts FROM {schema}.slicings WHERE label = $1
), advanced AS (
    UPDATE {schema}.shards s
       SET position = $2, seal = NULL, epoch = s.epoch + 1, owner = NULL,
           claimed_at = coalesce(s.claimed_at, clock_timestamp())
      FROM cut c, generate_series(1, c.parts) AS n
     WHERE s.name = c.label || CASE WHEN c.parts = 1 THEN ':all' ELSE ':' || n || '/' || c.parts END
    RETURNING s.name
), unmarked AS (
    UPDATE {schema}.slicings SET build = NULL WHERE label = $1
    RETURNING label
)
SELECT (SELECT count(*) FROM advanced) AS count FROM (SELECT count(*) FROM unmarked) AS u;

-- name: end_shards(shadow text) :one
-- The shards of a build go, its slicing first: nobody can claim one from now on.
WITH cut AS (
    DELETE FROM {schema}.slicings WHERE label = $1 RETURNING label
), held AS MATERIALIZED (
    SELECT h.name FROM {schema}.shards h, (SELECT count(*) FROM cut) AS c
     WHERE left(h.name, length($1) + 1) = $1 || ':' ORDER BY h.name FOR UPDATE OF h
), gone AS (
    DELETE FROM {schema}.shards s USING held h WHERE s.name = h.name
    RETURNING s.name
), silent AS (
    DELETE FROM {schema}.shard_status t WHERE left(t.name, length($1) + 1) = $1 || ':'
    RETURNING t.name
)
SELECT (SELECT count(*) FROM gone) AS count FROM (SELECT count(*) FROM silent) AS s;

-- name: end_letters(shadow text) :none
DELETE FROM {schema}.dead_letters WHERE label = $1;

-- name: end_work(shadow text, channel text) :one
WITH had AS MATERIALIZED (
    SELECT w.name FROM {schema}.work w WHERE left(w.name, length($1) + 1) = $1 || ':' ORDER BY w.name FOR UPDATE
), held AS MATERIALIZED (
    SELECT a.work FROM {schema}.assignments a JOIN had h ON h.name = a.work ORDER BY a.work FOR UPDATE OF a
), gone AS (
    DELETE FROM {schema}.work w USING had h, (SELECT count(*) FROM held) AS a WHERE w.name = h.name
    RETURNING w.name
), told AS (
    UPDATE {schema}.cluster SET version = version + 1 WHERE (SELECT count(*) FROM gone) > 0
    RETURNING pg_notify($2, 'work')
)
SELECT (SELECT count(*) FROM gone) AS count FROM (SELECT count(*) FROM told) AS t;

-- name: note_rebuild(number bigint, state text, reason text, outcome text) :one
-- Only while it has not ended. No row: it has. One that goes on after it was compared may be sealed again at once.
UPDATE {schema}.rebuilds
   SET state = $2, reason = $3, outcome = coalesce($4::text::jsonb, outcome),
       sealed_at = CASE WHEN $2 = 'building' AND $4 IS NOT NULL THEN NULL ELSE sealed_at END,
       ended_at = CASE WHEN $2 IN ('done', 'cancelled', 'failed') THEN clock_timestamp() END
 WHERE number = $1 AND state IN ('queued', 'building', 'sealed')
RETURNING number, label, purpose, scope::text AS scope, parts, on_error, state, reason, target, outcome::text AS outcome,
          requested_at, started_at, sealed_at, ended_at;

-- name: note_done(number bigint, position bigint) :none
-- Its tables have taken the place of those that served, with everything up to the position.
UPDATE {schema}.rebuilds
   SET state = 'done', reason = '', target = $2, ended_at = clock_timestamp()
 WHERE number = $1;

-- name: leftover_labels() :many
-- Labels of builds that have ended, or were never there, and of which a slicing, a shard or work is left.
SELECT l.label
  FROM (SELECT label FROM {schema}.slicings
        UNION SELECT left(name, -strpos(reverse(name), ':')) FROM {schema}.shards
        UNION SELECT left(name, -strpos(reverse(name), ':')) FROM {schema}.shard_status
        UNION SELECT left(name, -strpos(reverse(name), ':')) FROM {schema}.work) AS l
 WHERE l.label ~ '~[0-9]{1,18}$'
   AND NOT EXISTS (SELECT FROM {schema}.rebuilds r
                    WHERE r.number = substring(l.label FROM '~([0-9]+)$')::bigint
                      AND r.label || '~' || r.number = l.label
                      AND r.state IN ('queued', 'building', 'sealed'))
 ORDER BY 1;

-- name: shadows(mark text) :many
-- Schemas of builds that have ended, by the mark that each of them has: this text, then its number. Not while a shard
-- is left, whose batch may be under way there.
SELECT n.nspname::text AS name, substring(obj_description(n.oid, 'pg_namespace') FROM '([0-9]+)$')::bigint AS number
  FROM pg_namespace n
 WHERE left(obj_description(n.oid, 'pg_namespace'), length($1)) = $1
   AND substr(obj_description(n.oid, 'pg_namespace'), length($1) + 1) ~ '^[0-9]{1,18}$'
   AND NOT EXISTS (SELECT FROM {schema}.rebuilds r
                    WHERE r.number = substring(obj_description(n.oid, 'pg_namespace') FROM '([0-9]+)$')::bigint
                      AND r.state IN ('queued', 'building', 'sealed'))
   AND NOT EXISTS (SELECT FROM {schema}.shards s
                    WHERE s.name ~ ('~' || substring(obj_description(n.oid, 'pg_namespace') FROM '([0-9]+)$') || ':'))
 ORDER BY 1;
