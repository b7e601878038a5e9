-- Sending the shards of a subscription to another position; used by rewinding.py.

-- name: first_event_since(after bigint, up_to bigint, since timestamptz) :one
-- The first event of these positions that was recorded then or later. No row: there is none.
-- plan: events_pkey
SELECT position
  FROM {schema}.events
 WHERE position > $1 AND position <= $2 AND recorded_at >= $3
 ORDER BY position
 LIMIT 1;

-- name: rewind_shards(label text, position bigint, channel text) :one
-- All shards to one position, under a new epoch, without an owner and a seal: whoever runs them now is refused, and
-- claims them anew. Open letters beyond it are superseded: their events come again. Hold its row of slicings and its
-- shards first. Who runs the shards is told.
WITH moved AS (
    UPDATE {schema}.shards
       SET position = $2, epoch = epoch + 1, owner = NULL, seal = NULL
     WHERE left(name, -strpos(reverse(name), ':')) = $1
    RETURNING name
), beyond AS MATERIALIZED (
    SELECT d.id
      FROM {schema}.dead_letters d, (SELECT count(*) FROM moved) AS m
     WHERE d.label = $1 AND d.position > $2 AND d.status IN ('parked', 'skipped')
     ORDER BY d.label, d.tenant, d.key, d.position
       FOR UPDATE OF d
), superseded AS (
    UPDATE {schema}.dead_letters d
       SET status = 'superseded', retry_at = NULL, closed_at = clock_timestamp()
      FROM beyond b
     WHERE d.id = b.id
    RETURNING d.id
), told AS MATERIALIZED (
    SELECT pg_notify($3, $1) IS NOT NULL AS told
)
SELECT $2 AS position, (SELECT count(*) FROM moved) AS shards, (SELECT count(*) FROM superseded) AS letters FROM told;

-- name: unowned_shards(names text[]) :many
-- Those of them that were taken from their owner: rewound, or to be read anew for another reason.
-- plan: shards_pkey
SELECT name FROM {schema}.shards WHERE name = ANY ($1) AND owner IS NULL;
