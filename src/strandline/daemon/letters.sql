-- Dead letters: written and closed by the owner of a shard in the transaction that moves its checkpoint, asked for by
-- operators; used by letters.py. Whoever changes several rows takes them in the order label, tenant, key, position.
--
-- A key is due when its first parked letter is: somebody asked for it, or it has not failed itself. retry_at of that
-- first letter says so; whatever makes a letter the first of its key sets it.

-- name: parked_keys(label text) :many
-- What waits, and whether nobody would ever try it: its first letter has not failed itself and is not asked for, e.g.
-- taken over from a rebuild. Steps through the index by a few letters, and beyond all others of the last of their keys.
-- plan: dead_letters_open_idx
WITH RECURSIVE step AS (
    SELECT '{}'::text[] AS tenants, '{}'::text[] AS keys, '{}'::boolean[] AS stuck, '' AS tenant, '' AS key
    UNION ALL
    SELECT n.tenants, n.keys, n.stuck, n.tenants[cardinality(n.tenants)], n.keys[cardinality(n.keys)]
      FROM step s
     CROSS JOIN LATERAL (
           SELECT array_agg(f.tenant ORDER BY f.tenant, f.key) AS tenants,
                  array_agg(f.key ORDER BY f.tenant, f.key) AS keys,
                  array_agg(f.category IS NULL AND f.retry_at IS NULL ORDER BY f.tenant, f.key) AS stuck
             FROM (SELECT DISTINCT ON (l.tenant, l.key) l.tenant, l.key, l.category, l.retry_at
                     FROM (SELECT d.tenant, d.key, d.position, d.category, d.retry_at
                             FROM {schema}.dead_letters d
                            WHERE d.label = $1 AND d.status = 'parked' AND (d.tenant, d.key) > (s.tenant, s.key)
                            ORDER BY d.tenant, d.key, d.position
                            LIMIT 50) l
                    ORDER BY l.tenant, l.key, l.position) f) n
     WHERE n.tenants IS NOT NULL
)
SELECT w.tenant, w.key, w.stuck
  FROM step s
 CROSS JOIN LATERAL unnest(s.tenants, s.keys, s.stuck) AS w(tenant, key, stuck)
 WHERE w.key <> '';

-- name: wake_first_letters(label text, tenants text[], keys text[]) :none
-- The first letters of these keys, where they have not failed themselves and are not asked for.
-- plan: dead_letters_open_idx
WITH given AS MATERIALIZED (
    SELECT tenant, key FROM unnest($2::text[], $3::text[]) AS k(tenant, key) ORDER BY tenant, key
), first AS MATERIALIZED (
    SELECT f.id
      FROM given k
     CROSS JOIN LATERAL (
           SELECT o.id, o.category, o.retry_at
             FROM {schema}.dead_letters o
            WHERE o.label = $1 AND o.tenant = k.tenant AND o.key = k.key AND o.status = 'parked'
            ORDER BY o.position
            LIMIT 1
              FOR UPDATE) f
     WHERE f.category IS NULL AND f.retry_at IS NULL
)
UPDATE {schema}.dead_letters d
   SET retry_at = clock_timestamp()
  FROM first f
 WHERE d.id = f.id;

-- name: write_letters(label text, shard text, letters text) :none
-- A letter that waits holds on to the first of its key, so that nobody discards that one unseen: where it is gone,
-- the new one is the first, and due.
WITH given AS MATERIALIZED (
    SELECT r.*
      FROM jsonb_to_recordset($3::text::jsonb)
        AS r(tenant text, key text, position bigint, stream text, version bigint, type text, status text, category text,
             error jsonb, fingerprint text, data jsonb)
), waiting AS MATERIALIZED (
    SELECT DISTINCT tenant, key FROM given WHERE category IS NULL AND status = 'parked' ORDER BY tenant, key
), first AS MATERIALIZED (
    SELECT w.tenant, w.key
      FROM waiting w
     CROSS JOIN LATERAL (
           SELECT d.id
             FROM {schema}.dead_letters d
            WHERE d.label = $1 AND d.tenant = w.tenant AND d.key = w.key AND d.status = 'parked'
            ORDER BY d.position
            LIMIT 1
              FOR SHARE) f
)
INSERT INTO {schema}.dead_letters AS d
       (label, shard, tenant, key, position, stream, version, type, status, category, error, fingerprint, attempts, data,
        failed_at, retry_at)
SELECT $1, $2, g.tenant, g.key, g.position, g.stream, g.version, g.type, g.status, g.category, g.error, g.fingerprint,
       CASE WHEN g.category IS NULL THEN 0 ELSE 1 END, g.data,
       CASE WHEN g.category IS NOT NULL THEN clock_timestamp() END,
       CASE WHEN g.category IS NULL AND (g.tenant, g.key) NOT IN (SELECT f.tenant, f.key FROM first f)
            THEN clock_timestamp() END
  FROM given g
 ORDER BY g.tenant, g.key, g.position
ON CONFLICT (label, tenant, key, position, (CASE WHEN key = '' OR right(key, 1) = '/' THEN shard ELSE '' END))
      WHERE status IN ('parked', 'skipped') DO UPDATE
   SET shard = excluded.shard,
       status = excluded.status,
       category = coalesce(excluded.category, d.category),
       error = coalesce(excluded.error, d.error),
       fingerprint = CASE WHEN excluded.category IS NULL THEN d.fingerprint ELSE excluded.fingerprint END,
       attempts = d.attempts + excluded.attempts,
       failed_at = coalesce(excluded.failed_at, d.failed_at),
       retry_at = CASE WHEN excluded.category IS NULL THEN coalesce(d.retry_at, excluded.retry_at) END;

-- name: close_letters(ids bigint[], seen text[]) :one
-- Resolves letters that are open and hold the data they held when they were read, and counts them. Fewer than asked
-- for: somebody has discarded or edited one meanwhile; the caller must roll back.
-- plan: dead_letters_pkey
WITH held AS MATERIALIZED (
    SELECT d.id
      FROM unnest($1::bigint[], $2::text[]) AS s(id, seen)
      JOIN {schema}.dead_letters d ON d.id = s.id
     WHERE d.status IN ('parked', 'skipped') AND coalesce(md5(d.data::text), '') = s.seen
     ORDER BY d.label, d.tenant, d.key, d.position
       FOR UPDATE OF d
), closed AS (
    UPDATE {schema}.dead_letters d
       SET status = 'resolved', closed_at = clock_timestamp(), retry_at = NULL
      FROM held h
     WHERE d.id = h.id
    RETURNING d.id
)
SELECT count(*) AS count FROM closed;

-- name: fail_letter(id bigint, seen text, asked timestamptz, category text, error text, fingerprint text) :none
-- It was tried again and failed again. Somebody who asked for it once more meanwhile is not forgotten.
-- plan: dead_letters_pkey
UPDATE {schema}.dead_letters d
   SET attempts = d.attempts + 1, category = $4, error = $5::text::jsonb, fingerprint = $6,
       failed_at = clock_timestamp(), retry_at = CASE WHEN d.retry_at IS NOT DISTINCT FROM $3 THEN NULL ELSE d.retry_at END
 WHERE d.id = $1 AND d.status IN ('parked', 'skipped') AND coalesce(md5(d.data::text), '') = $2;

-- name: due_labels(labels text[]) :many
-- Labels with letters that somebody has asked for.
-- plan: dead_letters_due_idx
SELECT l.label
  FROM unnest($1::text[]) AS l(label)
 WHERE EXISTS (SELECT FROM {schema}.dead_letters d WHERE d.label = l.label AND d.retry_at IS NOT NULL);

-- name: due_letters(label text, after bigint, most bigint) :many
-- Letters that are asked for, in the order of their ids, and whether their key is due. hash tells the slice of a
-- stream.
-- plan: dead_letters_due_idx
SELECT d.id, d.tenant, d.key, d.status,
       hashtextextended(d.stream, hashtextextended(d.tenant, 0)) & 9223372036854775807 AS hash,
       coalesce(d.status <> 'parked' OR d.key = '' OR f.category IS NULL OR f.retry_at IS NOT NULL, false) AS is_due
  FROM (SELECT l.id, l.label, l.tenant, l.key, l.stream, l.status
          FROM {schema}.dead_letters l
         WHERE l.label = $1 AND l.retry_at IS NOT NULL AND l.id > $2
         ORDER BY l.id
         LIMIT $3) d
  LEFT JOIN LATERAL (
       SELECT o.category, o.retry_at
         FROM {schema}.dead_letters o
        WHERE o.label = d.label AND o.tenant = d.tenant AND o.key = d.key AND o.status = 'parked'
        ORDER BY o.position
        LIMIT 1) f ON true
 ORDER BY d.id;

-- name: first_letters(label text, tenants text[], keys text[], most bigint) :many
-- The first parked letters of some keys, in the order of their positions: of each key those that come first.
-- plan: dead_letters_open_idx
SELECT d.id, d.tenant, d.key, d.position
  FROM unnest($2::text[], $3::text[]) AS k(tenant, key)
 CROSS JOIN LATERAL (
       SELECT o.id, o.tenant, o.key, o.position
         FROM {schema}.dead_letters o
        WHERE o.label = $1 AND o.tenant = k.tenant AND o.key = k.key AND o.status = 'parked'
        ORDER BY o.position
        LIMIT $4) d
 ORDER BY d.position, d.id
 LIMIT $4;

-- name: letters_to_replay(ids bigint[], bytes bigint) :many
-- These letters with their events, as many of the first as have so much JSON. seen is what close_letters asks for. An
-- event that is not in the log (any more) has no id.
-- plan: dead_letters_pkey
SELECT r.id, r.shard, r.tenant, r.key, r.position, r.stream, r.version, r.type, r.data, r.recorded_at, r.event,
       r.metadata, r.edited, r.seen, r.asked
  FROM (SELECT d.id, d.shard, d.tenant, d.key, d.position, d.stream, d.version, d.type,
               coalesce(d.data, e.data)::text AS data, e.recorded_at, e.id AS event, e.metadata::text AS metadata,
               d.data::text AS edited, coalesce(md5(d.data::text), '') AS seen, d.retry_at AS asked,
               coalesce(sum(octet_length(coalesce(d.data, e.data)::text)) OVER (
                   ORDER BY d.position, d.id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS before
          FROM unnest($1::bigint[]) AS i(id)
         CROSS JOIN LATERAL (SELECT * FROM {schema}.dead_letters o WHERE o.id = i.id OFFSET 0) d
          LEFT JOIN {schema}.events e ON e.position = d.position
         WHERE d.status IN ('parked', 'skipped')) r
 WHERE r.before < $2::bigint
 ORDER BY r.position, r.id;

-- name: calm_letters(ids bigint[]) :none
-- Takes the request off letters that are not the first of their keys, held so that nobody discards that one unseen.
-- plan: dead_letters_pkey
WITH chosen AS MATERIALIZED (
    SELECT d.label, d.tenant, d.key, array_agg(d.id) AS ids
      FROM {schema}.dead_letters d
     WHERE d.id = ANY ($1) AND d.status = 'parked'
     GROUP BY d.label, d.tenant, d.key
     ORDER BY d.label, d.tenant, d.key
), held AS MATERIALIZED (
    SELECT h.id
      FROM chosen c
     CROSS JOIN LATERAL (
           SELECT o.id
             FROM {schema}.dead_letters o
            WHERE o.label = c.label AND o.tenant = c.tenant AND o.key = c.key AND o.status = 'parked'
            ORDER BY o.position
            LIMIT 1
              FOR SHARE) f
     CROSS JOIN LATERAL (
           SELECT d.id
             FROM {schema}.dead_letters d
            WHERE d.id = ANY (c.ids) AND d.id <> f.id
            ORDER BY d.position
              FOR UPDATE) h
)
UPDATE {schema}.dead_letters d
   SET retry_at = NULL
  FROM held h
 WHERE d.id = h.id;

-- name: prune_letters(days double precision, most bigint) :none
-- Forgets letters that were closed so long ago.
-- plan: dead_letters_closed_idx
DELETE FROM {schema}.dead_letters
 WHERE id = ANY (ARRAY(
       SELECT id FROM {schema}.dead_letters
        WHERE closed_at < clock_timestamp() - $1 * interval '1 day'
        ORDER BY closed_at
        LIMIT $2
          FOR UPDATE SKIP LOCKED));

-- name: count_open_letters() :many
-- plan: dead_letters_open_idx
SELECT label, status, count(*) AS count
  FROM {schema}.dead_letters
 WHERE status IN ('parked', 'skipped')
 GROUP BY label, status
 ORDER BY label, status;
