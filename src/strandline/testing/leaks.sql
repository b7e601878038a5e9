-- Leak checks; used by leaks.py.

-- name: idle_transactions() :many
-- Sessions of this database that hold a transaction open and do nothing.
SELECT format('pid %s (%s) in a transaction for %s s, last: %s', pid, application_name,
              round(extract(epoch FROM clock_timestamp() - xact_start)::numeric, 1), query) AS words
  FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid()
   AND state LIKE 'idle in transaction%';
