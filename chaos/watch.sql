-- One look at the cluster, from one snapshot. $1: the mark of the look before.
WITH high_water AS MATERIALIZED (
    SELECT position FROM strandline.high_water
)
SELECT extract(epoch FROM clock_timestamp())::float8 AS at,
       h.position AS mark,
       coalesce((SELECT e.position FROM strandline.events e ORDER BY e.position DESC LIMIT 1), 0) AS head,
       (SELECT count(*) FROM strandline.events e WHERE e.position > $1 AND e.position <= h.position) AS visible,
       (SELECT coalesce(json_agg(json_build_array(n.id, n.name, n.state, n.pid, n.beats,
                                                  extract(epoch FROM n.expires_at - clock_timestamp()), n.number)), '[]')
          FROM strandline.nodes n
         WHERE n.state NOT IN ('left', 'dead'))::text AS nodes,
       (SELECT coalesce(json_agg(json_build_array(s.name, s.position, s.owner)), '[]')
          FROM strandline.shards s)::text AS shards,
       (SELECT coalesce(json_agg(json_build_array(a.work, a.owner)), '[]')
          FROM strandline.assignments a
          JOIN strandline.work w ON w.name = a.work AND w.paused_at IS NULL)::text AS works,
       (SELECT CASE WHEN l.expires_at > clock_timestamp() THEN l.holder END
          FROM strandline.leases l WHERE l.name = 'leader') AS leader,
       (SELECT l.epoch FROM strandline.leases l WHERE l.name = 'leader') AS leader_epoch
  FROM high_water h
