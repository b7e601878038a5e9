-- Claiming from queues with limits; used by limits.py.

-- name: claim_limited(queue text, kinds text[], most bigint, claim bigint, from_key text, from_priority smallint, from_seq bigint) :many
-- As claim_jobs, within at_most, per_key and rate of the queue. One row without an id if there are no jobs.
SELECT c.is_busy, c.pause, c.next_key, c.next_priority, c.next_seq,
       c.id, c.claim, c.kind, c.args, c.attempt, c.max_attempts, c.flags, c.queue, c.key, c.tenant, c.batch, c.meta, c.seq,
       c.priority, c.created_at
  FROM {schema}.claim_limited($1, $2, $3, $4, $5, $6, $7) AS c;
