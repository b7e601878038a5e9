-- What keeps a queue's tables from staying small; used by bloat.py.

-- name: table_health() :many
-- The tables of jobs: rows that live and rows that are dead, as the statistics tell, bytes of the table and of
-- its largest index, and seconds since it was vacuumed.
SELECT c.relname::text AS name,
       coalesce(s.n_live_tup, 0) AS live, coalesce(s.n_dead_tup, 0) AS dead,
       pg_table_size(c.oid) AS bytes,
       coalesce(i.name, '')::text AS index_name, coalesce(i.bytes, 0)::bigint AS index_bytes,
       extract(epoch FROM clock_timestamp() - greatest(s.last_vacuum, s.last_autovacuum))::float8 AS vacuumed
  FROM pg_class c
  LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid
  LEFT JOIN LATERAL (SELECT x.indexrelid::regclass::text AS name, pg_relation_size(x.indexrelid) AS bytes
                       FROM pg_index x WHERE x.indrelid = c.oid
                      ORDER BY pg_relation_size(x.indexrelid) DESC LIMIT 1) i ON true
 WHERE c.oid = ANY (ARRAY[to_regclass('{schema}.jobs'), to_regclass('{schema}.job_periods'),
                          to_regclass('{schema}.job_edges')]::oid[])
 ORDER BY c.relname;

-- name: horizon_holders(most bigint) :many
-- Who keeps dead rows from being removed, the oldest first: a session, a prepared transaction, a replication slot.
-- seconds: since its transaction began, where that is known. age: in transactions.
SELECT h.kind, h.who, h.pid, h.state, h.seconds, h.age
  FROM (SELECT 'session' AS kind, coalesce(a.application_name, '')::text AS who, a.pid, coalesce(a.state, '')::text AS state,
               extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS seconds,
               greatest(age(a.backend_xmin), age(a.backend_xid))::bigint AS age
          FROM pg_stat_activity a
         WHERE (a.backend_xmin IS NOT NULL OR a.backend_xid IS NOT NULL) AND a.pid <> pg_backend_pid()
           AND coalesce(a.datname, current_database()) = current_database() AND a.backend_type <> 'autovacuum worker'
         UNION ALL
        SELECT 'prepared transaction', p.gid, 0, 'prepared',
               extract(epoch FROM clock_timestamp() - p.prepared)::float8, age(p.transaction)::bigint
          FROM pg_prepared_xacts p WHERE p.database = current_database()
         UNION ALL
        SELECT 'replication slot', s.slot_name::text, coalesce(s.active_pid, 0),
               CASE WHEN s.active THEN 'active' ELSE 'inactive' END, NULL,
               greatest(age(s.xmin), age(s.catalog_xmin))::bigint
          FROM pg_replication_slots s WHERE s.xmin IS NOT NULL) h
 ORDER BY h.age DESC NULLS LAST
 LIMIT $1;
