-- The high-water mark: look and advance, prove, settle. The order of these three is the proof;
-- see the page at the top of high_water.py. Each runs alone, outside any transaction.

-- name: advance(most bigint) :one
-- Looks at the first $1 visible rows after the mark, moves it over the contiguous ones, and tells
-- what lies beyond, all from one snapshot. gap: a number before highest is missing. No row: the
-- table high_water is empty. A synchronous commit, whatever the default is: what is below the mark must outlive a
-- crash, or its numbers could be drawn again.
-- plan: events_pkey
WITH durable AS MATERIALIZED (
    SELECT CASE WHEN current_setting('synchronous_commit') = 'off'
                THEN set_config('synchronous_commit', 'local', true) END AS setting
), page AS MATERIALIZED (
    SELECT e.position
      FROM {schema}.events e
     WHERE e.position > (SELECT m.position FROM {schema}.high_water m)
     ORDER BY e.position
     LIMIT $1
), counted AS MATERIALIZED (
    SELECT m.position AS mark,
           (SELECT count(*) FROM page) AS visible,
           (SELECT max(p.position) FROM page p) AS last
      FROM {schema}.high_water m
), looked AS MATERIALIZED (
    SELECT c.mark,
           CASE WHEN c.visible = 0 THEN c.mark
                WHEN c.last = c.mark + c.visible THEN c.last
                ELSE c.mark + (SELECT count(*)
                                 FROM (SELECT p.position - row_number() OVER (ORDER BY p.position) AS shift
                                         FROM page p) s
                                WHERE s.shift = c.mark)
           END AS settled,
           CASE WHEN c.visible = $1 THEN (SELECT max(e.position) FROM {schema}.events e)
                ELSE coalesce(c.last, c.mark)
           END AS highest,
           coalesce(c.last > c.mark + c.visible, false) AS gap
      FROM counted c
), moved AS (
    UPDATE {schema}.high_water h
       SET position = l.settled,
           settled_at = clock_timestamp()
      FROM looked l, durable d
     WHERE h.position < l.settled
    RETURNING h.position
)
SELECT l.mark,
       l.settled,
       l.highest,
       l.gap,
       CASE WHEN l.gap THEN (SELECT e.id FROM {schema}.events e WHERE e.position = l.highest) END AS head,
       EXISTS (SELECT FROM {schema}.gaps g WHERE g.watched) AS watching
  FROM looked l;

-- name: holders_of_streams() :many
-- Who may still fill a gap: one row for each transaction that may write streams, by every name that it has
-- in pg_locks. The virtual transaction alone is not enough: a prepared transaction that was recovered after
-- a crash has another one; the transaction id stays. A pid would be wrong: PREPARE takes it away.
SELECT array_agg(DISTINCT l.virtualtransaction)
       || coalesce(array_agg(DISTINCT l.transactionid::text)
                   FILTER (WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock'), '{}') AS keys
  FROM pg_locks l
 WHERE l.granted
 GROUP BY l.virtualtransaction, l.pid
HAVING bool_or(l.locktype = 'relation'
               AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
               AND l.relation = $q${schema}.streams$q$::regclass
               AND l.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock'));

-- name: settle(highest bigint, head uuid, most bigint, kind text, proof jsonb) :one
-- Moves the mark over the next $3 visible rows up to $1 and records the numbers missing between them.
-- Nothing moves unless the event $2 is (still) visible at $1: after a fail-over or a restore the proof was
-- about another history. position is the mark afterwards, as far as this snapshot knows. labels: what misses the
-- numbers of a forced gap, whichever node runs it.
-- plan: events_pkey
WITH durable AS MATERIALIZED (
    SELECT CASE WHEN current_setting('synchronous_commit') = 'off'
                THEN set_config('synchronous_commit', 'local', true) END AS setting
), page AS MATERIALIZED (
    SELECT e.position,
           lag(e.position, 1, (SELECT m.position FROM {schema}.high_water m)) OVER (ORDER BY e.position) AS before
      FROM (SELECT e.position
              FROM {schema}.events e
             WHERE e.position > (SELECT m.position FROM {schema}.high_water m)
               AND e.position <= $1
             ORDER BY e.position
             LIMIT $3) e
), target AS MATERIALIZED (
    SELECT max(p.position) AS position
      FROM page p
     WHERE EXISTS (SELECT FROM {schema}.events h WHERE h.position = $1 AND h.id = $2)
), moved AS (
    UPDATE {schema}.high_water h
       SET position = t.position,
           settled_at = clock_timestamp()
      FROM target t, durable d
     WHERE h.position < t.position
    RETURNING h.position
), recorded AS (
    INSERT INTO {schema}.gaps (first, last, kind, watched, proof)
    SELECT p.before + 1, p.position - 1, $4, $4 = 'forced',
           $5::jsonb || CASE WHEN $4 = 'forced' THEN jsonb_build_object('shards', (
               SELECT coalesce(jsonb_agg(s.name ORDER BY s.name), '[]'::jsonb)
                 FROM {schema}.shards s
                WHERE s.position < p.before + 1)) ELSE '{}'::jsonb END
      FROM page p
     WHERE p.position > p.before + 1
       AND EXISTS (SELECT FROM moved)
        ON CONFLICT (first) DO NOTHING
    RETURNING first, last
)
SELECT coalesce((SELECT v.position FROM moved v), (SELECT m.position FROM {schema}.high_water m)) AS position,
       EXISTS (SELECT FROM moved) AS moved,
       (SELECT count(*) FROM recorded) AS gaps,
       coalesce((SELECT sum(r.last - r.first + 1)::bigint FROM recorded r), 0) AS numbers,
       CASE WHEN $4 = 'forced' THEN ARRAY(
           SELECT c.label FROM {schema}.slicings c
            WHERE c.build IS NULL
              AND NOT EXISTS (SELECT FROM {schema}.lifecycles k WHERE k.label = c.label AND k.lifecycle <> 'async')
            ORDER BY c.label) ELSE '{}' END AS labels;
