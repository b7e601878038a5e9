-- Notices; used by listener.py.

-- name: notify(channel text, payload text) :none
SELECT pg_notify($1, $2);
