-- Who answers at the other end; used by pooler.py.

-- name: backend() :one
-- The backend, its database, and since when the server runs. Needs no privilege and no table of ours.
SELECT pg_backend_pid() AS pid,
       (SELECT d.oid::bigint FROM pg_database d WHERE d.datname = current_database()) AS database,
       pg_postmaster_start_time() AS started_at;
