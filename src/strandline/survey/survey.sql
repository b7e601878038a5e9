-- One picture of the database; used by survey.py. What other packages tell of theirs is asked through them.

-- name: one_snapshot() :none
-- The transaction sees what is committed at its first statement, to its end, and writes nothing.
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY;

-- name: labels_run_by_nodes() :many
-- Every projection, subscription and build that is cut into shards, and so is to be run.
SELECT s.label
  FROM {schema}.slicings s
 WHERE NOT EXISTS (SELECT FROM {schema}.lifecycles k WHERE k.label = s.label AND k.lifecycle <> 'async')
 ORDER BY s.label;

-- name: not_run_by_nodes(labels text[]) :many
-- Those of the labels that appends bring up to date, or nobody any more.
-- plan: lifecycles_pkey
SELECT k.label FROM {schema}.lifecycles k WHERE k.label = ANY ($1) AND k.lifecycle <> 'async';

-- name: mark_row(most bigint) :one
-- The mark, what lies beyond it, and the newest $1 gaps of the ledger. first_beyond: when the first event beyond it
-- was recorded. No row: the table high_water is empty.
-- plan: events_pkey
SELECT clock_timestamp() AS now, m.position, m.settled_at, coalesce(h.position, 0) AS highest,
       f.recorded_at AS first_beyond, g.rolled_back, g.forced_gaps, g.forced, g.late
  FROM {schema}.high_water m
  LEFT JOIN LATERAL (SELECT e.position FROM {schema}.events e ORDER BY e.position DESC LIMIT 1) h ON true
  LEFT JOIN LATERAL (SELECT e.recorded_at FROM {schema}.events e WHERE e.position > m.position ORDER BY e.position LIMIT 1) f ON true
 CROSS JOIN (
       SELECT coalesce(sum(n.last - n.first + 1) FILTER (WHERE n.kind = 'rolled_back'), 0)::bigint AS rolled_back,
              count(*) FILTER (WHERE n.kind = 'forced') AS forced_gaps,
              coalesce(sum(n.last - n.first + 1) FILTER (WHERE n.kind = 'forced'), 0)::bigint AS forced,
              coalesce(sum((n.proof->'late'->>'events')::bigint) FILTER (WHERE n.kind = 'forced'), 0)::bigint AS late
         FROM (SELECT o.first, o.last, o.kind, o.proof FROM {schema}.gaps o ORDER BY o.first DESC LIMIT $1) n) g;

-- name: leader_row() :one
-- The leader's lease. ended: seconds since the last term ended, or since the first node that is there began if there
-- was none; NULL without nodes. changes: terms begun within the last hour. No row: the table leases is empty.
-- plan: leases_pkey
SELECT l.holder, coalesce(n.name, '') AS name, l.epoch,
       coalesce(l.holder IS NOT NULL AND l.expires_at > clock_timestamp(), false) AS is_held,
       coalesce(extract(epoch FROM clock_timestamp() - l.acquired_at), 0)::float8 AS since,
       CASE WHEN l.expires_at > '-infinity' THEN extract(epoch FROM l.expires_at - clock_timestamp())::float8 END AS expires_in,
       coalesce(extract(epoch FROM clock_timestamp() - l.renewed_at), 0)::float8 AS renewed,
       CASE WHEN l.resign_requested_at IS NOT NULL THEN l.resign_reason END AS resign_reason,
       extract(epoch FROM clock_timestamp() - coalesce(
           CASE WHEN l.expires_at > '-infinity' THEN l.expires_at END, l.renewed_at,
           (SELECT min(h.started_at) FROM {schema}.nodes h WHERE h.state NOT IN ('left', 'dead'))))::float8 AS ended,
       (SELECT count(*)
          FROM (SELECT g.kind, g.at FROM {schema}.node_log g ORDER BY g.id DESC LIMIT 10000) recent
         WHERE recent.kind = 'leader_acquired' AND recent.at > clock_timestamp() - interval '1 hour') AS changes
  FROM {schema}.leases l
  LEFT JOIN {schema}.nodes n ON n.id = l.holder
 WHERE l.name = 'leader';
