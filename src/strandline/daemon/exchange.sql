-- Exchanging the tables of a build with those that serve; used by exchange.py. {live}, {shadow} and {trash} are schemas
-- or tables as SQL.

-- name: table_home(name text) :one
-- The table's schema, its name, and its owner, as SQL. is_ours: whether this role may move it. is_open: and put another
-- one into the schema. No row: there is no such table.
SELECT quote_ident(n.nspname) AS schema, quote_ident(c.relname) AS name, quote_ident(pg_get_userbyid(c.relowner)) AS owner,
       pg_has_role(c.relowner, 'USAGE') AS is_ours, has_schema_privilege(n.oid, 'CREATE') AS is_open
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid = to_regclass($1);

-- name: hangs_on(names text[]) :many
-- What would stay behind at the table that is taken away, or keep it from being dropped, in words: views, functions,
-- columns and foreign keys of others that are bound to it, its rows or its sequences, what was added to it by hand, and
-- partitions. Not what belongs to several of these tables.
WITH taken AS MATERIALIZED (
    SELECT c.oid, c.reltype FROM unnest($1::text[]) AS t(name) JOIN pg_class c ON c.oid = to_regclass(t.name)
), own AS MATERIALIZED (
    SELECT 'pg_class'::regclass AS classid, t.oid AS objid FROM taken t
    UNION ALL
    SELECT 'pg_type'::regclass, y.oid FROM taken t JOIN pg_type y ON y.oid = t.reltype OR y.typelem = t.reltype
    UNION ALL
    SELECT 'pg_class'::regclass, c.oid
      FROM taken t
      JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = t.oid AND d.deptype IN ('a', 'i')
      JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid AND c.relkind = 'S'
)
SELECT pg_describe_object(d.classid, d.objid, d.objsubid) AS what
  FROM own o
  JOIN pg_depend d ON d.refclassid = o.classid AND d.refobjid = o.objid
  LEFT JOIN pg_constraint k ON d.classid = 'pg_constraint'::regclass AND k.oid = d.objid
  LEFT JOIN pg_attrdef f ON d.classid = 'pg_attrdef'::regclass AND f.oid = d.objid
  LEFT JOIN pg_trigger g ON d.classid = 'pg_trigger'::regclass AND g.oid = d.objid
 WHERE (d.deptype = 'n' AND g.oid IS NULL
        AND coalesce(k.conrelid, f.adrelid, CASE WHEN d.classid = 'pg_class'::regclass THEN d.objid END, 0)
            NOT IN (SELECT oid FROM taken)
        OR g.oid IS NOT NULL AND NOT g.tgisinternal
        OR d.classid IN ('pg_policy'::regclass, 'pg_publication_rel'::regclass, 'pg_statistic_ext'::regclass))
UNION
SELECT pg_describe_object('pg_class'::regclass, i.inhrelid, 0)
  FROM taken t JOIN pg_inherits i ON i.inhparent = t.oid
 WHERE i.inhrelid NOT IN (SELECT oid FROM taken)
UNION
SELECT 'its place in ' || pg_describe_object('pg_class'::regclass, i.inhparent, 0)
  FROM taken t JOIN pg_inherits i ON i.inhrelid = t.oid
 WHERE i.inhparent NOT IN (SELECT oid FROM taken)
 ORDER BY 1;

-- name: made_by_hand(live text, shadow text) :many
-- What the first table has and the second, which the code has made, has not: indexes, columns and constraints by their
-- names, and row security.
SELECT pg_describe_object('pg_class'::regclass, i.indexrelid, 0) AS what
  FROM pg_index i
  JOIN pg_class c ON c.oid = i.indexrelid
 WHERE i.indrelid = to_regclass($1)
   AND c.relname NOT IN (SELECT b.relname FROM pg_index s JOIN pg_class b ON b.oid = s.indexrelid
                          WHERE s.indrelid = to_regclass($2))
UNION ALL
SELECT pg_describe_object('pg_class'::regclass, a.attrelid, a.attnum)
  FROM pg_attribute a
 WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped
   AND a.attname NOT IN (SELECT s.attname FROM pg_attribute s
                          WHERE s.attrelid = to_regclass($2) AND s.attnum > 0 AND NOT s.attisdropped)
UNION ALL
SELECT pg_describe_object('pg_constraint'::regclass, k.oid, 0)
  FROM pg_constraint k
 WHERE k.conrelid = to_regclass($1) AND k.contype IN ('c', 'f')
   AND NOT EXISTS (SELECT FROM pg_constraint s
                    WHERE s.conrelid = to_regclass($2) AND s.contype = k.contype
                      AND (s.conname = k.conname OR pg_get_constraintdef(s.oid) = pg_get_constraintdef(k.oid)))
UNION ALL
SELECT 'row level security of ' || pg_describe_object('pg_class'::regclass, c.oid, 0)
  FROM pg_class c
 WHERE c.oid = to_regclass($1) AND (c.relrowsecurity OR c.relforcerowsecurity)
   AND NOT EXISTS (SELECT FROM pg_class s
                    WHERE s.oid = to_regclass($2) AND s.relrowsecurity = c.relrowsecurity
                      AND s.relforcerowsecurity = c.relforcerowsecurity)
 ORDER BY 1;

-- name: left_in_shadow(place text) :many
-- What is in a schema, in words.
SELECT pg_describe_object(d.classid, d.objid, 0) AS what
  FROM pg_depend d
 WHERE d.refclassid = 'pg_namespace'::regclass AND d.refobjid = to_regnamespace($1)
 ORDER BY 1;

-- name: open_letters(label text, tenant text, keys text[]) :one
-- Open letters of what serves; NULL: of all tenants, all keys.
SELECT count(*) AS count
  FROM {schema}.dead_letters l
 WHERE l.label = $1 AND l.status IN ('parked', 'skipped')
   AND ($2::text IS NULL OR l.tenant = $2) AND ($3::text[] IS NULL OR l.key = ANY ($3));

-- name: granted(name text) :many
-- Who may do what with the table and its columns, its owner left out, as SQL.
SELECT a.privilege_type || CASE WHEN x.name IS NULL THEN '' ELSE ' (' || quote_ident(x.name) || ')' END AS privilege,
       CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS grantee,
       CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END AS option
  FROM pg_class c
 CROSS JOIN LATERAL (
       SELECT NULL::name AS name, c.relacl AS acl
       UNION ALL
       SELECT b.attname, b.attacl FROM pg_attribute b WHERE b.attrelid = c.oid AND b.attnum > 0) AS x
 CROSS JOIN LATERAL aclexplode(x.acl) AS a
 WHERE c.oid = to_regclass($1) AND a.grantee <> c.relowner;

-- name: revoke_all() :none
REVOKE ALL ON TABLE {table} FROM {grantee} CASCADE;

-- name: grant_again() :none
GRANT {privilege} ON TABLE {table} TO {grantee}{option};

-- name: keep_autovacuum_away() :none
-- Stops no reader and no writer. An autovacuum gives way to it once deadlock_timeout is over, and no other begins.
LOCK TABLE {table} IN SHARE UPDATE EXCLUSIVE MODE;

-- name: take_table() :none
-- Nobody reads or writes it until the transaction ends.
LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE;

-- name: drop_tables() :none
-- Fails if anything else is bound to them.
DROP TABLE {tables};

-- name: own_table() :none
ALTER TABLE {table} OWNER TO {owner};

-- name: move_table() :none
-- With its indexes and the sequences of its columns.
ALTER TABLE {table} SET SCHEMA {schema_of};

-- name: delete_scope(tenant text, keys text[]) :none
DELETE FROM {live} d WHERE d.tenant = $1 AND ($2::text[] IS NULL OR {key} = ANY ($2));

-- name: copy_scope(tenant text, keys text[]) :none
INSERT INTO {live} SELECT d.* FROM {shadow} d WHERE d.tenant = $1 AND ($2::text[] IS NULL OR {key} = ANY ($2));

-- name: supersede_letters(label text, tenant text, keys text[], reason text) :none
-- Open letters of what serves that the new model has read past; NULL: of all tenants, all keys.
WITH meant AS MATERIALIZED (
    SELECT l.id
      FROM {schema}.dead_letters l
     WHERE l.label = $1 AND l.status IN ('parked', 'skipped')
       AND ($2::text IS NULL OR l.tenant = $2) AND ($3::text[] IS NULL OR l.key = ANY ($3))
     ORDER BY l.tenant, l.key, l.position
       FOR UPDATE OF l
)
UPDATE {schema}.dead_letters l
   SET status = 'superseded', reason = $4, retry_at = NULL, closed_at = clock_timestamp()
  FROM meant m
 WHERE l.id = m.id;

-- name: drop_known_letters(label text, shadow text) :none
-- Letters of the build for what has an open one already that was not superseded: the build was of a part, and nobody
-- knows to which keys the event belongs. Whoever takes care of that letter takes care of the part as well, if it is of
-- the same slice, or of all slices.
DELETE FROM {schema}.dead_letters b
 WHERE b.label = $2 AND b.status IN ('parked', 'skipped')
   AND EXISTS (
       SELECT FROM {schema}.dead_letters l
        WHERE l.label = $1 AND l.tenant = b.tenant AND l.key = b.key AND l.position = b.position
          AND l.status IN ('parked', 'skipped')
       HAVING count(*) >= (SELECT s.parts FROM {schema}.slicings s WHERE s.label = $1)
           OR bool_or(l.shard IN ($1 || ':all', $1 || substr(b.shard, length($2) + 1))));

-- name: inherit_letters(label text, shadow text) :none
-- The letters of the build are those of what serves from now on.
UPDATE {schema}.dead_letters l
   SET label = $1, shard = $1 || substr(l.shard, length($2) + 1)
 WHERE l.label = $2;
