-- Pages of events for agents; used by feed.py.
-- A stream's slice is hashtextextended(stream, hashtextextended(tenant, 0)) without its sign, modulo the number
-- of slices. Checkpoints depend on that expression: it may never change.

-- name: shared_page(after bigint, up_to bigint, most bigint) :many
-- plan: events_pkey
SELECT position, tenant, stream, version, type, data::text AS data, recorded_at, id, metadata::text AS metadata
  FROM {schema}.events
 WHERE position > $1 AND position <= $2
 ORDER BY position
 LIMIT $3;

-- name: shared_page_to_cut(after bigint, up_to bigint, most bigint) :many
-- The same with what slices are told apart by: 0.07 µs an event, where each slice asking for itself costs a
-- round trip, and a look at all events of the others.
-- plan: events_pkey
SELECT position, tenant, stream, version, type, data::text AS data, recorded_at, id, metadata::text AS metadata,
       hashtextextended(stream, hashtextextended(tenant, 0)) & 9223372036854775807 AS hash
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

-- name: traced_page(after bigint, up_to bigint, most bigint, types text[]) :many
-- lean_page while spans are made: with the metadata of events that say which trace they belong to, and when
-- that was. The others have neither: a moment takes the client longer to read than all else of a row.
-- plan: events_pkey
SELECT position, tenant, stream, version, type, data::text AS data,
       CASE WHEN metadata ? 'traceparent' THEN recorded_at END AS recorded_at, NULL::uuid AS id,
       CASE WHEN metadata ? 'traceparent' THEN metadata::text END AS metadata
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

-- name: sliced_page(after bigint, up_to bigint, most bigint, part integer, parts bigint) :many
-- Of one slice (part from 1). coalesce changes nothing but the planner's guess: a half of the events instead
-- of one in 200, for which it would sort the whole range.
-- plan: events_pkey
SELECT position, tenant, stream, version, type, data::text AS data, recorded_at, id, metadata::text AS metadata
  FROM {schema}.events
 WHERE position > $1 AND position <= $2
   AND coalesce((hashtextextended(stream, hashtextextended(tenant, 0)) & 9223372036854775807) % $5 = $4 - 1, false)
 ORDER BY position
 LIMIT $3;

-- name: sliced_lean_page(after bigint, up_to bigint, most bigint, part integer, parts bigint, types text[]) :many
-- plan: events_pkey
SELECT position, tenant, stream, version, type, data::text AS data
  FROM {schema}.events
 WHERE position > $1 AND position <= $2 AND type = ANY ($6)
   AND coalesce((hashtextextended(stream, hashtextextended(tenant, 0)) & 9223372036854775807) % $5 = $4 - 1, false)
 ORDER BY position
 LIMIT $3;

-- name: sliced_traced_page(after bigint, up_to bigint, most bigint, part integer, parts bigint, types text[]) :many
-- sliced_lean_page while spans are made: see traced_page.
-- plan: events_pkey
SELECT position, tenant, stream, version, type, data::text AS data,
       CASE WHEN metadata ? 'traceparent' THEN recorded_at END AS recorded_at, NULL::uuid AS id,
       CASE WHEN metadata ? 'traceparent' THEN metadata::text END AS metadata
  FROM {schema}.events
 WHERE position > $1 AND position <= $2 AND type = ANY ($6)
   AND coalesce((hashtextextended(stream, hashtextextended(tenant, 0)) & 9223372036854775807) % $5 = $4 - 1, false)
 ORDER BY position
 LIMIT $3;

-- name: sliced_full_page(after bigint, up_to bigint, most bigint, part integer, parts bigint, types text[]) :many
-- plan: events_pkey
SELECT position, tenant, stream, version, type, data::text AS data, recorded_at, id, metadata::text AS metadata
  FROM {schema}.events
 WHERE position > $1 AND position <= $2 AND type = ANY ($6)
   AND coalesce((hashtextextended(stream, hashtextextended(tenant, 0)) & 9223372036854775807) % $5 = $4 - 1, false)
 ORDER BY position
 LIMIT $3;

-- name: page_of_tenant(after bigint, up_to bigint, most bigint, part integer, parts bigint, types text[], tenant text) :many
-- Of one tenant; of all types where types is NULL. Nothing leads to a tenant's events: all are looked at.
-- plan: events_pkey
SELECT position, tenant, stream, version, type, data::text AS data, recorded_at, id, metadata::text AS metadata
  FROM {schema}.events
 WHERE position > $1 AND position <= $2
   AND coalesce(tenant = $7 AND ($6::text[] IS NULL OR type = ANY ($6)), false)
   AND coalesce((hashtextextended(stream, hashtextextended(tenant, 0)) & 9223372036854775807) % $5 = $4 - 1, false)
 ORDER BY position
 LIMIT $3;

-- name: page_of_streams(after bigint, up_to bigint, most bigint, part integer, parts bigint, types text[], tenant text, streams text[]) :many
-- Of some streams of one tenant: nothing else is read. OFFSET 0 keeps it to one look-up a stream.
-- plan: events_stream_version_key
SELECT e.position, e.tenant, e.stream, e.version, e.type, e.data::text AS data, e.recorded_at, e.id,
       e.metadata::text AS metadata
  FROM unnest($8::text[]) AS s(stream)
 CROSS JOIN LATERAL (
       SELECT * FROM {schema}.events o
        WHERE o.tenant = $7 AND o.stream = s.stream AND o.position > $1 AND o.position <= $2
          AND ($6::text[] IS NULL OR o.type = ANY ($6))
       OFFSET 0) AS e
 WHERE (hashtextextended(e.stream, hashtextextended(e.tenant, 0)) & 9223372036854775807) % $5 = $4 - 1
 ORDER BY e.position
 LIMIT $3;
