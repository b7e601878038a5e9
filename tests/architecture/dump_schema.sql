-- What the schema $1 holds, one row an object, in an order that can be run: types, sequences, tables,
-- partitions, indexes, foreign keys, functions, comments. The text is the same on PostgreSQL 14 to 18, if search_path is empty.
WITH relations AS (
    SELECT c.oid, c.relname, c.relkind, c.relispartition, c.reloptions, format('%I.%I', n.nspname, c.relname) AS name
      FROM pg_class c
      JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = $1::text
), columns AS (
    SELECT a.attrelid, a.attnum, a.attname,
           format('    %I %s', a.attname, format_type(a.atttypid, a.atttypmod))
           || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END
           || coalesce(' DEFAULT ' || pg_get_expr(d.adbin, d.adrelid), '')
           || CASE WHEN a.attidentity = '' THEN ''
                   ELSE format(' GENERATED %s AS IDENTITY (CACHE %s)',
                               CASE a.attidentity WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END, s.seqcache)
              END AS line
      FROM pg_attribute a
      LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
      LEFT JOIN pg_depend p ON p.refobjid = a.attrelid AND p.refobjsubid = a.attnum AND p.deptype = 'i'
                           AND p.refclassid = 'pg_class'::regclass AND p.classid = 'pg_class'::regclass
      LEFT JOIN pg_sequence s ON s.seqrelid = p.objid
     WHERE a.attnum > 0 AND NOT a.attisdropped
), constraints AS (
    SELECT o.conrelid, o.conname, o.contype, pg_get_constraintdef(o.oid) AS definition,
           format('    CONSTRAINT %I %s', o.conname, pg_get_constraintdef(o.oid)) AS line
      FROM pg_constraint o
     WHERE o.contype IN ('p', 'u', 'f', 'c', 'x')  -- from 18 on NOT NULL is one too: see columns
), made AS (
    SELECT 1 AS place, r.relname AS name,
           format(E'CREATE TYPE %s AS (\n%s\n);', r.name,
                  (SELECT string_agg(c.line, E',\n' ORDER BY c.attnum) FROM columns c WHERE c.attrelid = r.oid)) AS text
      FROM relations r WHERE r.relkind = 'c'
    UNION ALL
    SELECT 2, r.relname, format('CREATE SEQUENCE %s%s;', r.name,
                                CASE WHEN s.seqcache = 1 THEN '' ELSE ' CACHE ' || s.seqcache END)
      FROM relations r
      JOIN pg_sequence s ON s.seqrelid = r.oid
     WHERE NOT EXISTS (SELECT FROM pg_depend p  -- the sequence of an identity column comes with its table
                        WHERE p.classid = 'pg_class'::regclass AND p.objid = r.oid AND p.deptype = 'i')
    UNION ALL
    SELECT 3, r.relname,
           format(E'CREATE TABLE %s (\n%s\n)%s%s;', r.name,
                  concat_ws(E',\n',
                      (SELECT string_agg(c.line, E',\n' ORDER BY c.attnum) FROM columns c WHERE c.attrelid = r.oid),
                      (SELECT string_agg(o.line, E',\n' ORDER BY o.contype DESC, o.conname)
                         FROM constraints o WHERE o.conrelid = r.oid AND o.contype <> 'f')),
                  coalesce(' PARTITION BY ' || pg_get_partkeydef(r.oid), ''),
                  coalesce(' WITH (' || array_to_string(r.reloptions, ', ') || ')', ''))
      FROM relations r WHERE r.relkind IN ('r', 'p') AND NOT r.relispartition
    UNION ALL
    SELECT 4, r.relname, format('CREATE TABLE %s PARTITION OF %s %s;', r.name, parent.name,
                                pg_get_expr(c.relpartbound, c.oid))
      FROM relations r
      JOIN pg_class c ON c.oid = r.oid
      JOIN pg_inherits h ON h.inhrelid = r.oid
      JOIN relations parent ON parent.oid = h.inhparent
     WHERE r.relkind IN ('r', 'p') AND r.relispartition
    UNION ALL
    SELECT 5, x.relname, replace(pg_get_indexdef(x.oid), ' ON ONLY ', ' ON ') || ';'
      FROM relations x
      JOIN pg_index i ON i.indexrelid = x.oid
     WHERE x.relkind IN ('i', 'I') AND NOT x.relispartition  -- those of a partition come with its table's
       AND NOT EXISTS (SELECT FROM pg_constraint o WHERE o.conindid = x.oid AND o.contype IN ('p', 'u', 'x'))
    UNION ALL
    SELECT 6, o.conname, format('ALTER TABLE %s ADD CONSTRAINT %I %s;', r.name, o.conname, o.definition)
      FROM constraints o
      JOIN relations r ON r.oid = o.conrelid
     WHERE o.contype = 'f'  -- once all tables are there
    UNION ALL
    SELECT 7, p.proname || pg_get_function_identity_arguments(p.oid), rtrim(pg_get_functiondef(p.oid), E'\n') || ';'
      FROM pg_proc p
     WHERE p.pronamespace = (SELECT n.oid FROM pg_namespace n WHERE n.nspname = $1::text)
    UNION ALL
    SELECT 8, r.relname || coalesce(' ' || a.attname, ''),
           format('COMMENT ON %s %s IS %L;', CASE WHEN d.objsubid = 0 THEN 'TABLE' ELSE 'COLUMN' END,
                  r.name || coalesce('.' || quote_ident(a.attname), ''), d.description)
      FROM pg_description d
      JOIN relations r ON r.oid = d.objoid AND d.classoid = 'pg_class'::regclass AND r.relkind IN ('r', 'p')
      LEFT JOIN pg_attribute a ON a.attrelid = d.objoid AND a.attnum = d.objsubid AND d.objsubid > 0
)
SELECT text FROM made ORDER BY place, name COLLATE "C";
