-- Events that turned up in gaps skipped by force, and what was done about them; used by late_events.py.
-- A gap's proof says under 'healed', for each label, at which positions nothing is left to be done.

-- name: late_events(after bigint, most bigint, label text) :many
-- Those that are left to be healed for the label, in order. Not for one that did not exist when they were seen: it
-- began later, and has read them like all others.
-- plan: events_pkey
SELECT e.position, e.tenant, e.stream, e.version, e.type, e.data::text AS data, e.recorded_at, e.id,
       e.metadata::text AS metadata
  FROM {schema}.gaps g
 CROSS JOIN LATERAL (
       SELECT * FROM {schema}.events o
        WHERE o.position BETWEEN g.first AND g.last AND o.position > $1
       OFFSET 0) AS e
 WHERE g.kind = 'forced' AND g.last > $1
   AND NOT coalesce(g.proof->'healed'->$3 @> to_jsonb(e.position), false)
   AND coalesce(g.proof->'late'->'labels' ? $3, true)
 ORDER BY e.position
 LIMIT $2;

-- name: unhealed_gaps(labels text[]) :many
-- Forced gaps with events that are left to be healed for any of the labels; NULL: of those that are run by nodes.
-- plan: events_pkey
SELECT g.first, g.last, count(DISTINCT e.position) AS events
  FROM {schema}.gaps g
  JOIN {schema}.events e ON e.position BETWEEN g.first AND g.last
 CROSS JOIN (SELECT c.label FROM {schema}.slicings c WHERE $1::text[] IS NULL AND c.label NOT LIKE '%~%'
              UNION ALL
             SELECT u.label FROM unnest($1::text[]) AS u(label)) AS l
 WHERE g.kind = 'forced'
   AND NOT coalesce(g.proof->'healed'->l.label @> to_jsonb(e.position), false)
   AND coalesce(g.proof->'late'->'labels' ? l.label, true)
 GROUP BY g.first, g.last
 ORDER BY g.first;

-- name: take_turns(label text) :one
-- Whoever heals the label waits here for others that do, until their transaction ends. No row: it was never declared.
-- plan: slicings_pkey
SELECT label, parts FROM {schema}.slicings WHERE label = $1 FOR UPDATE;

-- name: read_again(label text, position bigint) :many
-- Shards of the label that have not passed the position go back to their checkpoint, under a new epoch without an
-- owner: a page that they hold may have been read before the event was there. Rows: all of its shards.
-- plan: shards_pkey
WITH held AS MATERIALIZED (
    SELECT h.name, h.position
      FROM {schema}.slicings c
     CROSS JOIN generate_series(1, c.parts) AS n
      JOIN {schema}.shards h ON h.name = c.label || CASE WHEN c.parts = 1 THEN ':all' ELSE ':' || n || '/' || c.parts END
     WHERE c.label = $1
     ORDER BY h.name
       FOR UPDATE OF h
), again AS (
    UPDATE {schema}.shards s SET epoch = s.epoch + 1, owner = NULL
      FROM held h
     WHERE s.name = h.name AND h.position < $2
)
SELECT h.name, h.position FROM held h;

-- name: call_again(label text, positions bigint[], reason text) :many
-- Letters, due at once, for those late events that the shard of their stream has passed. Rows: their ids; none for an
-- event that had a letter of this label at any time. $1's shards must be locked.
INSERT INTO {schema}.dead_letters (label, shard, tenant, key, position, stream, version, type, status, reason, retry_at)
SELECT $1, s.name, e.tenant, e.stream, e.position, e.stream, e.version, e.type, 'skipped', $3, clock_timestamp()
  FROM {schema}.slicings c
  JOIN {schema}.events e ON e.position = ANY ($2)
  JOIN {schema}.shards s
    ON s.name = $1 || CASE WHEN c.parts = 1 THEN ':all' ELSE ':' || 1 +
       (hashtextextended(e.stream, hashtextextended(e.tenant, 0)) & 9223372036854775807) % c.parts || '/' || c.parts END
 WHERE c.label = $1 AND s.position >= e.position
   AND NOT EXISTS (SELECT FROM {schema}.dead_letters d WHERE d.label = $1 AND d.position = e.position)
ON CONFLICT DO NOTHING
RETURNING id;

-- name: note_healed(label text, positions bigint[]) :none
-- Nothing is left to be done for the label about the events at these positions.
-- plan: gaps_pkey
UPDATE {schema}.gaps g
   SET proof = g.proof || jsonb_build_object('healed',
           coalesce(g.proof->'healed', '{}') || jsonb_build_object($1::text, (
               SELECT jsonb_agg(DISTINCT u.position ORDER BY u.position)
                 FROM (SELECT p.position FROM unnest($2::bigint[]) AS p(position) WHERE p.position BETWEEN g.first AND g.last
                        UNION
                       SELECT h.position::bigint
                         FROM jsonb_array_elements_text(coalesce(g.proof->'healed'->$1, '[]')) AS h(position)) u)))
 WHERE g.first IN (SELECT f.first FROM unnest($2::bigint[]) AS p(position)
                    CROSS JOIN LATERAL (SELECT o.first FROM {schema}.gaps o WHERE o.first <= p.position
                                         ORDER BY o.first DESC LIMIT 1) AS f);
