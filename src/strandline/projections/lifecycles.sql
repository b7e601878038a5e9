-- Who keeps a projection, its appends or nodes, and changing that; used by lifecycles.py.
-- Locks are taken in this order everywhere: lifecycles, streams, slicings, shards, dead_letters, work, cluster.

-- name: read_lifecycles(labels text[]) :many
-- Those that were ever recorded.
-- plan: lifecycles_pkey
SELECT label, lifecycle, until, changed_at FROM {schema}.lifecycles WHERE label = ANY ($1);

-- name: retired_labels(labels text[]) :many
-- Those of them that nobody keeps any more. Until the transaction ends no other can be retired.
SELECT label FROM {schema}.lifecycles WHERE label = ANY ($1) AND lifecycle = 'retired' FOR SHARE;

-- name: be_brief(patience text) :one
-- Waits for locks in this transaction no longer than that: those who queue behind it are appends.
SELECT set_config('lock_timeout', $1, true) AS setting;

-- name: lock_lifecycles() :none
-- Waits for the appends to inline projections under way. Dumps and readers do not stand in the way.
LOCK TABLE {schema}.lifecycles IN EXCLUSIVE MODE;

-- name: lock_streams() :none
-- Waits for all appends under way.
LOCK TABLE {schema}.streams IN SHARE MODE;

-- name: keep_autovacuum_away() :none
-- Stops no append. An autovacuum gives way to it once deadlock_timeout is over, and no other begins.
LOCK TABLE {schema}.streams IN SHARE UPDATE EXCLUSIVE MODE;

-- name: record_lifecycle(label text, lifecycle text, until bigint) :none
INSERT INTO {schema}.lifecycles AS l (label, lifecycle, until)
VALUES ($1, $2, $3)
ON CONFLICT (label) DO UPDATE
   SET lifecycle = excluded.lifecycle, until = excluded.until, changed_at = clock_timestamp();

-- name: has_table() :one
SELECT to_regclass('{schema}.{table}') IS NOT NULL AS found;

-- name: has_rows() :one
-- Whether anything is in the table of a projection that nobody has recorded.
SELECT EXISTS (SELECT FROM {schema}.{table}) AS found;

-- name: was_run(label text) :one
-- Whether nodes have ever been to run it.
SELECT EXISTS (SELECT FROM {schema}.slicings WHERE label = $1)
    OR EXISTS (SELECT FROM {schema}.shards WHERE left(name, -strpos(reverse(name), ':')) = $1) AS found;

-- name: begin_shards(label text, parts integer, position bigint) :none
-- What appends have kept up to position goes on by nodes from there; so do its side effects, unless another version of
-- the name raises them.
WITH cut AS (
    INSERT INTO {schema}.slicings (label, parts, wanted, effects_after)
    SELECT $1::text, $2::integer, $2,
           CASE WHEN NOT EXISTS (SELECT FROM {schema}.slicings o
                                  WHERE o.label <> $1 AND o.label ~ ('^' || split_part($1, ':', 1) || ':v[0-9]+$'))
                THEN $3::bigint END
    ON CONFLICT (label) DO NOTHING
    RETURNING parts
)
INSERT INTO {schema}.shards (name, position)
SELECT $1 || CASE WHEN c.parts = 1 THEN ':all' ELSE ':' || n || '/' || c.parts END, $3
  FROM cut c, generate_series(1, c.parts) AS n
ON CONFLICT (name) DO NOTHING;

-- name: hold_slicings(labels text[]) :many
-- How they are cut, held until the transaction ends: no claim, no cut and no build comes in between.
SELECT label, parts, build, effects_after
  FROM {schema}.slicings
 WHERE label = ANY ($1)
 ORDER BY label
   FOR UPDATE;

-- name: hold_shards(labels text[]) :many
-- Where their shards stand, held until the transaction ends: no batch can be committed.
SELECT name, position
  FROM {schema}.shards
 WHERE left(name, -strpos(reverse(name), ':')) = ANY ($1)
 ORDER BY name
   FOR UPDATE;

-- name: who_runs(label text) :many
-- Names of the nodes that are present and run it.
SELECT name
  FROM {schema}.nodes
 WHERE $1 = ANY (labels) AND state NOT IN ('left', 'dead') AND expires_at > clock_timestamp()
 ORDER BY name;

-- name: what_is_open(label text) :one
-- Letters and builds that somebody still has to decide on.
SELECT (SELECT count(*) FROM {schema}.dead_letters d WHERE d.label = $1 AND d.status IN ('parked', 'skipped')) AS letters,
       (SELECT count(*) FROM {schema}.rebuilds r WHERE r.label = $1 AND r.state IN ('queued', 'building', 'sealed')) AS builds;

-- name: end_shards(label text, channel text) :none
-- No node runs it any more: its shards, what was said of them, and its work are gone. Hold its row of slicings, and
-- its shards.
WITH slicings AS (
    DELETE FROM {schema}.slicings WHERE label = $1
), shards AS (
    DELETE FROM {schema}.shards WHERE left(name, -strpos(reverse(name), ':')) = $1
    RETURNING name
), status AS (
    DELETE FROM {schema}.shard_status WHERE left(name, -strpos(reverse(name), ':')) = $1
), had AS MATERIALIZED (
    SELECT w.name
      FROM {schema}.work w, (SELECT count(*) FROM shards) AS s
     WHERE left(w.name, -strpos(reverse(w.name), ':')) = $1
     ORDER BY w.name
       FOR UPDATE OF w
), held AS MATERIALIZED (
    SELECT a.work FROM {schema}.assignments a JOIN had h ON h.name = a.work ORDER BY a.work FOR UPDATE OF a
), gone AS (
    DELETE FROM {schema}.work w USING had h, (SELECT count(*) FROM held) AS a WHERE w.name = h.name
    RETURNING w.name
)
UPDATE {schema}.cluster
   SET version = version + (pg_notify($2, 'work') IS NOT NULL)::integer
 WHERE (SELECT count(*) FROM gone) >= 0;
