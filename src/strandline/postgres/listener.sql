-- Notices; used by listener.py.

-- name: notify(channel text, payload text) :none
SELECT pg_notify($1, $2);

-- name: listening() :many
-- The channels that this session listens to.
SELECT c AS name FROM pg_listening_channels() AS c;
