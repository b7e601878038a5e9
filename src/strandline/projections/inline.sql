-- Inline projections; used by inline.py.

-- name: take_part(labels text[], turns text[]) :many
-- Those of the labels that appends bring up to date, still; the others are kept by nodes by now, or retired. Until the
-- transaction ends none of that changes, since who changes it locks the table in EXCLUSIVE mode: FOR SHARE takes ROW
-- SHARE on the table before the statement gets its snapshot, so what it reads holds. A transaction with an older
-- snapshot locks the rows too: they may have changed since, which is an error then.
-- Waits for other appends to those among turns; in one order for everybody, and held until the transaction ends.
WITH frozen AS MATERIALIZED (
    SELECT l.label
      FROM {schema}.lifecycles l
     WHERE l.label = ANY ($1) AND current_setting('transaction_isolation') <> 'read committed'
       FOR SHARE OF l
), inline AS MATERIALIZED (
    SELECT u.label
      FROM unnest($1::text[]) AS u(label)
      LEFT JOIN {schema}.lifecycles l ON l.label = u.label
     WHERE coalesce(l.lifecycle, 'inline') = 'inline' AND (SELECT count(*) FROM frozen) >= 0
     ORDER BY u.label COLLATE "C"
)
SELECT i.label
  FROM inline i
 WHERE CASE WHEN i.label = ANY ($2)
            THEN pg_advisory_xact_lock(hashtextextended('strandline inline ' || i.label, 0)) IS NOT NULL
            ELSE true END;

-- name: appended_rows(tenant text, stream text, after bigint, up_to bigint) :many
-- What an append of this transaction wrote, with positions.
-- plan: events_stream_version_key
SELECT position, tenant, stream, version, type, data::text AS data, recorded_at, id, metadata::text AS metadata
  FROM {schema}.events
 WHERE tenant = $1 AND stream = $2 AND version > $3 AND version <= $4
 ORDER BY version;
