-- Into how many shards a projection is cut, and changing that while events flow; used by slicing.py.
-- Whatever concerns all shards of a label locks its row of slicings first: claims share that lock, so that none
-- comes in between. Who waits for the batch of a frozen owner gives way after 10 s: the other shards go on, and the
-- next owner frees the row.
-- What belongs to a build, or is sealed for its swap, is left alone here (build IS NULL), whoever came first: the
-- column is in the row that is locked, and so is read again after the lock. See rebuilds.sql.

-- name: declare_slicing(label text, wanted integer, start bigint) :one
-- What the caller's code wants. New: cut at once, its shards begin at start. Run before there were slicings: stays
-- cut as it is, until steps change it. No row: nodes do not keep it (any more): it is inline, or retired. FOR SHARE
-- keeps that from changing meanwhile, and takes its lock before this statement gets its snapshot.
-- Side effects: while another version of the name is there it is that one which raises them; what those that have been
-- retired have raised is not raised again.
WITH elsewhere AS MATERIALIZED (
    SELECT l.label FROM {schema}.lifecycles l WHERE l.label = $1 AND l.lifecycle <> 'async' FOR SHARE OF l
), known AS (
    SELECT max(CASE WHEN name = $1 || ':all' THEN 1 ELSE split_part(name, '/', 2)::integer END) AS parts
      FROM {schema}.shards
     WHERE NOT EXISTS (SELECT FROM {schema}.slicings WHERE label = $1)
       AND left(name, length($1) + 1) = $1 || ':'
       AND name ~ ('^' || $1 || ':(all|[0-9]+/[0-9]+)$')
), versions AS (
    SELECT '^' || split_part($1, ':', 1) || ':v[0-9]+$' AS pattern
), effects AS (
    SELECT CASE WHEN NOT EXISTS (SELECT FROM {schema}.slicings o WHERE o.label <> $1 AND o.label ~ v.pattern)
                THEN coalesce((SELECT max(l.until) FROM {schema}.lifecycles l WHERE l.lifecycle = 'retired' AND l.label ~ v.pattern), 0)
                END AS after
      FROM versions v
), said AS (
    INSERT INTO {schema}.slicings AS s (label, parts, wanted, effects_after)
    SELECT $1, coalesce(k.parts, $2), $2, e.after FROM known k, effects e WHERE NOT EXISTS (SELECT FROM elsewhere)
    ON CONFLICT (label) DO UPDATE
       SET wanted = excluded.wanted,
           wanted_at = CASE WHEN s.wanted = excluded.wanted THEN s.wanted_at ELSE clock_timestamp() END
    RETURNING label, parts, wanted, wanted_at
), begun AS (
    INSERT INTO {schema}.shards (name, position)
    SELECT $1 || CASE WHEN s.parts = 1 THEN ':all' ELSE ':' || n || '/' || s.parts END, $3
      FROM said s, generate_series(1, s.parts) AS n
    ON CONFLICT (name) DO NOTHING
)
SELECT label, parts, wanted, wanted_at FROM said;

-- name: read_slicings(labels text[]) :many
-- Those that were ever declared.
-- plan: slicings_pkey
SELECT label, parts, wanted, wanted_at FROM {schema}.slicings WHERE label = ANY ($1);

-- name: unsettled_slicings() :many
-- Labels that need a step: wanted otherwise, sealed, or with work that is none of their shards.
WITH has AS (
    SELECT left(name, -strpos(reverse(name), ':')) AS label, name, seal FROM {schema}.shards
), does AS (
    SELECT left(name, -strpos(reverse(name), ':')) AS label, name FROM {schema}.work
)
SELECT s.label, s.parts, s.wanted, s.wanted_at
  FROM {schema}.slicings s
 WHERE s.build IS NULL
   AND (s.parts <> s.wanted
        OR s.label IN (SELECT h.label FROM has h WHERE h.seal IS NOT NULL)
        OR s.label IN (SELECT d.label FROM does d WHERE d.name NOT IN (SELECT h.name FROM has h)))
 ORDER BY s.label;

-- name: seal_shards(label text) :one
-- Every shard must stop at one position: as far as the first of them has come. Their owners are refused from now
-- on, and learn the seal with their next claim. No row: nothing to seal.
WITH patient AS MATERIALIZED (
    SELECT set_config('lock_timeout', '10s', true) AS setting
), cut AS MATERIALIZED (
    SELECT c.label, c.parts FROM {schema}.slicings c, patient
     WHERE c.label = $1 AND c.parts <> c.wanted AND c.build IS NULL
       FOR UPDATE OF c
), held AS MATERIALIZED (
    SELECT h.name, h.position, h.seal
      FROM cut c
     CROSS JOIN generate_series(1, c.parts) AS n
      JOIN {schema}.shards h ON h.name = $1 || CASE WHEN c.parts = 1 THEN ':all' ELSE ':' || n || '/' || c.parts END
     ORDER BY h.name
       FOR UPDATE OF h
), seal AS MATERIALIZED (
    SELECT max(h.position) AS position
      FROM held h, cut c
     GROUP BY c.parts
    HAVING count(*) = c.parts AND bool_or(h.seal IS NULL)
), sealed AS (
    UPDATE {schema}.shards s
       SET seal = seal.position, epoch = s.epoch + 1, owner = NULL
      FROM held h, seal
     WHERE s.name = h.name
    RETURNING s.name
)
SELECT max(seal.position) AS position, count(*) AS shards FROM sealed, seal HAVING count(*) > 0;

-- name: open_shards(label text) :one
-- Takes the seal away, since the label stays cut as it is after all. Owners keep their epochs: until they look again
-- they stop at a seal that is no more. No row: there is none.
WITH patient AS MATERIALIZED (
    SELECT set_config('lock_timeout', '10s', true) AS setting
), cut AS MATERIALIZED (
    SELECT c.label, c.parts FROM {schema}.slicings c, patient
     WHERE c.label = $1 AND c.parts = c.wanted AND c.build IS NULL
       FOR UPDATE OF c
), opened AS (
    UPDATE {schema}.shards s
       SET seal = NULL
      FROM cut c, generate_series(1, c.parts) AS n
     WHERE s.name = $1 || CASE WHEN c.parts = 1 THEN ':all' ELSE ':' || n || '/' || c.parts END
       AND s.seal IS NOT NULL
    RETURNING s.position
)
SELECT max(position) AS position, count(*) AS shards FROM opened HAVING count(*) > 0;

-- name: switch_slicing(label text) :one
-- The shards of the old cut go, those of the new one begin where all of these have stopped, under an epoch beyond
-- all of theirs. No row: not all are at the seal, or there is nothing to switch; or some of the work is paused: who
-- paused it knows it by its name.
WITH patient AS MATERIALIZED (
    SELECT set_config('lock_timeout', '10s', true) AS setting
), cut AS MATERIALIZED (
    SELECT c.label, c.parts, c.wanted FROM {schema}.slicings c, patient
     WHERE c.label = $1 AND c.parts <> c.wanted AND c.build IS NULL
       FOR UPDATE OF c
), held AS MATERIALIZED (
    SELECT h.name, h.position, h.seal, h.epoch, h.claimed_at
      FROM cut c
     CROSS JOIN generate_series(1, c.parts) AS n
      JOIN {schema}.shards h ON h.name = $1 || CASE WHEN c.parts = 1 THEN ':all' ELSE ':' || n || '/' || c.parts END
     ORDER BY h.name
       FOR UPDATE OF h
), paused AS MATERIALIZED (
    SELECT w.name FROM {schema}.work w
     WHERE w.paused_at IS NOT NULL AND coalesce(w.rests_until >= clock_timestamp(), true) AND w.name ~ ('^' || $1 || ':(all|[0-9]+/[0-9]+)$')
), done AS MATERIALIZED (
    SELECT max(h.position) AS position, max(h.epoch) + 1 AS epoch, max(h.claimed_at) AS claimed_at
      FROM held h, cut c
     WHERE NOT EXISTS (SELECT FROM paused)
     GROUP BY c.parts
    HAVING count(*) = c.parts AND bool_and(coalesce(h.position = h.seal, false)) AND min(h.seal) = max(h.seal)
), gone AS (
    DELETE FROM {schema}.shards s USING held h, done WHERE s.name = h.name
), begun AS (
    INSERT INTO {schema}.shards AS s (name, position, epoch, claimed_at)
    SELECT $1 || CASE WHEN c.wanted = 1 THEN ':all' ELSE ':' || n || '/' || c.wanted END, d.position, d.epoch, d.claimed_at
      FROM done d, cut c, generate_series(1, c.wanted) AS n
    ON CONFLICT (name) DO UPDATE  -- left over by hand: what it says is not true
       SET position = excluded.position, epoch = greatest(s.epoch, excluded.epoch) + 1, owner = NULL, seal = NULL
), silent AS (
    DELETE FROM {schema}.shard_status t USING done WHERE t.name ~ ('^' || $1 || ':(all|[0-9]+/[0-9]+)$')
)
UPDATE {schema}.slicings s
   SET parts = s.wanted
  FROM done d
 WHERE s.label = $1
RETURNING d.position, s.parts AS shards;

-- name: fit_work(label text, channel text) :one
-- Where the cluster has work of a label that is none of its shards, all its work becomes what the shards are; what
-- was said of one piece holds for the new ones. Where pieces are missing only, somebody has forgotten them on
-- purpose, or nobody spreads the label. No row: it fits, or some of it is paused: who paused it by its name is going
-- to resume it by its name.
-- Locks are taken in this order everywhere: slicings, work, assignments, cluster.
WITH cut AS MATERIALIZED (
    SELECT label, parts FROM {schema}.slicings WHERE label = $1 AND build IS NULL FOR UPDATE
), named AS MATERIALIZED (
    SELECT $1 || CASE WHEN c.parts = 1 THEN ':all' ELSE ':' || n || '/' || c.parts END AS name
      FROM cut c, generate_series(1, c.parts) AS n
), had AS MATERIALIZED (
    SELECT w.*
      FROM {schema}.work w, cut c
     WHERE w.name ~ ('^' || c.label || ':(all|[0-9]+/[0-9]+)$')
     ORDER BY w.name
       FOR UPDATE OF w
), held AS MATERIALIZED (
    SELECT a.work, a.epoch FROM {schema}.assignments a JOIN had h ON h.name = a.work ORDER BY a.work FOR UPDATE OF a
), alike AS MATERIALIZED (
    SELECT max(h.needs) AS needs, max(h.together) AS together, max(h.apart) AS apart, max(h.weight) AS weight,
           CASE WHEN count(DISTINCT h.pinned_to) = 1 AND count(h.pinned_to) = count(*) THEN max(h.pinned_to) END AS pinned_to,
           (SELECT coalesce(max(epoch), 0) + 1 FROM held) AS epoch
      FROM had h
    HAVING bool_or(h.name NOT IN (SELECT n.name FROM named n)) AND bool_and(h.paused_at IS NULL OR h.rests_until < clock_timestamp())
), made AS (
    INSERT INTO {schema}.work (name, needs, together, apart, weight, pinned_to)
    SELECT n.name, l.needs, l.together, l.apart, l.weight, l.pinned_to
      FROM named n, alike l
     WHERE n.name NOT IN (SELECT h.name FROM had h)
    ON CONFLICT (name) DO NOTHING
    RETURNING name
), assignable AS (
    INSERT INTO {schema}.assignments (work, epoch)
    SELECT m.name, l.epoch FROM made m, alike l
    ON CONFLICT (work) DO NOTHING
), gone AS (
    DELETE FROM {schema}.work w USING had h, alike
     WHERE w.name = h.name AND h.name NOT IN (SELECT n.name FROM named n)
    RETURNING w.name
), changed AS MATERIALIZED (
    SELECT (SELECT count(*) FROM made) AS made, (SELECT count(*) FROM gone) AS gone
), told AS (
    UPDATE {schema}.cluster SET version = version + 1
      FROM changed c
     WHERE c.made + c.gone > 0
    RETURNING pg_notify($2, 'work')
)
SELECT c.made, c.gone FROM changed c, (SELECT count(*) FROM told) AS t WHERE c.made + c.gone > 0;

-- name: reset_shards(label text) :many
-- Every shard of the label goes back to the beginning, under a new epoch, without an owner and a seal: whoever runs
-- them now is refused. Their names.
WITH cut AS MATERIALIZED (
    SELECT parts FROM {schema}.slicings WHERE label = $1 FOR UPDATE
), named AS MATERIALIZED (
    SELECT $1 || CASE WHEN c.parts = 1 THEN ':all' ELSE ':' || n || '/' || c.parts END AS name
      FROM (SELECT coalesce((SELECT parts FROM cut), 1) AS parts) AS c, generate_series(1, c.parts) AS n
)
UPDATE {schema}.shards s
   SET position = 0, epoch = s.epoch + 1, owner = NULL, seal = NULL
  FROM named n
 WHERE s.name = n.name
RETURNING s.name;
