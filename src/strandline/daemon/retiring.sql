-- Retiring a version of a projection; used by retiring.py.

-- name: versions_of(name text) :many
-- The versions of a projection that nodes run, by label.
SELECT label FROM {schema}.slicings WHERE label ~ ('^' || $1 || ':v[0-9]+$') ORDER BY label;

-- name: delete_letters(label text) :none
-- Nobody can retry them any more.
DELETE FROM {schema}.dead_letters WHERE label = $1;

-- name: hand_over_effects(label text, after bigint, channel text) :none
-- From now on it is this version that raises side effects, for events beyond that position. Whoever runs its shards is
-- refused, told, and claims them anew. A seal of keep_still is gone. Hold its row of slicings and its shards first.
WITH speaks AS (
    UPDATE {schema}.slicings SET effects_after = $2 WHERE label = $1
), anew AS (
    UPDATE {schema}.shards s
       SET epoch = s.epoch + 1, owner = NULL, seal = CASE WHEN c.build IS NULL THEN NULL ELSE s.seal END
      FROM {schema}.slicings c
     WHERE c.label = $1 AND left(s.name, -strpos(reverse(s.name), ':')) = $1
)
SELECT pg_notify($3, $1);

-- name: keep_still(label text, heir text, near bigint, channel text) :one
-- Every shard of both versions must stop at one position: as far as the first of them has come. Their owners are
-- refused, told, and learn the seal with their next claim. No row: one of them is sealed, cut or built otherwise; or a
-- shard of the label rests, or has far to go.
WITH cut AS MATERIALIZED (
    SELECT c.label, c.parts
      FROM {schema}.slicings c
     WHERE c.label IN ($1, $2) AND c.parts = c.wanted AND c.build IS NULL
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
       AND max(h.position) - min(h.position) FILTER (WHERE h.label = $1) <= $3
       AND NOT EXISTS (SELECT FROM {schema}.shard_status t
                        WHERE t.state = 'paused' AND t.name IN (SELECT p.name FROM held p WHERE p.label = $1))
), sealed AS (
    UPDATE {schema}.shards s
       SET seal = seal.position, epoch = s.epoch + 1, owner = NULL
      FROM held h, seal
     WHERE s.name = h.name
    RETURNING s.name
), told AS MATERIALIZED (
    SELECT count(pg_notify($4, c.label)) AS labels FROM cut c, seal
)
SELECT max(seal.position) AS position, count(*) AS shards FROM sealed, seal, told HAVING count(*) > 0;

-- name: has_table(document_table text, row_table text, schema text) :one
-- Whether it has left a table.
SELECT EXISTS (SELECT FROM pg_tables WHERE schemaname::text = $3 AND tablename::text IN ($1, $2)) AS found;

-- name: drop_left_table() :none
-- The table of a version that this program's code does not have.
DROP TABLE IF EXISTS {schema}.{table};
