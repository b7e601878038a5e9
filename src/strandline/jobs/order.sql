-- Jobs ordered by a key: one at a time, as they were enqueued; used by order.py. Those that wait for parents (flag 512)
-- stand back until they are free, and then come before whatever was enqueued after them.
--
-- The others of a key are blocked. The one that may run is its head: the only row of the key in another state, or a
-- dead letter, which keeps the key until it is retried or discarded.

-- name: promote(queues text[], keys text[]) :many
-- Lets the first of each key begin where there is no head. Answers the queues in which one is available now.
SELECT p.queue FROM {schema}.promote_jobs($1, $2) AS p(queue);

-- name: keys_to_look_at(after_queue text, after_key text, most integer) :many
-- Keys behind the given one that have blocked ordered jobs; stuck: nobody is their head. No row: there are no more.
-- plan: jobs_blocked_idx
WITH RECURSIVE step AS (
    SELECT $1 AS queue, $2 AS key, 0 AS n
    UNION ALL
    SELECT f.queue, f.key, s.n + 1
      FROM step s
     CROSS JOIN LATERAL (
           SELECT j.queue, j.key
             FROM {schema}.jobs j
            WHERE j.state = 3 AND j.flags & 513 = 1 AND (j.queue, j.key) > (s.queue, s.key)
            ORDER BY j.queue, j.key
            LIMIT 1) f
     WHERE s.n < $3
)
SELECT s.queue, s.key,
       NOT EXISTS (SELECT FROM {schema}.jobs h
                        WHERE h.queue = s.queue AND h.key = s.key AND h.flags & 1 = 1 AND h.state <> 3)
       AND NOT EXISTS (SELECT FROM {schema}.dead_jobs d
                        WHERE d.queue = s.queue AND d.key = s.key AND d.flags & 1 = 1) AS stuck
  FROM step s
 WHERE s.n > 0
 ORDER BY s.n;
