-- Looking at the log as it is stored, without knowing any event class; used by inspect.py.

-- name: log_extent() :one
-- The server's time, the mark, and the highest visible position.
SELECT clock_timestamp() AS now, m.position AS mark, m.settled_at,
       coalesce((SELECT e.position FROM {schema}.events e ORDER BY e.position DESC LIMIT 1), 0) AS highest
  FROM {schema}.high_water m;

-- name: list_streams(after_tenant text, after_id text, most bigint, type text) :many
-- Streams after that key, in order of tenant and id; $4 NULL: of any type.
-- plan: streams_pkey
SELECT s.tenant, s.id, s.type, s.version, s.created_at, s.archived_at
  FROM {schema}.streams s
 WHERE (s.tenant, s.id) > ($1, $2)
   AND ($4::text IS NULL OR s.type = $4)
 ORDER BY s.tenant, s.id
 LIMIT $3;

-- name: list_streams_of_tenant(tenant text, after_id text, most bigint, type text) :many
-- The same for one tenant.
-- plan: streams_pkey
SELECT s.tenant, s.id, s.type, s.version, s.created_at, s.archived_at
  FROM {schema}.streams s
 WHERE s.tenant = $1 AND s.id > $2
   AND ($4::text IS NULL OR s.type = $4)
 ORDER BY s.id
 LIMIT $3;

-- name: tenants_of_stream(stream text, most bigint) :many
-- Which tenants have a stream of that id. Walks from tenant to tenant, one probe of the index each.
WITH RECURSIVE walk(tenant) AS (
    (SELECT s.tenant FROM {schema}.streams s ORDER BY s.tenant LIMIT 1)
    UNION ALL
    SELECT (SELECT s.tenant FROM {schema}.streams s WHERE s.tenant > w.tenant ORDER BY s.tenant LIMIT 1)
      FROM walk w
     WHERE w.tenant IS NOT NULL
)
SELECT w.tenant
  FROM walk w
 WHERE EXISTS (SELECT FROM {schema}.streams s WHERE s.tenant = w.tenant AND s.id = $1)
 LIMIT $2;

-- name: positions_of_id(id uuid) :many
-- One row for each tenant that has the id.
-- plan: events_id_key
SELECT e.position
  FROM {schema}.events e
 WHERE e.id = $1
 ORDER BY e.position;

-- name: count_types(after bigint, up_to bigint) :many
-- How many events of each type lie in $1 < position <= $2.
-- plan: events_pkey
SELECT e.type, count(*) AS events, min(e.position) AS first, max(e.position) AS last
  FROM {schema}.events e
 WHERE e.position > $1 AND e.position <= $2
 GROUP BY e.type;

-- name: position_sequence() :one
-- The sequence of positions: CACHE above 1 would break the proof of the high-water mark.
SELECT q.seqcache AS cache, q.seqincrement AS increment, q.seqcycle AS cycles
  FROM pg_sequence q
 WHERE q.seqrelid = pg_get_serial_sequence($q${schema}.events$q$, 'position')::regclass;
