-- Checkpoints: every write names the epoch it was claimed under and the position it starts from.

-- name: claim_shard(name text, owner uuid, start bigint, granted bigint, label text, parts integer, patience text, only_free boolean) :one
-- Makes the caller the shard's owner under a new epoch, from where the last one left it. granted: epoch of the
-- assignment that allows it; null where nobody assigns. No row: that assignment is not the caller's (any more), or
-- the label is not cut into so many parts (any more), or the build it is of has ended, or nodes do not keep the label
-- (any more); nothing was changed. The share locks let no other claim and no cut in before this one is committed.
-- patience: how long to wait for the transaction of a previous owner. only_free: no row either if somebody has the
-- shard.
-- plan: shards_pkey
WITH patient AS MATERIALIZED (
    SELECT set_config('lock_timeout', $7, true) AS setting
), cut AS MATERIALIZED (
    SELECT c.parts FROM {schema}.slicings c, patient WHERE c.label = $5 FOR SHARE OF c
), fitting AS MATERIALIZED (
    SELECT count(*) AS parts FROM patient
     WHERE NOT EXISTS (SELECT FROM cut c WHERE c.parts <> $6)
       AND (EXISTS (SELECT FROM cut)
            OR strpos($5, '~') = 0  -- a build that has ended has no shards
               AND NOT EXISTS (SELECT FROM {schema}.slicings d WHERE d.label = $5)  -- deleted while the lock was awaited
               AND NOT EXISTS (SELECT FROM {schema}.lifecycles f WHERE f.label = $5 AND f.lifecycle <> 'async'))
), held AS MATERIALIZED (
    SELECT a.work
      FROM {schema}.assignments a, fitting f
     WHERE f.parts = 1 AND a.work = $1 AND a.owner = $2 AND a.epoch = $4
       FOR SHARE OF a
)
INSERT INTO {schema}.shards AS s (name, position, epoch, owner, claimed_at)
SELECT $1, $3, 1, $2, clock_timestamp()
  FROM fitting f
 WHERE f.parts = 1 AND ($4 IS NULL OR EXISTS (SELECT FROM held))
ON CONFLICT (name) DO UPDATE
   SET epoch = s.epoch + 1, owner = excluded.owner, claimed_at = clock_timestamp()
 WHERE s.owner IS NULL OR NOT $8
RETURNING epoch, position, seal;

-- name: read_claim(name text, owner uuid, epoch bigint) :one
-- Where the shard stands, while it is still the caller's. No row: another epoch owns it.
-- plan: shards_pkey
SELECT epoch, position, seal FROM {schema}.shards WHERE name = $1 AND owner = $2 AND epoch = $3;

-- name: read_owner(name text) :one
-- Who has the shard now, for people. No row: it does not exist (any more).
-- plan: shards_pkey
SELECT s.owner, s.epoch, s.position, coalesce(n.name, '') AS node
  FROM {schema}.shards s
  LEFT JOIN {schema}.nodes n ON n.id = s.owner
 WHERE s.name = $1;

-- name: move_checkpoint(name text, owner uuid, epoch bigint, floor bigint, ceiling bigint) :one
-- No row: the shard was claimed by another epoch, or is not at floor; the caller must roll back.
-- plan: shards_pkey
UPDATE {schema}.shards SET position = $5
 WHERE name = $1 AND owner = $2 AND epoch = $3 AND position = $4
RETURNING position;

-- name: commit_documents(name text, owner uuid, epoch bigint, floor bigint, ceiling bigint, documents text, gone text) :one
-- A whole batch of documents and its checkpoint in one statement: one round trip, one commit.
-- No row: another epoch owns the shard; nothing was written. {table} has its schema with it.
WITH fence AS (
    UPDATE {schema}.shards SET position = $5
     WHERE name = $1 AND owner = $2 AND epoch = $3 AND position = $4
    RETURNING position
), saved AS (
    INSERT INTO {table} (tenant, id, data, version, position)
    SELECT r.t, r.i, r.d, r.v, r.p
      FROM jsonb_to_recordset($6::text::jsonb) AS r(t text, i text, d jsonb, v bigint, p bigint)
     WHERE EXISTS (SELECT FROM fence)
    ON CONFLICT (tenant, id) DO UPDATE
       SET data = excluded.data, version = excluded.version, position = excluded.position
), gone AS (
    DELETE FROM {table} d
     USING jsonb_to_recordset($7::text::jsonb) AS r(t text, i text)
     WHERE d.tenant = r.t AND d.id = r.i AND EXISTS (SELECT FROM fence)
)
SELECT position FROM fence;

-- name: reset_shard(name text) :none
-- Back to the beginning under a new epoch without an owner: whoever runs it now is refused.
-- plan: shards_pkey
UPDATE {schema}.shards SET position = 0, epoch = epoch + 1, owner = NULL WHERE name = $1;

-- name: read_positions(names text[]) :many
SELECT name, position FROM {schema}.shards WHERE name = ANY ($1);

-- name: tell_status(name text, state text, node text, reason text, failure text, rate real, category text, phase text, attempts integer, pauses integer, seconds double precision) :none
-- seconds: until the next try, by this server's clock; null if it does not rest.
INSERT INTO {schema}.shard_status AS s
       (name, state, node, reason, failure, rate, category, phase, attempts, pauses, next_at)
VALUES ($1, $2, $3, $4, $5::text::jsonb, $6, $7, $8, $9, $10, clock_timestamp() + make_interval(secs => $11))
ON CONFLICT (name) DO UPDATE
   SET state = excluded.state, node = excluded.node, reason = excluded.reason,
       failure = excluded.failure, rate = excluded.rate, category = excluded.category,
       phase = excluded.phase, attempts = excluded.attempts, pauses = excluded.pauses,
       next_at = excluded.next_at, changed_at = clock_timestamp();

-- name: take_write() :none
-- Changes nothing, and is refused by a server that takes no writes: a standby, or a read-only session.
UPDATE {schema}.shard_status SET rate = rate WHERE false;
