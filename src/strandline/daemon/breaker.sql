-- Transactions that a frozen process has left open, and that hold what others need; used by breaker.py.
-- A process can stand still between two statements, and within one (see postgres/silence.py).
-- Who holds a row is found by its xmax: the number of the transaction that has changed or locked it.

-- name: end_zombies(shard text, idle double precision) :many
-- Ends the sessions of strandline's work pools that hold the shard's row in a transaction in which nothing has
-- happened for so many seconds. No row: nobody holds it, or whoever does is at work.
WITH held AS MATERIALIZED (
    SELECT s.xmax AS transaction FROM {schema}.shards s WHERE s.name = $1
), found AS MATERIALIZED (
    SELECT a.pid, a.application_name, a.client_addr, a.state_change, a.query
      FROM held h
      JOIN pg_locks l ON l.locktype = 'transactionid' AND l.transactionid = h.transaction AND l.granted
      JOIN pg_stat_activity a ON a.pid = l.pid
     WHERE a.datname = current_database()
       AND a.usename = current_user
       AND a.application_name LIKE 'strandline work%'
       AND (a.state LIKE 'idle in transaction%' OR a.state = 'active' AND a.wait_event = 'ClientRead')
       AND a.state_change < clock_timestamp() - make_interval(secs => $2)
)
SELECT f.pid, f.application_name AS application, host(f.client_addr) AS client,
       extract(epoch FROM clock_timestamp() - f.state_change)::double precision AS idle,
       left(f.query, 200) AS query, pg_terminate_backend(f.pid) AS ended
  FROM found f;

-- name: end_steppers(number bigint, turn text, idle double precision) :many
-- The same of the sessions that hold the row of a build, or the key of the turn, to take a step of it.
WITH held AS MATERIALIZED (
    SELECT l.pid
      FROM {schema}.rebuilds r
      JOIN pg_locks l ON l.locktype = 'transactionid' AND l.transactionid = r.xmax AND l.granted
     WHERE r.number = $1
    UNION
    SELECT l.pid
      FROM pg_locks l
     WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
       AND (l.classid::bigint << 32 | l.objid::bigint) = hashtextextended($2, 0)
), found AS MATERIALIZED (
    SELECT a.pid, a.application_name, a.client_addr, a.state_change, a.query
      FROM held h
      JOIN pg_stat_activity a ON a.pid = h.pid
     WHERE a.datname = current_database()
       AND a.usename = current_user
       AND a.application_name LIKE ANY (ARRAY['strandline work%', 'strandline control%'])
       AND (a.state LIKE 'idle in transaction%' OR a.state = 'active' AND a.wait_event = 'ClientRead')
       AND a.state_change < clock_timestamp() - make_interval(secs => $3)
)
SELECT f.pid, f.application_name AS application, host(f.client_addr) AS client,
       extract(epoch FROM clock_timestamp() - f.state_change)::double precision AS idle,
       left(f.query, 200) AS query, pg_terminate_backend(f.pid) AS ended
  FROM found f;
