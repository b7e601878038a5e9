-- Pages of events for agents; used by feed.py.

-- name: shared_page(after bigint, up_to bigint, most bigint) :many
-- plan: events_pkey
SELECT position, tenant, stream, version, type, data::text AS data, recorded_at, id, metadata::text AS metadata
  FROM {schema}.events
 WHERE position > $1 AND position <= $2
 ORDER BY position
 LIMIT $3;

-- name: lean_page(after bigint, up_to bigint, most bigint, types text[]) :many
-- Without what only envelopes need: a third less to send and to decode.
-- plan: events_pkey
SELECT position, tenant, stream, version, type, data::text AS data
  FROM {schema}.events
 WHERE position > $1 AND position <= $2 AND type = ANY ($4)
 ORDER BY position
 LIMIT $3;

-- name: full_page(after bigint, up_to bigint, most bigint, types text[]) :many
-- plan: events_pkey
SELECT position, tenant, stream, version, type, data::text AS data, recorded_at, id, metadata::text AS metadata
  FROM {schema}.events
 WHERE position > $1 AND position <= $2 AND type = ANY ($4)
 ORDER BY position
 LIMIT $3;
