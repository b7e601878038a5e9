-- What operators do with dead letters; used by letter_desk.py. Locks are taken in the order label, tenant, key,
-- position. Filters that are null let everything through; a name without a version stands for all versions.

-- name: list_letters(label text, statuses text[], stream text, fingerprint text, ids bigint[], after bigint, most bigint) :many
SELECT d.id, d.label, d.shard, d.tenant, d.key, d.position, d.stream, d.version, d.type, d.status, d.category,
       d.error::text AS error, d.fingerprint, d.attempts, d.data::text AS data, d.reason, d.retry_at, d.created_at,
       d.failed_at, d.closed_at
  FROM {schema}.dead_letters d
 WHERE ($1::text IS NULL OR d.label = $1 OR split_part(d.label, ':', 1) = $1)
   AND ($2::text[] IS NULL OR d.status = ANY ($2))
   AND ($3::text IS NULL OR d.stream = $3)
   AND ($4::text IS NULL OR d.fingerprint = $4)
   AND ($5::bigint[] IS NULL OR d.id = ANY ($5))
   AND d.id > $6
 ORDER BY d.id
 LIMIT $7;

-- name: group_letters(label text) :many
-- Open letters that have failed themselves, by what they failed of; and how many wait behind them.
SELECT d.label, d.fingerprint, max(d.category) AS category, coalesce(max(d.error->>'class'), '') AS error_class,
       coalesce((array_agg(d.error->>'message' ORDER BY d.failed_at DESC))[1], '') AS message, max(d.type) AS type,
       count(*) AS count, min(d.created_at) AS first_at, max(d.failed_at) AS last_at, max(d.id) AS example
  FROM {schema}.dead_letters d
 WHERE d.status IN ('parked', 'skipped') AND d.category IS NOT NULL
   AND ($1::text IS NULL OR d.label = $1 OR split_part(d.label, ':', 1) = $1)
 GROUP BY d.label, d.fingerprint
 ORDER BY count(*) DESC, d.label, d.fingerprint;

-- name: ask_for_parked(label text, stream text, fingerprint text, ids bigint[]) :one
-- The first letter of each parked key that has one of these; the others follow it. How many keys.
WITH chosen AS MATERIALIZED (
    SELECT DISTINCT d.label, d.tenant, d.key
      FROM {schema}.dead_letters d
     WHERE d.status = 'parked'
       AND ($1::text IS NULL OR d.label = $1 OR split_part(d.label, ':', 1) = $1)
       AND ($2::text IS NULL OR d.stream = $2)
       AND ($3::text IS NULL OR d.fingerprint = $3)
       AND ($4::bigint[] IS NULL OR d.id = ANY ($4))
     ORDER BY d.label, d.tenant, d.key
), first AS MATERIALIZED (
    SELECT f.id
      FROM chosen c
     CROSS JOIN LATERAL (
           SELECT o.id
             FROM {schema}.dead_letters o
            WHERE o.label = c.label AND o.tenant = c.tenant AND o.key = c.key AND o.status = 'parked'
            ORDER BY o.position
            LIMIT 1
              FOR UPDATE) f
), asked AS (
    UPDATE {schema}.dead_letters d
       SET retry_at = clock_timestamp()
      FROM first f
     WHERE d.id = f.id
    RETURNING d.id
)
SELECT count(*) AS count FROM asked;

-- name: ask_for_places(label text, shard text, tenants text[], keys text[], positions bigint[]) :one
-- The first letters of parked keys; where a position is given, the shard's open letter of that one event. How many.
-- plan: dead_letters_open_idx
WITH given AS MATERIALIZED (
    SELECT DISTINCT k.tenant, k.key, k.position
      FROM unnest($3::text[], $4::text[], $5::bigint[]) AS k(tenant, key, position)
     ORDER BY k.tenant, k.key, k.position
), first AS MATERIALIZED (
    SELECT f.id
      FROM given g
     CROSS JOIN LATERAL (
           SELECT o.id
             FROM {schema}.dead_letters o
            WHERE o.label = $1 AND o.tenant = g.tenant AND o.key = g.key AND o.status IN ('parked', 'skipped')
              AND (g.position = 0 AND o.status = 'parked' OR o.position = g.position AND o.shard = $2)
            ORDER BY o.position
            LIMIT 1
              FOR UPDATE) f
), asked AS (
    UPDATE {schema}.dead_letters d
       SET retry_at = clock_timestamp()
      FROM first f
     WHERE d.id = f.id
    RETURNING d.id
)
SELECT count(*) AS count FROM asked;

-- name: ask_for_skipped(ids bigint[]) :one
-- Letters that nothing waits for. How many.
-- plan: dead_letters_pkey
WITH held AS MATERIALIZED (
    SELECT d.id
      FROM {schema}.dead_letters d
     WHERE d.id = ANY ($1) AND d.status = 'skipped'
     ORDER BY d.label, d.tenant, d.key, d.position
       FOR UPDATE
), asked AS (
    UPDATE {schema}.dead_letters d
       SET retry_at = clock_timestamp()
      FROM held h
     WHERE d.id = h.id
    RETURNING d.id
)
SELECT count(*) AS count FROM asked;

-- name: hold_letters(ids bigint[]) :one
-- Of each key concerned the first letter, then these letters: so of two that discard at once the second sees what the
-- first has left. How many are held.
-- plan: dead_letters_pkey
WITH concerned AS MATERIALIZED (
    SELECT d.label, d.tenant, d.key, array_agg(d.id) AS ids
      FROM {schema}.dead_letters d
     WHERE d.id = ANY ($1) AND d.status IN ('parked', 'skipped')
     GROUP BY d.label, d.tenant, d.key
     ORDER BY d.label, d.tenant, d.key
)
SELECT count(f.id) + count(h.id) AS count
  FROM concerned c
  LEFT JOIN LATERAL (
       SELECT o.id
         FROM {schema}.dead_letters o
        WHERE o.label = c.label AND o.tenant = c.tenant AND o.key = c.key AND o.status = 'parked'
        ORDER BY o.position
        LIMIT 1
          FOR UPDATE) f ON true
  LEFT JOIN LATERAL (
       SELECT d.id
         FROM {schema}.dead_letters d
        WHERE d.id = ANY (c.ids)
        ORDER BY d.position
          FOR UPDATE) h ON true;

-- name: discard_letters(ids bigint[], reason text) :many
-- Open letters, held; the keys that they were parked for, and how many there were of each.
-- plan: dead_letters_pkey
WITH held AS MATERIALIZED (
    SELECT d.id, d.label, d.tenant, d.key
      FROM {schema}.dead_letters d
     WHERE d.id = ANY ($1) AND d.status IN ('parked', 'skipped')
     ORDER BY d.label, d.tenant, d.key, d.position
       FOR UPDATE
), gone AS (
    UPDATE {schema}.dead_letters d
       SET status = 'discarded', reason = $2, closed_at = clock_timestamp(), retry_at = NULL
      FROM held h
     WHERE d.id = h.id
    RETURNING d.id
)
SELECT h.label, h.tenant, h.key, count(*) AS count
  FROM held h
  JOIN gone USING (id)
 GROUP BY h.label, h.tenant, h.key
 ORDER BY h.label, h.tenant, h.key;

-- name: wake_keys(labels text[], tenants text[], keys text[]) :none
-- The first letters of these keys, where they have not failed themselves. A statement of its own, after the one that
-- has taken a first letter away: it must see what the shard's owner has written behind that one meanwhile.
WITH first AS MATERIALIZED (
    SELECT f.id
      FROM unnest($1::text[], $2::text[], $3::text[]) AS k(label, tenant, key)
     CROSS JOIN LATERAL (
           SELECT o.id, o.category
             FROM {schema}.dead_letters o
            WHERE o.label = k.label AND o.tenant = k.tenant AND o.key = k.key AND o.status = 'parked'
            ORDER BY o.position
            LIMIT 1) f
     WHERE f.category IS NULL
)
UPDATE {schema}.dead_letters d
   SET retry_at = clock_timestamp()
  FROM first f
 WHERE d.id = f.id AND d.status = 'parked';

-- name: edit_letter(id bigint, data text, reason text) :many
-- It, and those that other slices have of the same event, where nobody knows its key. No row: it is not open (any more).
-- plan: dead_letters_pkey
WITH held AS MATERIALIZED (
    SELECT d.id
      FROM {schema}.dead_letters o
      JOIN {schema}.dead_letters d
        ON d.label = o.label AND d.tenant = o.tenant AND d.key = o.key AND d.position = o.position
     WHERE o.id = $1 AND o.status IN ('parked', 'skipped') AND d.status IN ('parked', 'skipped')
     ORDER BY d.id
       FOR UPDATE OF d
)
UPDATE {schema}.dead_letters d
   SET data = $2::text::jsonb, reason = $3, attempts = 0
  FROM held h
 WHERE d.id = h.id
RETURNING d.id;

-- name: resolve_letters(ids bigint[], reason text) :one
-- Letters of which a rebuild has taken care; those that it has closed itself are not counted.
-- plan: dead_letters_pkey
WITH held AS MATERIALIZED (
    SELECT d.id
      FROM {schema}.dead_letters d
     WHERE d.id = ANY ($1) AND d.status = 'skipped'
     ORDER BY d.label, d.tenant, d.key, d.position
       FOR UPDATE
), closed AS (
    UPDATE {schema}.dead_letters d
       SET status = 'resolved', reason = $2, closed_at = clock_timestamp(), retry_at = NULL
      FROM held h
     WHERE d.id = h.id
    RETURNING d.id
)
SELECT count(*) AS count FROM closed;

-- name: letter_rows(ids bigint[]) :many
-- The events of these letters.
-- plan: dead_letters_pkey
SELECT d.id, e.position, e.tenant, e.stream, e.version, e.type, e.data::text AS data, e.recorded_at, e.id AS event,
       e.metadata::text AS metadata
  FROM {schema}.dead_letters d
  JOIN {schema}.events e ON e.position = d.position
 WHERE d.id = ANY ($1)
 ORDER BY d.id;

-- name: tell_of_letters(channel text) :none
SELECT pg_notify($1, '');
