-- Notices of new jobs; used by waking.py.

-- name: notify_queues(channel text, queues text[]) :none
-- One notice a queue; an empty name means all.
SELECT pg_notify($1, u.queue) FROM unnest($2::text[]) AS u(queue);
