-- What a rebuild would have to do, without doing any of it; used by rebuild_plan.py.

-- name: count_wanted(after bigint, up_to bigint, types text[], tenant text) :one
-- Events of these types in $1 < position <= $2, and those of the tenant among them. NULL: of all types, of all tenants.
-- plan: events_pkey
SELECT count(*) AS events
  FROM {schema}.events e
 WHERE e.position > $1 AND e.position <= $2
   AND ($3::text[] IS NULL OR e.type = ANY ($3))
   AND ($4::text IS NULL OR e.tenant = $4);

-- name: count_of_streams(up_to bigint, types text[], tenant text, streams text[]) :one
-- plan: events_stream_version_key
SELECT count(*) AS events
  FROM unnest($4::text[]) AS s(stream)
 CROSS JOIN LATERAL (
       SELECT o.position, o.type FROM {schema}.events o
        WHERE o.tenant = $3 AND o.stream = s.stream OFFSET 0) AS e
 WHERE e.position <= $1 AND ($2::text[] IS NULL OR e.type = ANY ($2));

-- name: measure_table(tenant text, keys text[]) :one
-- Rows of the tenant under these keys now (NULL: all), and the size of the whole table with its indexes.
SELECT count(*) AS documents, pg_total_relation_size({regclass}::regclass) AS bytes
  FROM {live} d
 WHERE ($1::text IS NULL OR {tenant} = $1) AND ($2::text[] IS NULL OR {key} = ANY ($2));

-- name: count_open_letters(label text, tenant text, keys text[]) :one
-- plan: dead_letters_open_idx
SELECT count(*) AS letters
  FROM {schema}.dead_letters d
 WHERE d.label = $1 AND d.status IN ('parked', 'skipped')
   AND ($2::text IS NULL OR d.tenant = $2) AND ($3::text[] IS NULL OR d.key = ANY ($3));

-- name: last_rate(label text) :one
-- Positions a second of the last build of the whole label that was done. No row: none was.
SELECT (r.target / greatest(extract(epoch FROM r.sealed_at - r.started_at), 0.001))::double precision AS rate
  FROM {schema}.rebuilds r
 WHERE r.label = $1 AND r.scope = '{}' AND r.sealed_at IS NOT NULL AND r.started_at IS NOT NULL AND r.target > 0
 ORDER BY r.number DESC
 LIMIT 1;
