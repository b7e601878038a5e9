-- How far shards are, for people and for waiting; used by progress.py.

-- name: shard_progress(names text[]) :many
-- One row for each name, also for a shard that never ran. waiting_since is when the oldest event
-- beyond the checkpoint was recorded: lag in seconds that does not depend on any rate.
SELECT n.name, s.position, s.epoch, s.owner, t.state, t.node, t.reason, t.failure::text AS failure,
       CASE WHEN t.changed_at > clock_timestamp() - interval '10 seconds' THEN t.rate ELSE 0 END AS rate,
       t.changed_at, e.recorded_at AS waiting_since
  FROM unnest($1::text[]) AS n(name)
  LEFT JOIN {schema}.shards s ON s.name = n.name
  LEFT JOIN {schema}.shard_status t ON t.name = n.name
  LEFT JOIN LATERAL (
       SELECT recorded_at FROM {schema}.events
        WHERE position > coalesce(s.position, 0)
        ORDER BY position LIMIT 1) AS e ON true
 ORDER BY n.name;

-- name: all_shards() :many
SELECT name, position, epoch, owner, claimed_at FROM {schema}.shards ORDER BY name;
