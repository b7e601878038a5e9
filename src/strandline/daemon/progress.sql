-- How far shards are, for people and for waiting; used by progress.py.

-- name: shard_progress(labels text[]) :many
-- One row for each shard that a label is cut into, also for one that never ran. A label that no node has declared
-- yet counts as one shard. waiting_since is when the oldest event beyond the checkpoint was recorded: lag in seconds
-- that does not depend on any rate.
WITH cut AS (
    SELECT l.label, coalesce(c.parts, 1) AS parts, coalesce(c.wanted, c.parts, 1) AS wanted
      FROM unnest($1::text[]) AS l(label)
      LEFT JOIN {schema}.slicings c ON c.label = l.label
     WHERE NOT EXISTS (SELECT FROM {schema}.lifecycles k WHERE k.label = l.label AND k.lifecycle = 'retired')
)
SELECT c.label, c.label || CASE WHEN c.parts = 1 THEN ':all' ELSE ':' || n || '/' || c.parts END AS name,
       c.wanted, CASE WHEN s.claimed_at IS NOT NULL THEN s.position END AS position,
       CASE WHEN s.claimed_at IS NOT NULL THEN s.epoch END AS epoch, s.owner, s.seal,
       t.state, t.node, t.reason, t.failure::text AS failure,
       CASE WHEN t.changed_at > clock_timestamp() - interval '10 seconds' THEN t.rate ELSE 0 END AS rate,
       t.changed_at, e.recorded_at AS waiting_since, t.category, t.phase,
       coalesce(t.attempts, 0) AS attempts, coalesce(t.pauses, 0) AS pauses, t.next_at
  FROM cut c
 CROSS JOIN LATERAL generate_series(1, c.parts) AS n
  LEFT JOIN {schema}.shards s
    ON s.name = c.label || CASE WHEN c.parts = 1 THEN ':all' ELSE ':' || n || '/' || c.parts END
  LEFT JOIN {schema}.shard_status t
    ON t.name = c.label || CASE WHEN c.parts = 1 THEN ':all' ELSE ':' || n || '/' || c.parts END
  LEFT JOIN LATERAL (
       SELECT recorded_at FROM {schema}.events
        WHERE position > coalesce(s.position, 0)
        ORDER BY position LIMIT 1) AS e ON true
 ORDER BY c.label, n;

-- name: positions_of_labels(labels text[]) :many
-- Where each shard stands that a label is cut into now: one snapshot, so that nobody sees a cut half done. position
-- is NULL for a shard without a checkpoint. OFFSET 0 keeps it to one look-up a label and a shard.
-- Nobody waits for a label that is retired: it has no row.
-- plan: shards_pkey
SELECT l.label, n.name, s.position
  FROM unnest($1::text[]) AS l(label)
 CROSS JOIN LATERAL (
       SELECT coalesce((SELECT c.parts FROM {schema}.slicings c WHERE c.label = l.label), 1) AS parts OFFSET 0) AS c
 CROSS JOIN LATERAL (
       SELECT l.label || CASE WHEN c.parts > 1 THEN ':' || i || '/' || c.parts ELSE ':all' END AS name
         FROM generate_series(1, c.parts) AS i OFFSET 0) AS n
  LEFT JOIN LATERAL (SELECT h.position FROM {schema}.shards h WHERE h.name = n.name OFFSET 0) AS s ON true
 WHERE NOT EXISTS (SELECT FROM {schema}.lifecycles k WHERE k.label = l.label AND k.lifecycle = 'retired');

-- name: all_shards() :many
SELECT name, position, epoch, owner, claimed_at FROM {schema}.shards ORDER BY name;
