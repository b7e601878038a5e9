-- What the server says of itself; used by diagnosis.py.

-- name: server_facts() :one
-- Needs no privilege and no table of ours.
SELECT current_setting('server_version') AS version, current_setting('server_version_num')::integer AS number,
       current_database()::text AS database, current_user::text AS "user", pg_is_in_recovery() AS standby,
       current_setting('transaction_read_only') = 'on' AS read_only,
       current_setting('fsync') = 'on' AS fsync,
       current_setting('full_page_writes') = 'on' AS full_page_writes,
       current_setting('synchronous_commit') AS synchronous_commit,
       current_setting('max_connections')::integer AS max_connections,
       current_setting('superuser_reserved_connections')::integer
       + coalesce(current_setting('reserved_connections', true)::integer, 0) AS reserved_connections,
       (SELECT count(*) FROM pg_stat_activity a
         WHERE coalesce(a.backend_type, 'client backend') = 'client backend') AS connections,
       (SELECT CASE WHEN d.datconnlimit < 0 THEN NULL ELSE d.datconnlimit END
          FROM pg_database d WHERE d.datname = current_database()) AS database_limit,
       pg_encoding_to_char((SELECT d.encoding FROM pg_database d WHERE d.datname = current_database()))::text AS encoding,
       (SELECT count(*) FROM pg_stat_activity a
         WHERE a.datname = current_database() AND a.application_name = 'strandline listen')
       + (SELECT count(DISTINCT split_part(a.application_name, ' ', 3)) FROM pg_stat_activity a
           WHERE a.datname = current_database() AND a.application_name ~ '^strandline (work|control|listen) .') AS apps;

-- name: room() :one
-- How many connections there may be, and who has how many. Needs no privilege and no table of ours.
SELECT current_setting('max_connections')::integer AS max_connections,
       current_setting('superuser_reserved_connections')::integer
       + coalesce(current_setting('reserved_connections', true)::integer, 0) AS reserved,
       (SELECT CASE WHEN d.datconnlimit < 0 THEN NULL ELSE d.datconnlimit END
          FROM pg_database d WHERE d.datname = current_database()) AS database_limit,
       (SELECT CASE WHEN r.rolconnlimit < 0 THEN NULL ELSE r.rolconnlimit END
          FROM pg_roles r WHERE r.rolname = current_user) AS role_limit,
       count(*) AS connections,
       count(*) FILTER (WHERE a.datname = current_database() AND a.application_name ~ '^strandline (work|control|listen|pulse|jobs|job duties|survey)') AS ours,
       count(*) FILTER (WHERE a.datname = current_database() AND a.application_name = 'strandline listen')
       + count(DISTINCT split_part(a.application_name, ' ', 3))
         FILTER (WHERE a.datname = current_database() AND a.application_name ~ '^strandline (work|control|listen) .') AS apps
  FROM pg_stat_activity a
 WHERE coalesce(a.backend_type, 'client backend') = 'client backend';

-- name: lingering_prepared(seconds double precision) :many
-- Prepared transactions of this database that are older.
SELECT p.gid, p.owner::text AS owner, p.prepared,
       extract(epoch FROM clock_timestamp() - p.prepared)::float8 AS age
  FROM pg_prepared_xacts p
 WHERE p.database = current_database()
   AND p.prepared < clock_timestamp() - make_interval(secs => $1)
 ORDER BY p.prepared;

-- name: may_write() :one
-- Whether the role may do in our schema what a node does, or at least look at it. No row: no such schema.
SELECT current_user::text AS role,
       pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS sees_all,
       has_schema_privilege(n.oid, 'CREATE') AS creates,
       has_schema_privilege(n.oid, 'USAGE')
           AND NOT EXISTS (SELECT FROM pg_class c
                            WHERE c.relnamespace = n.oid AND c.relkind = 'r'
                              AND NOT has_table_privilege(c.oid, 'SELECT')) AS reads,
       NOT EXISTS (SELECT FROM pg_class c
                    WHERE c.relnamespace = n.oid AND c.relkind = 'r'
                      AND NOT (has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT')
                               AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE'))) AS writes
  FROM pg_namespace n
 WHERE n.oid = to_regnamespace($q${schema}$q$);
