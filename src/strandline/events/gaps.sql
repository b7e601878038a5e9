-- The ledger of settled gaps, the live ones, and who holds them.

-- name: read_mark() :one
-- The published mark.
SELECT m.position, m.settled_at FROM {schema}.high_water m;

-- name: highest_position() :one
-- The highest visible position; 0 before the first event.
-- plan: events_pkey
SELECT coalesce((SELECT e.position FROM {schema}.events e ORDER BY e.position DESC LIMIT 1), 0) AS position;

-- name: list_gaps(most bigint, after bigint, forced boolean) :many
-- Settled gaps that begin after $2, in order; if $3, only those that were skipped without proof.
-- plan: gaps_pkey
SELECT g.first, g.last, g.kind, g.settled_at, g.watched, g.proof::text AS proof
  FROM {schema}.gaps g
 WHERE g.first > $2 AND (NOT $3 OR g.kind = 'forced')
 ORDER BY g.first
 LIMIT $1;

-- name: open_gaps(rows bigint, most bigint) :many
-- Missing numbers between the first $1 visible rows after the mark: not settled yet.
-- plan: events_pkey
SELECT s.before + 1 AS first, s.position - 1 AS last
  FROM (SELECT e.position,
               lag(e.position, 1, (SELECT m.position FROM {schema}.high_water m)) OVER (ORDER BY e.position) AS before
          FROM (SELECT e.position
                  FROM {schema}.events e
                 WHERE e.position > (SELECT m.position FROM {schema}.high_water m)
                 ORDER BY e.position
                 LIMIT $1) e) s
 WHERE s.position > s.before + 1
 ORDER BY s.position
 LIMIT $2;

-- name: holders() :many
-- Who may still fill a gap, with what is known about them. The same transactions as holders_of_streams in
-- high_water.sql. NULL where the role may not see it (pg_read_all_stats shows all).
SELECT h.pid, a.application_name AS application, coalesce(a.usename, p.owner)::text AS "user",
       CASE WHEN h.pid IS NULL THEN 'prepared' ELSE a.state END AS state,
       extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, p.prepared))::float8 AS age,
       host(a.client_addr) AS client, left(a.query, 200) AS query, p.gid AS prepared, h.keys
  FROM (SELECT l.pid,
               array_agg(DISTINCT l.virtualtransaction)
               || coalesce(array_agg(DISTINCT l.transactionid::text)
                           FILTER (WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock'), '{}') AS keys
          FROM pg_locks l
         WHERE l.granted
         GROUP BY l.virtualtransaction, l.pid
        HAVING bool_or(l.locktype = 'relation'
                       AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
                       AND l.relation = $q${schema}.streams$q$::regclass
                       AND l.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock',
                                      'AccessExclusiveLock'))) h
  LEFT JOIN pg_stat_activity a ON a.pid = h.pid
  LEFT JOIN pg_prepared_xacts p ON h.pid IS NULL AND p.transaction::text = ANY (h.keys)
 ORDER BY age DESC NULLS LAST, h.pid;

-- name: cancel_holder(pid integer) :one
-- Ends the backend $1, if it holds the streams lock. A plain cancel would not: an idle transaction survives it.
SELECT coalesce(bool_or(pg_terminate_backend(h.pid)), false) AS ended
  FROM (SELECT DISTINCT l.pid
          FROM pg_locks l
         WHERE l.granted
           AND l.pid = $1
           AND l.locktype = 'relation'
           AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
           AND l.relation = $q${schema}.streams$q$::regclass
           AND l.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')) h;

-- name: watch_forced(present text[]) :many
-- The sentinel: notes events that turned up in forced gaps, and ends the watch of a gap once none of its
-- holders is among $1, which must have been read before this. Rows: gaps where more events turned up than were noted.
-- plan: gaps_watched
WITH found AS MATERIALIZED (
    SELECT g.first, g.last, e.events, coalesce((g.proof->'late'->>'events')::bigint, 0) AS noted,
           jsonb_build_object('late', jsonb_build_object(
               'events', e.events, 'first', e.lowest, 'last', e.highest, 'seen_at', clock_timestamp(),
               'labels', (SELECT coalesce(jsonb_agg(c.label ORDER BY c.label), '[]') FROM {schema}.slicings c))) AS late,
           NOT EXISTS (SELECT FROM jsonb_array_elements_text(g.proof->'keys') AS u(k) WHERE u.k = ANY ($1)) AS over
      FROM {schema}.gaps g
     CROSS JOIN LATERAL (SELECT count(*) AS events, min(w.position) AS lowest, max(w.position) AS highest
                           FROM {schema}.events w
                          WHERE w.position BETWEEN g.first AND g.last) e
     WHERE g.watched
), noted AS (
    UPDATE {schema}.gaps g
       SET watched = NOT f.over,
           proof = CASE WHEN f.events > f.noted THEN g.proof || f.late ELSE g.proof END
      FROM found f
     WHERE g.first = f.first
       AND g.watched
       AND (f.over OR f.events > coalesce((g.proof->'late'->>'events')::bigint, 0))
    RETURNING g.first, g.last, f.events, f.noted
)
SELECT n.first, n.last, n.events, n.events - n.noted AS fresh
  FROM noted n
 WHERE n.events > n.noted
 ORDER BY n.first;
