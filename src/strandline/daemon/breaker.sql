-- Transactions that a frozen owner has left open, and that hold a shard's row; used by breaker.py.

-- name: end_zombies(shard text, idle double precision) :many
-- Ends the sessions of strandline's work pools that hold the shard's row in a transaction in which nothing has
-- happened for so many seconds. No row: nobody holds it, or whoever does is at work.
-- Found by the row's xmax: the number of the transaction that has changed or locked it.
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
       AND a.state LIKE 'idle in transaction%'
       AND a.state_change < clock_timestamp() - make_interval(secs => $2)
)
SELECT f.pid, f.application_name AS application, host(f.client_addr) AS client,
       extract(epoch FROM clock_timestamp() - f.state_change)::double precision AS idle,
       left(f.query, 200) AS query, pg_terminate_backend(f.pid) AS ended
  FROM found f;
