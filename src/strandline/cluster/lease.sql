-- Leases: each is one statement in autocommit, by the server's clock_timestamp(). now() would be
-- frozen while a statement waits for the row. What FOR UPDATE answers is the row as it is under the
-- lock: PostgreSQL asks the conditions again of a version that was written meanwhile.

-- name: acquire_lease(name text, holder uuid, ttl double precision, channel text) :one
-- No row: the lease has a holder, or another contender has the row, or the caller is no active node.
-- plan: leases_pkey
WITH free AS (
    SELECT l.name, l.epoch, l.holder FROM {schema}.leases l
     WHERE l.name = $1 AND (l.holder IS NULL OR l.expires_at <= clock_timestamp())
       AND EXISTS (SELECT FROM {schema}.nodes n WHERE n.id = $2 AND n.state = 'active')
       FOR UPDATE OF l SKIP LOCKED
), won AS (
    UPDATE {schema}.leases l
       SET holder = $2, epoch = l.epoch + 1, acquired_at = clock_timestamp(),
           renewed_at = clock_timestamp(), renewals = l.renewals + 1,
           expires_at = clock_timestamp() + make_interval(secs => $3),
           resign_requested_at = NULL, resign_reason = ''
      FROM free
     WHERE l.name = free.name
    RETURNING l.epoch
), logged AS (
    INSERT INTO {schema}.node_log (kind, node, name, epoch, detail)
    SELECT e.kind, e.node, coalesce(n.name, ''), e.epoch, jsonb_build_object('lease', $1) || e.detail
      FROM (SELECT 1 AS place, 'leader_lost' AS kind, free.holder AS node, free.epoch, '{"reason": "expired"}'::jsonb AS detail
              FROM free, won WHERE free.holder IS NOT NULL
             UNION ALL
            SELECT 2, 'leader_acquired', $2, won.epoch, '{}' FROM won) e
      LEFT JOIN {schema}.nodes n ON n.id = e.node
     ORDER BY e.place
), bumped AS (
    UPDATE {schema}.cluster SET version = version + 1 WHERE EXISTS (SELECT FROM won)
), told AS (
    SELECT pg_notify($4, 'leader') FROM won
)
SELECT epoch FROM won WHERE (SELECT count(*) FROM told) > 0;

-- name: take_over_lease(name text, holder uuid, ttl double precision, epoch bigint, renewals bigint, channel text) :one
-- Compares no clock: the caller has seen this (epoch, renewals) for long enough by its own.
-- No row: the lease has changed since, or the caller is no active node.
-- plan: leases_pkey
WITH seen AS (
    SELECT l.name, l.epoch, l.holder FROM {schema}.leases l
     WHERE l.name = $1 AND l.epoch = $4 AND l.renewals = $5
       AND EXISTS (SELECT FROM {schema}.nodes n WHERE n.id = $2 AND n.state = 'active')
       FOR UPDATE OF l SKIP LOCKED
), won AS (
    UPDATE {schema}.leases l
       SET holder = $2, epoch = l.epoch + 1, acquired_at = clock_timestamp(),
           renewed_at = clock_timestamp(), renewals = l.renewals + 1,
           expires_at = clock_timestamp() + make_interval(secs => $3),
           resign_requested_at = NULL, resign_reason = ''
      FROM seen
     WHERE l.name = seen.name
    RETURNING l.epoch
), logged AS (
    INSERT INTO {schema}.node_log (kind, node, name, epoch, detail)
    SELECT e.kind, e.node, coalesce(n.name, ''), e.epoch, jsonb_build_object('lease', $1) || e.detail
      FROM (SELECT 1 AS place, 'leader_lost' AS kind, seen.holder AS node, seen.epoch, '{"reason": "unchanged"}'::jsonb AS detail
              FROM seen, won WHERE seen.holder IS NOT NULL
             UNION ALL
            SELECT 2, 'leader_acquired', $2, won.epoch, '{"unchanged": true}' FROM won) e
      LEFT JOIN {schema}.nodes n ON n.id = e.node
     ORDER BY e.place
), bumped AS (
    UPDATE {schema}.cluster SET version = version + 1 WHERE EXISTS (SELECT FROM won)
), told AS (
    SELECT pg_notify($6, 'leader') FROM won
)
SELECT epoch FROM won WHERE (SELECT count(*) FROM told) > 0;

-- name: renew_lease(name text, holder uuid, epoch bigint, ttl double precision) :one
-- No row: this term has ended, and is not revived.
-- plan: leases_pkey
UPDATE {schema}.leases
   SET renewed_at = clock_timestamp(), renewals = renewals + 1,
       expires_at = clock_timestamp() + make_interval(secs => $4)
 WHERE name = $1 AND holder = $2 AND epoch = $3 AND expires_at > clock_timestamp()
RETURNING epoch;

-- name: resign_lease(name text, holder uuid, epoch bigint, reason text, channel text) :one
-- No row: the lease is not held by the caller under this epoch.
-- plan: leases_pkey
WITH resigned AS (
    UPDATE {schema}.leases
       SET holder = NULL, expires_at = '-infinity', renewals = renewals + 1,
           resign_requested_at = NULL, resign_reason = ''
     WHERE name = $1 AND holder = $2 AND epoch = $3
    RETURNING epoch
), logged AS (
    INSERT INTO {schema}.node_log (kind, node, name, epoch, detail)
    SELECT 'leader_resigned', $2, coalesce((SELECT n.name FROM {schema}.nodes n WHERE n.id = $2), ''),
           epoch, jsonb_build_object('lease', $1, 'reason', $4::text)
      FROM resigned
), bumped AS (
    UPDATE {schema}.cluster SET version = version + 1 WHERE EXISTS (SELECT FROM resigned)
), told AS (
    SELECT pg_notify($5, 'resigned') FROM resigned
)
SELECT epoch FROM resigned WHERE (SELECT count(*) FROM told) > 0;
