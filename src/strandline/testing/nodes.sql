-- Nodes as the database knows them; used by nodes.py.

-- name: nodes_of_process(pid integer, name text) :many
-- The rows of one process, the newest last: a process that was declared dead joins under a new id.
SELECT id, number, name, state, pid, left_reason, beats, extract(epoch FROM expires_at - clock_timestamp())::float8 AS expires_in,
       (SELECT count(*) FROM {schema}.assignments a WHERE a.owner = n.id) AS work,
       EXISTS (SELECT FROM {schema}.leases l WHERE l.name = 'leader' AND l.holder = n.id) AS is_leader
  FROM {schema}.nodes n
 WHERE n.pid = $1 AND n.name = $2
 ORDER BY n.number;
