-- Appending; used by append.py and group.py. The order rules live in the SQL functions.

-- name: append_batch(batch text) :many
-- Items of one stream each, each with its own outcome.
SELECT item, outcome, version, position FROM {schema}.append_batch($1);

-- name: append_together(batch text) :many
-- All items or none.
SELECT item, outcome, version, position FROM {schema}.append_together($1);

-- name: refused_streams(tenants text[], streams text[]) :many
-- What the streams that refused an append are like; a stream that does not exist has no row.
-- plan: streams_pkey
SELECT s.tenant, s.id, s.version, s.archived_at IS NOT NULL AS is_archived
  FROM unnest($1::text[], $2::text[]) AS u(tenant, id)
  JOIN {schema}.streams s ON s.tenant = u.tenant AND s.id = u.id;

-- name: stored_events(ids uuid[], tenant text) :many
-- Which of these ids are stored, and where.
-- plan: events_id_key
SELECT id, stream, version, position FROM {schema}.events WHERE id = ANY ($1) AND tenant = $2;
