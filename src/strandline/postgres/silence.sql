-- Sessions that are silent within a statement; used by silence.py.

-- name: end_silent(tables text[], applications text, idle double precision) :many
-- Ends the sessions that hold a lock on one of the tables within a statement that the server has parsed and was not
-- asked to run for so many seconds. One between two statements is left alone, since it may be a reader who takes his
-- time; and a COPY, which may wait for its rows. No row: there is none.
WITH held AS MATERIALIZED (
    SELECT DISTINCT l.pid
      FROM unnest($1::text[]) AS t(name)
      JOIN pg_locks l ON l.locktype = 'relation' AND l.relation = to_regclass(t.name) AND l.granted
     WHERE l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
), found AS MATERIALIZED (
    SELECT a.pid, a.application_name, a.client_addr, a.state_change, a.query
      FROM held h
      JOIN pg_stat_activity a ON a.pid = h.pid
     WHERE a.datname = current_database()
       AND a.usename = current_user
       AND a.application_name LIKE $2
       AND a.state = 'active' AND a.wait_event = 'ClientRead' AND a.query NOT ILIKE 'copy %'
       AND a.state_change < clock_timestamp() - make_interval(secs => $3)
)
SELECT f.pid, f.application_name AS application, host(f.client_addr) AS client,
       extract(epoch FROM clock_timestamp() - f.state_change)::double precision AS idle,
       left(f.query, 200) AS query, pg_terminate_backend(f.pid) AS ended
  FROM found f;
