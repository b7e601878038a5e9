-- Jobs that wait for one another, or take turns by a key: what follows when one has ended.

-- Locks these jobs and all that their end concerns: first the batches around them, by id, then what waits for them or for
-- a batch that may end now, by id. Answers what will not complete any more, because something that it waits for or that
-- stands in it has failed: the failed ones, jobs behind them, batches.
CREATE FUNCTION {schema}.reach_jobs(ids bigint[], batches bigint[], failed boolean[])
RETURNS bigint[]
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
SET jit = off
SET enable_hashjoin = on
AS $body$
DECLARE
    doomed bigint[];
    around bigint[];
BEGIN
    WITH RECURSIVE given AS MATERIALIZED (
        SELECT * FROM unnest(ids, batches, failed) AS g(id, batch, failed)
    ), fallen AS (
        SELECT g.id FROM given g WHERE g.failed
        UNION
        SELECT g.batch FROM given g WHERE g.failed AND g.batch IS NOT NULL
        UNION
        SELECT n.id
          FROM fallen f
         CROSS JOIN LATERAL (
               SELECT e.child AS id FROM {schema}.job_edges e WHERE e.parent = f.id AND NOT e.lenient
               UNION ALL
               SELECT j.batch FROM {schema}.jobs j WHERE j.id = f.id AND j.batch IS NOT NULL
               UNION ALL
               SELECT b.batch FROM {schema}.job_batches b WHERE b.id = f.id AND b.batch IS NOT NULL) n
    ), outwards AS (
        SELECT g.batch AS id FROM given g WHERE g.batch IS NOT NULL
        UNION
        SELECT b.batch FROM outwards a JOIN {schema}.job_batches b ON b.id = a.id WHERE b.batch IS NOT NULL
    )
    SELECT ARRAY(SELECT f.id FROM fallen f), ARRAY(SELECT f.id FROM fallen f UNION SELECT o.id FROM outwards o)
      INTO doomed, around;

    -- Row by row in this order, whatever the planner thinks of the tables.
    PERFORM FROM (SELECT u.id FROM unnest(around) AS u(id) ORDER BY u.id) w
      CROSS JOIN LATERAL (SELECT FROM {schema}.job_batches b WHERE b.id = w.id FOR UPDATE) l;

    -- How far a batch is, is sure now; what waits for one that cannot end yet is let be, it may be much.
    PERFORM FROM (
        SELECT u.id FROM unnest(ids || doomed) AS u(id)
        UNION
        SELECT e.child FROM unnest(ids) AS u(id) JOIN {schema}.job_edges e ON e.parent = u.id
        UNION
        SELECT e.child
          FROM {schema}.job_batches b
          JOIN (SELECT m.batch, count(*) AS n
                  FROM (SELECT u.batch FROM unnest(batches) AS u(batch)
                        UNION ALL SELECT d.batch FROM {schema}.jobs d WHERE d.id = ANY (doomed)
                        UNION ALL SELECT i.batch FROM {schema}.job_batches i WHERE i.id = ANY (around)) m
                 WHERE m.batch IS NOT NULL
                 GROUP BY m.batch) c ON c.batch = b.id
          JOIN {schema}.job_edges e ON e.parent = b.id
         WHERE b.ended_at IS NULL AND b.completed + b.failed + c.n >= b.members
         ORDER BY 1) w
      CROSS JOIN LATERAL (SELECT FROM {schema}.jobs j WHERE j.id = w.id FOR UPDATE) l;
    RETURN doomed;
END
$body$;

-- Whoever ends linked jobs begins its transaction with this: then no two of them wait for one another in a circle.
CREATE FUNCTION {schema}.hold_jobs(ids bigint[], failed boolean[])
RETURNS void
LANGUAGE plpgsql VOLATILE
AS $body$
BEGIN
    PERFORM {schema}.reach_jobs(
        ids,
        ARRAY(SELECT coalesce((SELECT j.batch FROM {schema}.jobs j WHERE j.id = g.id),
                              (SELECT d.batch FROM {schema}.dead_jobs d WHERE d.id = g.id))
                FROM unnest(ids) WITH ORDINALITY AS g(id, o) ORDER BY g.o),
        failed);
END
$body$;

-- In the transaction that has removed the rows of these jobs: frees what waited for the last of them, cancels what can
-- not run any more, counts batches. Answers queues with something available; with a key, whose next one is to be promoted.
CREATE FUNCTION {schema}.follow_jobs(ids bigint[], batches bigint[], outcomes text[], results text[])
RETURNS TABLE (queue text, key text)
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
SET jit = off
SET enable_hashjoin = on
AS $body$
#variable_conflict use_column
DECLARE
    doomed  bigint[];
    gone    {schema}.jobs[];
    over    bigint[] := ids;
    counted bigint[];
    good    bigint[];
    bad     bigint[];
BEGIN
    doomed := {schema}.reach_jobs(
        ids, batches, ARRAY(SELECT u.o <> 'completed' FROM unnest(outcomes) WITH ORDINALITY AS u(o, n) ORDER BY u.n));

    DELETE FROM {schema}.job_edges e WHERE e.child = ANY (ids);
    UPDATE {schema}.job_edges e
       SET ended = g.outcome, result = g.result
      FROM unnest(ids, outcomes, results) AS g(id, outcome, result)
     WHERE e.parent = g.id AND e.ended IS NULL AND (g.outcome = 'completed' OR e.lenient);

    WITH removed AS (
        DELETE FROM {schema}.jobs j WHERE j.id = ANY (doomed) AND j.state = 3 RETURNING j.*
    ), kept AS (
        INSERT INTO {schema}.job_history
               (id, outcome, created_at, priority, attempt, queue, kind, key, tenant, args, meta, errors, reason)
        SELECT r.id, 'cancelled', r.created_at, r.priority, r.attempt, r.queue, r.kind, r.key, r.tenant, r.args, r.meta,
               r.errors, 'something that it waited for did not complete'
          FROM removed r
         WHERE r.flags & 128 = 0
    ), loose AS (
        DELETE FROM {schema}.job_edges e USING removed r WHERE e.child = r.id
    )
    SELECT coalesce(array_agg(r::{schema}.jobs), '{}') INTO gone FROM removed r;

    -- one round for each level of batches in batches
    SELECT array_agg(t.batch), array_agg(t.done), array_agg(t.failed) INTO counted, good, bad
      FROM (SELECT m.batch, count(*) FILTER (WHERE m.completed) AS done, count(*) FILTER (WHERE NOT m.completed) AS failed
              FROM (SELECT g.batch, g.outcome = 'completed' AS completed FROM unnest(batches, outcomes) AS g(batch, outcome)
                    UNION ALL
                    SELECT g.batch, false FROM unnest(gone) g) m
             WHERE m.batch IS NOT NULL
             GROUP BY m.batch) t;
    WHILE counted IS NOT NULL LOOP
        WITH raised AS (
            UPDATE {schema}.job_batches b
               SET completed = b.completed + g.done,
                   failed = b.failed + g.failed,
                   ended_at = CASE WHEN b.completed + b.failed + g.done + g.failed >= b.members THEN clock_timestamp() END
              FROM unnest(counted, good, bad) AS g(id, done, failed)
             WHERE b.id = g.id AND b.ended_at IS NULL
            RETURNING b.id, b.batch, b.failed = 0 AS completed, b.ended_at
        ), closed AS MATERIALIZED (
            SELECT c.id, c.batch, c.completed FROM raised c WHERE c.ended_at IS NOT NULL
        ), told AS (
            UPDATE {schema}.job_edges e
               SET ended = CASE WHEN c.completed THEN 'completed' ELSE 'cancelled' END
              FROM closed c
             WHERE e.parent = c.id AND (c.completed OR e.lenient)
        ), outer_ AS (
            SELECT c.batch, count(*) FILTER (WHERE c.completed) AS done, count(*) FILTER (WHERE NOT c.completed) AS failed
              FROM closed c
             WHERE c.batch IS NOT NULL
             GROUP BY c.batch
        )
        SELECT over || ARRAY(SELECT c.id FROM closed c),
               (SELECT array_agg(o.batch ORDER BY o.batch) FROM outer_ o),
               (SELECT array_agg(o.done ORDER BY o.batch) FROM outer_ o),
               (SELECT array_agg(o.failed ORDER BY o.batch) FROM outer_ o)
          INTO over, counted, good, bad;
    END LOOP;

    RETURN QUERY
    WITH freed AS MATERIALIZED (
        SELECT j.id, j.flags, j.queue, j.key
          FROM (SELECT DISTINCT e.child FROM {schema}.job_edges e WHERE e.parent = ANY (over)) w
          JOIN {schema}.jobs j ON j.id = w.child
         WHERE j.state = 3
           AND NOT EXISTS (SELECT FROM {schema}.job_edges o WHERE o.child = w.child AND o.ended IS NULL)
         ORDER BY j.id
    ), line AS MATERIALIZED (
        SELECT f.id, CASE WHEN f.flags & 1 = 0 THEN nextval('{schema}.job_order') END AS seq FROM freed f
    ), opened AS (
        UPDATE {schema}.jobs j
           SET state = CASE WHEN l.seq IS NULL THEN 3 WHEN j.run_at > clock_timestamp() THEN 1 ELSE 0 END,
               seq = coalesce(l.seq, j.seq),
               flags = j.flags & ~512
          FROM line l
         WHERE j.id = l.id
        RETURNING j.queue, j.state
    )
    SELECT o.queue, NULL::text FROM opened o WHERE o.state = 0
    UNION
    SELECT f.queue, f.key FROM freed f WHERE f.flags & 1 = 1
    UNION
    SELECT g.queue, g.key FROM unnest(gone) g WHERE g.flags & 1 = 1;
END
$body$;

-- Lets the first of each key begin, if the key has no head, live or dead; jobs that wait for parents stand back. Locks the
-- keys first and looks afterwards, so that it sees what whoever held them has done. Answers queues with something available.
CREATE FUNCTION {schema}.promote_jobs(queues text[], keys text[])
RETURNS SETOF text
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
SET jit = off
AS $body$
BEGIN
    PERFORM pg_advisory_xact_lock(k.lock)
       FROM (SELECT DISTINCT hashtextextended(g.queue || ' ' || g.key, 4917) AS lock
               FROM unnest(queues, keys) AS g(queue, key)
              ORDER BY 1) k;
    RETURN QUERY
    WITH first AS MATERIALIZED (
        SELECT f.id, k.queue, k.key
          FROM (SELECT DISTINCT g.queue, g.key FROM unnest(queues, keys) AS g(queue, key)) k
         CROSS JOIN LATERAL (
               SELECT j.id
                 FROM {schema}.jobs j
                WHERE j.state = 3 AND j.flags & 513 = 1 AND j.queue = k.queue AND j.key = k.key
                ORDER BY j.seq
                LIMIT 1) f
         WHERE NOT EXISTS (SELECT FROM {schema}.jobs h
                            WHERE h.queue = k.queue AND h.key = k.key AND h.flags & 1 = 1 AND h.state <> 3)
           AND NOT EXISTS (SELECT FROM {schema}.dead_jobs d
                            WHERE d.queue = k.queue AND d.key = k.key AND d.flags & 1 = 1)
    ), held AS MATERIALIZED (
        SELECT l.id
          FROM (SELECT f.id, f.queue, f.key FROM first f ORDER BY f.id) w
         CROSS JOIN LATERAL (
               SELECT j.id FROM {schema}.jobs j
                WHERE j.id = w.id AND j.state + 0 = 3 AND j.flags & 513 = 1 AND j.queue = w.queue AND j.key = w.key
                  FOR UPDATE) l
    ), opened AS (
        UPDATE {schema}.jobs j
           SET state = CASE WHEN j.run_at > clock_timestamp() THEN 1 ELSE 0 END, seq = nextval('{schema}.job_order')
          FROM held h
         WHERE j.id = h.id
        RETURNING j.queue, j.state
    )
    SELECT DISTINCT o.queue FROM opened o WHERE o.state = 0;
END
$body$;

-- Lets the commit of this transaction tell that it may be somebody's turn; of many, the leader finds the others.
CREATE FUNCTION {schema}.tell_turn(queue text, key text)
RETURNS void
LANGUAGE plpgsql VOLATILE
AS $body$
DECLARE
    told integer := coalesce(nullif(current_setting('strandline.turns', true), ''), '0');
BEGIN
    IF told < 100 THEN
        PERFORM pg_notify((parse_ident('{schema}.jobs'))[1] || '.job_turns', json_build_array('', queue, key)::text);
        PERFORM set_config('strandline.turns', (told + 1)::text, true);
    END IF;
END
$body$;

-- Gives a job that has not begun what a new one of its unique key (an item of enqueue_batch) says; false: it has begun, or
-- is gone. An ordered one whose key or queue is another now goes to the end of that line, and the one it leaves goes on.
CREATE FUNCTION {schema}.replace_job(existing bigint, r jsonb, at timestamptz, place bigint)
RETURNS boolean
LANGUAGE plpgsql VOLATILE
AS $body$
DECLARE
    old        record;
    is_ordered boolean := (r->>6)::smallint & 1 = 1;
    stays      boolean;
BEGIN
    SELECT j.state, j.flags, j.queue, j.key INTO old
      FROM {schema}.jobs j WHERE j.id = existing AND j.state <> 2 AND j.attempt = 0 FOR UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    stays := is_ordered AND old.flags & 1 = 1 AND old.queue = r->>3 AND old.key = r->>9;
    UPDATE {schema}.jobs j
       SET args = r->>2, queue = r->>3, priority = (r->>4)::smallint, max_attempts = (r->>5)::smallint, key = r->>9,
           flags = (j.flags & ~(1 | 16 | 32 | 64 | 128)) | ((r->>6)::smallint & (1 | 16 | 32 | 64 | 128)),
           run_at = at, meta = r->>12, tenant = r->>10,
           state = CASE WHEN j.flags & 512 = 512 OR (is_ordered AND NOT (stays AND j.state <> 3)) THEN 3
                        WHEN at > clock_timestamp() THEN 1 ELSE 0 END,
           seq = CASE WHEN stays AND j.state = 3 THEN j.seq ELSE place END
     WHERE j.id = existing;
    IF old.flags & 1 = 1 AND old.state <> 3 AND NOT stays THEN
        PERFORM {schema}.tell_turn(old.queue, old.key);
    END IF;
    RETURN true;
END
$body$;
