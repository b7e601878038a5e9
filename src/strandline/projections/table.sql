-- The table of a table projection; used by table.py, which fills in the {names}. {table} has its schema.

-- name: create_table() :none
-- Room on the page keeps most updates HOT.
CREATE TABLE IF NOT EXISTS {table} (
    tenant text NOT NULL,
    {definitions},
    CONSTRAINT {key} PRIMARY KEY (tenant, {key_columns})
) WITH (fillfactor = 70);

-- name: create_table_index() :none
CREATE INDEX IF NOT EXISTS {index} ON {table} (tenant, {index_columns});

-- name: table_columns() :many
-- The columns as they are, to be compared with those declared.
SELECT a.attname::text AS name, format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull AS required
  FROM pg_attribute a
 WHERE a.attrelid = '{table}'::regclass AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attnum;

-- name: empty_table() :none
TRUNCATE {table};

-- name: drop_table() :none
DROP TABLE IF EXISTS {table};

-- name: fold_events(floor bigint, ceiling bigint, positions bigint[]) :none
-- Folds the events after floor, up to ceiling, and stores the outcome; of those at the positions only,
-- unless they are NULL; and of those whose row is in {slice} only, which may also name rows to spare, or the only
-- rows, in further parameters. One writer of a row at a time: rows are read, then written.
--
--   line    one line per event and rule: keys, and what is added or compared, read from the JSON once
--   reset   where a row ended or a column was set anew, per key; used by rules that need it only
--   folded  one line per key; nothing before a reset counts
--
-- OFFSET 0 keeps an expression from being worked out twice, and a lookup per key a lookup per key.
-- plan: events_pkey
WITH line AS {kept} (
    SELECT e.tenant, {place} AS place, {rule} AS rule{line_values}
      FROM {schema}.events e{lanes}
     WHERE e.position > $1 AND e.position <= $2
       AND e.type = ANY ({types})
       AND ($3::bigint[] IS NULL OR e.position = ANY ($3)){slice}
    OFFSET 0
), reset AS (
    SELECT l.tenant, {line_keys}, {resets}
      FROM line l
     WHERE {resetting} AND {has_key}
     GROUP BY l.tenant, {line_keys}
), folded AS MATERIALIZED (
    SELECT l.tenant, {line_keys}, {alive} AS alive, {anew} AS anew{aggregates}
      FROM line l{reset_join}
     WHERE {has_key}{after_end}
     GROUP BY l.tenant, {line_keys}
), gone AS (
    DELETE FROM {table} d
     WHERE d.ctid = ANY (ARRAY (
           SELECT found.ctid
             FROM folded g
            CROSS JOIN LATERAL (
                  SELECT t.ctid FROM {table} t WHERE t.tenant = g.tenant AND {same_key} OFFSET 0
                 ) AS found
            WHERE NOT g.alive))
)
INSERT INTO {table} (tenant, {columns})
SELECT g.tenant, {results}
  FROM folded g
  LEFT JOIN LATERAL (
       SELECT t.* FROM {table} t WHERE t.tenant = g.tenant AND {same_key} OFFSET 0
      ) AS old ON NOT g.anew{winners}
 WHERE g.alive
ON CONFLICT (tenant, {key_columns}) DO {on_conflict};

-- name: query_rows(tenant text) :many
-- {condition} and {order} are the caller's; its own parameters follow as $2, $3 ...
SELECT {selected}
  FROM {table}
 WHERE tenant = $1 AND ({condition})
 ORDER BY {order}
 LIMIT {limit};

-- name: count_rows(tenant text) :one
SELECT count(*) AS count FROM {table} WHERE tenant = $1 AND ({condition});
