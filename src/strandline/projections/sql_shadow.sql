-- Tables of the user's own in a shadow; used by sql_shadow.py. A place is a schema, quoted.

-- name: enter_shadow(place text) :one
-- For the rest of the transaction, names without a schema mean what is in the shadow; what is not there, what they
-- meant before.
WITH before AS MATERIALIZED (
    SELECT current_setting('search_path') AS path
)
SELECT b.path AS path, set_config('search_path', concat_ws(', ', $1::text, nullif(b.path, '')), true) AS entered FROM before b;

-- name: leave_shadow(path text) :one
SELECT set_config('search_path', $1, true) AS path;

-- name: strays_in_shadow(place text, tables text[]) :many
-- What the setup has made there besides the tables, in words. Indexes and row types depend on tables, not on the schema.
SELECT pg_describe_object(d.classid, d.objid, 0) AS what
  FROM pg_depend d
  LEFT JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
 WHERE d.refclassid = 'pg_namespace'::regclass AND d.refobjid = to_regnamespace($1)
   AND NOT coalesce(c.relkind IN ('r', 'p') AND c.relname::text = ANY ($2), false)
   AND NOT coalesce(c.relkind = 'S' AND EXISTS (
           SELECT FROM pg_depend o
            WHERE o.classid = 'pg_class'::regclass AND o.objid = c.oid AND o.refclassid = 'pg_class'::regclass
              AND o.refobjsubid > 0 AND o.deptype IN ('a', 'i')), false)
 ORDER BY 1;

-- name: missing_in_shadow(place text, tables text[]) :many
-- Those of the tables that the setup has not made there.
SELECT t.name AS what
  FROM unnest($2::text[]) AS t(name)
 WHERE NOT EXISTS (
       SELECT FROM pg_class c
        WHERE c.relnamespace = to_regnamespace($1) AND c.relname = t.name AND c.relkind IN ('r', 'p'));

-- name: written_elsewhere(place text) :many
-- Tables, materialized views and sequences beyond the shadow that this transaction changes, our own left out: whoever
-- changes something holds a stronger lock on it than readers do. All are beyond it if the shadow is gone.
SELECT c.oid::regclass::text AS what
  FROM pg_locks l
  JOIN pg_class c ON c.oid = l.relation
 WHERE l.locktype = 'relation' AND l.pid = pg_backend_pid() AND l.mode NOT IN ('AccessShareLock', 'RowShareLock')
   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND c.relkind IN ('r', 'p', 'm', 'f', 'S') AND c.relpersistence <> 't'
   AND c.relnamespace IS DISTINCT FROM to_regnamespace($1)
   AND c.oid NOT IN ('{schema}.shards'::regclass, '{schema}.dead_letters'::regclass)
 ORDER BY 1;

-- name: primary_key(tables text[]) :many
-- The columns of the primary keys, in their order; tables without one are missing.
SELECT t.name AS table, a.attname::text AS column
  FROM unnest($1::text[]) AS t(name)
  JOIN pg_index i ON i.indrelid = to_regclass(t.name) AND i.indisprimary
 CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k(number, place)
  JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number
 ORDER BY t.name, k.place;
