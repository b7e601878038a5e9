-- Transactions that stay open; used by leak_watch.py.

-- name: end_backend(pid integer, application text, age double precision) :one
-- End a backend of ours whose transaction is that old: a closed connection is noticed only between statements.
-- No row: it has ended by itself.
SELECT pg_terminate_backend(a.pid) AS ended
  FROM pg_stat_activity a
 WHERE a.pid = $1 AND a.datname = current_database() AND a.usename = current_user AND a.application_name = $2
   AND a.xact_start < clock_timestamp() - make_interval(secs => $3);

-- name: transaction_of(pid integer) :one
-- The open transaction of a backend: its age and the last query. No row: it has none.
SELECT extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS age, coalesce(a.query, '') AS query
  FROM pg_stat_activity a
 WHERE a.pid = $1 AND a.datname = current_database() AND a.xact_start IS NOT NULL;
