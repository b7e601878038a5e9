-- What is read beside the snapshot of a survey: letters, dead jobs, the server; used by parts.py.

-- name: wait_for_no_lock() :none
-- For the rest of the transaction. A look has few seconds for all its parts: it must not spend them on somebody who
-- alters or rewrites one table.
SET LOCAL lock_timeout = '300ms';

-- name: letter_rows(most bigint) :many
-- Open dead letters by label and status; of each label $1 are counted. failed: those that failed themselves. error,
-- fingerprint: of the newest of these.
-- plan: dead_letters_open_idx
WITH RECURSIVE walk(label) AS (
    (SELECT d.label FROM {schema}.dead_letters d WHERE d.status IN ('parked', 'skipped') ORDER BY d.label LIMIT 1)
    UNION ALL
    SELECT (SELECT d.label FROM {schema}.dead_letters d
             WHERE d.status IN ('parked', 'skipped') AND d.label > w.label ORDER BY d.label LIMIT 1)
      FROM walk w
     WHERE w.label IS NOT NULL
), counted AS MATERIALIZED (
    SELECT w.label, c.status, c.count, c.failed, c.oldest, c.newest, c.example
      FROM walk w
     CROSS JOIN LATERAL (
           SELECT o.status, count(*) AS count, count(o.category) AS failed, min(o.created_at) AS oldest,
                  max(o.created_at) AS newest, max(o.id) FILTER (WHERE o.category IS NOT NULL) AS example
             FROM (SELECT d.id, d.status, d.category, d.created_at FROM {schema}.dead_letters d
                    WHERE d.label = w.label AND d.status IN ('parked', 'skipped') LIMIT $1) o
            GROUP BY o.status) c
)
SELECT c.label, c.status, c.count, c.failed,
       extract(epoch FROM clock_timestamp() - c.oldest)::float8 AS oldest,
       extract(epoch FROM clock_timestamp() - c.newest)::float8 AS newest,
       coalesce(left(concat_ws(': ', d.error->>'class', d.error->>'message'), 300), '') AS error,
       coalesce(d.fingerprint, '') AS fingerprint
  FROM counted c
  LEFT JOIN {schema}.dead_letters d ON d.id = c.example
 ORDER BY c.label, c.status;

-- name: dead_rows(most bigint) :many
-- Dead jobs by queue; the $1 oldest ids are counted.
-- plan: dead_jobs_pkey
SELECT d.queue, count(*) AS count, extract(epoch FROM clock_timestamp() - min(d.died_at))::float8 AS oldest
  FROM (SELECT j.queue, j.died_at FROM {schema}.dead_jobs j ORDER BY j.id LIMIT $1) d
 GROUP BY d.queue
 ORDER BY d.queue;

-- name: server_row() :one
-- horizon: seconds since the oldest transaction began that keeps dead rows. jobs_ended: rows ever deleted from jobs.
SELECT current_setting('server_version') AS version, pg_is_in_recovery() AS is_standby,
       greatest(
           coalesce((SELECT max(extract(epoch FROM clock_timestamp() - a.xact_start)) FROM pg_stat_activity a
                      WHERE (a.backend_xmin IS NOT NULL OR a.backend_xid IS NOT NULL) AND a.pid <> pg_backend_pid()
                        AND coalesce(a.datname, current_database()) = current_database()
                        AND coalesce(a.backend_type, '') <> 'autovacuum worker'), 0),
           coalesce((SELECT max(extract(epoch FROM clock_timestamp() - p.prepared)) FROM pg_prepared_xacts p
                      WHERE p.database = current_database()), 0))::float8 AS horizon,
       coalesce((SELECT s.n_tup_del FROM pg_stat_all_tables s WHERE s.relid = to_regclass('{schema}.jobs')), 0) AS jobs_ended;

-- name: open_transactions(most bigint) :many
-- The oldest open transactions of this database, prepared ones too. Empty words where the role may not see them.
-- holds_mark: it may have written streams, and so may still fill a gap; see high_water.sql.
WITH holding AS MATERIALIZED (
    SELECT DISTINCT l.pid, l.virtualtransaction
      FROM pg_locks l
     WHERE l.granted AND l.locktype = 'relation'
       AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
       AND l.relation = to_regclass('{schema}.streams')
       AND l.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
)
SELECT t.*
  FROM (SELECT a.pid, coalesce(a.application_name, '')::text AS application, coalesce(a.usename, '')::text AS "user",
               coalesce(a.state, '')::text AS state,
               extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS age,
               coalesce(extract(epoch FROM clock_timestamp() - a.state_change), 0)::float8 AS idle,
               coalesce(left(a.query, 200), '') AS query, coalesce(host(a.client_addr), '') AS client, ''::text AS prepared,
               EXISTS (SELECT FROM holding h WHERE h.pid = a.pid) AS holds_mark,
               coalesce(a.application_name LIKE 'strandline%', false) AS is_ours
          FROM pg_stat_activity a
         WHERE a.datname = current_database() AND a.xact_start IS NOT NULL AND a.pid <> pg_backend_pid()
           AND coalesce(a.backend_type, 'client backend') = 'client backend'
         UNION ALL
        SELECT NULL, '', p.owner::text, 'prepared', extract(epoch FROM clock_timestamp() - p.prepared)::float8,
               extract(epoch FROM clock_timestamp() - p.prepared)::float8, '', '', p.gid,
               EXISTS (SELECT FROM pg_locks x
                         JOIN holding h ON h.pid IS NULL AND h.virtualtransaction = x.virtualtransaction
                        WHERE x.locktype = 'transactionid' AND x.transactionid = p.transaction), false
          FROM pg_prepared_xacts p
         WHERE p.database = current_database()) t
 ORDER BY t.age DESC NULLS LAST
 LIMIT $1;
