-- What happened in the cluster, for people; used by log.py. Nothing is decided from it.

-- name: write_log(kind text, node uuid, name text, work text, epoch bigint, detail text) :none
INSERT INTO {schema}.node_log (kind, node, name, work, epoch, detail)
VALUES ($1, $2, $3, $4, $5, $6::text::jsonb);

-- name: read_log(most bigint, node uuid, name text, work text, kinds text[], after bigint) :many
-- The newest first. A parameter that is NULL does not matter.
-- plan: node_log_pkey
SELECT l.id, l.at, l.kind, l.node, l.name, l.work, l.epoch, l.detail::text AS detail
  FROM {schema}.node_log l
 WHERE l.id > $6
   AND ($2::uuid IS NULL OR l.node = $2)
   AND ($3::text IS NULL OR l.name = $3)
   AND ($4::text IS NULL OR l.work = $4 OR l.detail->'work' ? $4)
   AND ($5::text[] IS NULL OR l.kind = ANY ($5))
 ORDER BY l.id DESC
 LIMIT $1;

-- name: prune_log(age double precision, keep bigint, most bigint) :one
-- Deletes at most so many of the oldest entries: those older than age, and those beyond the newest keep.
-- plan: node_log_pkey
WITH oldest AS (
    SELECT l.id, l.at FROM {schema}.node_log l ORDER BY l.id LIMIT $3
), pruned AS (
    DELETE FROM {schema}.node_log l
     USING oldest o
     WHERE l.id = o.id
       AND (o.at < clock_timestamp() - make_interval(secs => $1)
            OR o.id <= (SELECT k.id FROM {schema}.node_log k ORDER BY k.id DESC OFFSET $2 LIMIT 1))
    RETURNING l.id
)
SELECT count(*)::int AS rows FROM pruned;
