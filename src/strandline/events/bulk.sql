-- Import by COPY; used by bulk.py.

-- name: extend_streams(streams text) :many
-- Locks the streams in one order for everybody and moves their versions: the lock that the
-- high-water proof reads, before any position is drawn. An archived stream has no row here.
INSERT INTO {schema}.streams AS s (tenant, id, type, version, expected)
SELECT r->>0, r->>1, r->>2, (r->>3)::bigint, -1
  FROM jsonb_array_elements($1::text::jsonb) AS u(r)
 ORDER BY r->>0, r->>1
ON CONFLICT (tenant, id) DO UPDATE
   SET version = s.version + excluded.version, expected = -1, type = coalesce(s.type, excluded.type)
 WHERE s.archived_at IS NULL
RETURNING s.tenant, s.id, s.version, clock_timestamp() AS now;
