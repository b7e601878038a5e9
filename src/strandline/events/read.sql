-- Reading streams and the log; used by read.py. {order} is ASC or DESC.

-- name: read_stream(tenant text, stream text, first bigint, last bigint, as_of timestamptz, most bigint) :many
-- plan: events_stream_version_key
SELECT data::text AS data, type, stream, version, position, tenant, recorded_at, id, metadata::text AS raw_metadata
  FROM {schema}.events
 WHERE tenant = $1 AND stream = $2 AND version >= $3 AND version <= $4
   AND ($5::timestamptz IS NULL OR recorded_at <= $5)
 ORDER BY version {order}
 LIMIT $6;

-- name: read_page(after bigint, up_to bigint, most bigint, types text[], stream_type text, tenant text) :many
-- Positions in (after, up_to]; a NULL filter lets everything pass.
-- plan: events_pkey
SELECT e.data::text AS data, e.type, e.stream, e.version, e.position, e.tenant, e.recorded_at, e.id, e.metadata::text AS raw_metadata
  FROM {schema}.events e
 WHERE e.position > $1 AND e.position <= $2
   AND ($4::text[] IS NULL OR e.type = ANY ($4))
   AND ($6::text IS NULL OR e.tenant = $6)
   AND ($5::text IS NULL OR EXISTS (
        SELECT FROM {schema}.streams s WHERE s.tenant = e.tenant AND s.id = e.stream AND s.type = $5))
 ORDER BY e.position {order}
 LIMIT $3;

-- name: event_by_id(id uuid, tenant text) :one
-- plan: events_id_key
SELECT data::text AS data, type, stream, version, position, tenant, recorded_at, id, metadata::text AS raw_metadata
  FROM {schema}.events WHERE id = $1 AND tenant = $2;

-- name: stream_state(tenant text, stream text) :one
-- plan: streams_pkey
SELECT tenant, id, type, version, created_at, archived_at FROM {schema}.streams WHERE tenant = $1 AND id = $2;

-- name: archive_stream(tenant text, stream text) :one
-- No row: there is no such stream. Archiving twice keeps the first time.
-- plan: streams_pkey
UPDATE {schema}.streams SET archived_at = coalesce(archived_at, clock_timestamp())
 WHERE tenant = $1 AND id = $2
RETURNING tenant, id, type, version, created_at, archived_at;

-- name: unarchive_stream(tenant text, stream text) :one
-- No row: there is no such stream.
-- plan: streams_pkey
UPDATE {schema}.streams SET archived_at = NULL
 WHERE tenant = $1 AND id = $2
RETURNING tenant, id, type, version, created_at, archived_at;
