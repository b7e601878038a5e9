-- Claiming jobs, and giving back those that were not begun; used by fetch.py.

-- name: claim_jobs(queue text, kinds text[], most bigint, claim bigint, priority smallint, seq bigint) :many
-- Claim up to $3 available jobs of a queue whose kind is known here, the first ones behind ($5, $6),
-- each for one more attempt under the claim $4. The commit is not waited for: a claim that a crash
-- of the server undoes leaves an available job, and whoever claims it next has another number.
-- No row: there is none that nobody else is claiming right now.
-- An array and no join: a plan from when the table was empty would compare each row with each for as long as it is kept.
-- plan: jobs_ready_idx
WITH calm AS MATERIALIZED (
    SELECT set_config('synchronous_commit', 'off', true)
), picked AS MATERIALIZED (
    SELECT id
    FROM {schema}.jobs
    WHERE state = 0 AND queue = $1 AND kind = ANY ($2) AND (priority, seq) > ($5, $6)
    ORDER BY priority, seq
    LIMIT $3
    FOR UPDATE SKIP LOCKED
)
UPDATE {schema}.jobs AS j
SET state = 2,
    claim = $4,
    attempt = least(j.attempt + 1, 32767),
    claimed_at = clock_timestamp(),
    unique_key = CASE WHEN j.flags & 32 = 0 THEN j.unique_key END
FROM calm
WHERE j.id = ANY (ARRAY(SELECT picked.id FROM picked))
RETURNING j.id, j.claim, j.kind, j.args, j.attempt, j.max_attempts, j.flags, j.queue, j.key,
          j.tenant, j.batch, j.meta, j.seq, j.priority, j.created_at;

-- name: claim_piece(queue text, kinds text[], most bigint, claim bigint, priority smallint, seq bigint, piece bigint) :many
-- The same from the first $7 jobs behind ($5, $6), of whatever kind. next_*: the place to go on from; is_end: nothing
-- is behind it. Without jobs it answers one row without an id.
-- plan: jobs_ready_idx
WITH calm AS MATERIALIZED (
    SELECT set_config('synchronous_commit', 'off', true)
), piece AS MATERIALIZED (
    SELECT id, kind, priority, seq
    FROM {schema}.jobs
    WHERE state = 0 AND queue = $1 AND (priority, seq) > ($5, $6)
    ORDER BY priority, seq
    LIMIT $7
), ours AS MATERIALIZED (
    SELECT id, priority, seq FROM piece WHERE kind = ANY ($2) ORDER BY priority, seq LIMIT $3
), place AS MATERIALIZED (
    SELECT l.priority, l.seq, NOT n.is_full AND n.seen < $7 AS is_end
    FROM (SELECT (SELECT count(*) FROM ours) >= $3 AS is_full, (SELECT count(*) FROM piece) AS seen) AS n
    CROSS JOIN LATERAL (
        (SELECT o.priority, o.seq FROM ours AS o WHERE n.is_full ORDER BY o.priority DESC, o.seq DESC LIMIT 1)
        UNION ALL
        (SELECT p.priority, p.seq FROM piece AS p WHERE NOT n.is_full ORDER BY p.priority DESC, p.seq DESC LIMIT 1)
        UNION ALL
        SELECT $5, $6 WHERE n.seen = 0
    ) AS l
), picked AS MATERIALIZED (
    SELECT h.id
    FROM ours AS o
    CROSS JOIN LATERAL (
        SELECT j.id FROM {schema}.jobs AS j WHERE j.id = o.id AND j.state + 0 = 0 FOR UPDATE SKIP LOCKED) AS h
), claimed AS (
    UPDATE {schema}.jobs AS j
    SET state = 2,
        claim = $4,
        attempt = least(j.attempt + 1, 32767),
        claimed_at = clock_timestamp(),
        unique_key = CASE WHEN j.flags & 32 = 0 THEN j.unique_key END
    FROM calm
    WHERE j.id = ANY (ARRAY(SELECT picked.id FROM picked))
    RETURNING j.id, j.claim, j.kind, j.args, j.attempt, j.max_attempts, j.flags, j.queue, j.key,
              j.tenant, j.batch, j.meta, j.seq, j.priority, j.created_at
)
SELECT place.priority AS next_priority, place.seq AS next_seq, place.is_end, claimed.*
FROM place
LEFT JOIN claimed ON true;

-- name: give_back(ids bigint[], claims bigint[]) :many
-- Make claimed jobs available again as if they had not been claimed: place and attempts are as
-- before. Their queues, once each. A job that is missing was claimed by somebody else meanwhile.
-- One that somebody wants cancelled stays as it is: its id tells which, and it must not run again.
-- The arithmetic keeps the planner at the primary key: by the index of claims every job of a large
-- fetch would be looked at for each one.
-- plan: jobs_pkey
WITH held AS MATERIALIZED (
    SELECT j.id, j.queue, j.cancel_at IS NOT NULL AS is_unwanted
    FROM unnest($1::bigint[], $2::bigint[]) AS g (id, claim)
    JOIN {schema}.jobs AS j ON j.id = g.id
    WHERE j.claim - g.claim = 0 AND j.state + 0 = 2
    ORDER BY j.id
    FOR UPDATE OF j
), given AS (
    UPDATE {schema}.jobs AS j
    SET state = 0, claim = NULL, claimed_at = NULL, attempt = j.attempt - 1
    FROM held AS h
    WHERE j.id = h.id AND NOT h.is_unwanted
)
SELECT DISTINCT h.queue, CASE WHEN h.is_unwanted THEN h.id END AS unwanted FROM held AS h;

-- name: recall(claims bigint[]) :many
-- The same for all jobs under claims whose answer never came. No row: there are none (yet).
-- plan: jobs_running_idx
WITH given AS (
    UPDATE {schema}.jobs AS j
    SET state = 0, claim = NULL, claimed_at = NULL, attempt = j.attempt - 1
    WHERE j.claim = ANY ($1) AND j.state = 2 AND j.cancel_at IS NULL
    RETURNING j.queue
)
SELECT DISTINCT queue, NULL::bigint AS unwanted FROM given;

-- name: recall_unwanted(claims bigint[]) :many
-- Jobs under such claims that somebody wants cancelled: they must not run again.
-- plan: jobs_cancel_idx
SELECT j.id, j.claim, j.kind, j.args, j.attempt, j.max_attempts, j.flags, j.queue, j.key,
       j.tenant, j.batch, j.meta, j.seq, j.priority, j.created_at
FROM {schema}.jobs AS j
WHERE j.claim = ANY ($1) AND j.state = 2 AND j.cancel_at IS NOT NULL;

-- name: jobs_to_cancel(first bigint, beyond bigint) :many
-- Running jobs of a node, claimed from $1 up to $2, that somebody wants cancelled. No row: none.
-- plan: jobs_cancel_idx
SELECT id, claim
FROM {schema}.jobs
WHERE claim >= $1 AND claim < $2 AND cancel_at IS NOT NULL AND state = 2;

-- name: long_running(first bigint, beyond bigint, seconds float8) :many
-- Jobs that a node, from claim $1 up to $2, has been running for so many seconds at least. No row: none.
-- plan: jobs_running_idx
SELECT id, claim
FROM {schema}.jobs
WHERE claim >= $1 AND claim < $2 AND state = 2 AND claimed_at < clock_timestamp() - $3 * interval '1 second';

-- name: claimed_as(ids bigint[], claims bigint[]) :many
-- Those of these that run under their claims.
-- plan: jobs_pkey
SELECT j.id, j.claim, j.kind, j.args, j.attempt, j.max_attempts, j.flags, j.queue, j.key,
       j.tenant, j.batch, j.meta, j.seq, j.priority, j.created_at
FROM unnest($1::bigint[], $2::bigint[]) AS g (id, claim)
JOIN {schema}.jobs AS j ON j.id = g.id
WHERE j.claim - g.claim = 0 AND j.state + 0 = 2;
