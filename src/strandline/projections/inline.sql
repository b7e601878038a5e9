-- Inline projections; used by inline.py.

-- name: take_turns(projection text) :none
-- Waits for other appends to the same projection; held until the transaction ends.
SELECT pg_advisory_xact_lock(hashtextextended('strandline inline ' || $1, 0));

-- name: appended_rows(tenant text, stream text, after bigint, up_to bigint) :many
-- What an append of this transaction wrote, with positions.
-- plan: events_stream_version_key
SELECT position, tenant, stream, version, type, data::text AS data, recorded_at, id, metadata::text AS metadata
  FROM {schema}.events
 WHERE tenant = $1 AND stream = $2 AND version > $3 AND version <= $4
 ORDER BY version;

-- name: begin_append() :none
-- Inside somebody's transaction: an append that an inline projection refuses must leave nothing behind.
SAVEPOINT strandline_append;

-- name: undo_append() :none
ROLLBACK TO SAVEPOINT strandline_append; RELEASE SAVEPOINT strandline_append;

-- name: keep_append() :none
RELEASE SAVEPOINT strandline_append;
