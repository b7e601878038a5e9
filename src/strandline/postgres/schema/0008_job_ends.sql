-- How jobs end: functions, so that a process that is frozen in between holds nobody's rows.

-- A job whose attempt has ended as it is said here.
CREATE TYPE {schema}.settled_job AS (
    id           bigint,
    claim        bigint,   -- under which it was run
    ending       text,     -- what was asked for, or cancelled where somebody had asked for that
    queue        text,
    key          text,
    flags        integer,
    batch        bigint,
    is_available boolean   -- it can be fetched now
);

-- Ends attempts in any way, each under its claim; a job that is given twice ends once. What does not come back is not held
-- under its claim. A job whose cancellation was asked for is not tried again, whatever its attempt says. The arithmetic
-- keeps the planner at the primary key: by the index of running jobs all jobs of a fetch would be looked at for each one.
CREATE FUNCTION {schema}.settle_jobs(
    ids bigint[], claims bigint[], endings text[], results text[], delays double precision[], errors text[], reasons text[],
    fingerprints text[]
)
RETURNS SETOF {schema}.settled_job
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
AS $body$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH given AS MATERIALIZED (
        SELECT DISTINCT ON (g.id, g.claim) g.*
          FROM unnest(ids, claims, endings, results, delays, errors, reasons, fingerprints)
            AS g(id, claim, ending, result, delay, error, reason, fingerprint)
    ), held AS MATERIALIZED (
        SELECT j.id, j.claim, j.batch, j.created_at, j.claimed_at, j.priority, j.attempt, j.max_attempts, j.flags, j.queue,
               j.kind, j.key, j.unique_key, j.tenant, j.args, j.meta, g.result, g.delay, g.fingerprint,
               CASE WHEN j.cancel_at IS NOT NULL AND g.ending <> 'completed' THEN 'cancelled' ELSE g.ending END AS ending,
               CASE WHEN j.cancel_at IS NOT NULL AND g.ending <> 'completed' AND j.cancel_reason <> '' THEN j.cancel_reason
                    ELSE g.reason END AS reason,
               CASE WHEN g.error IS NULL THEN j.errors
                    WHEN jsonb_array_length(j.errors) >= 50 THEN (j.errors - 1) || g.error::jsonb
                    ELSE coalesce(j.errors, '[]') || g.error::jsonb END AS errors
          FROM given g
          JOIN {schema}.jobs j ON j.id = g.id
         WHERE j.claim - g.claim = 0 AND j.state + 0 = 2
         ORDER BY j.id
           FOR UPDATE OF j
    ), ended AS (
        DELETE FROM {schema}.jobs j
         USING held h
         WHERE j.id = h.id AND h.ending IN ('completed', 'cancelled', 'dead')
    ), again AS (
        UPDATE {schema}.jobs j
           SET state = CASE WHEN h.ending = 'released' OR h.delay <= 0 THEN 0 ELSE 1 END,
               run_at = CASE WHEN h.ending = 'released' OR h.delay <= 0 THEN NULL
                             ELSE clock_timestamp() + h.delay * interval '1 second' END,
               seq = CASE WHEN h.ending <> 'released' AND h.delay <= 0 THEN nextval('{schema}.job_order') ELSE j.seq END,
               attempt = CASE WHEN h.ending = 'retry' THEN h.attempt ELSE greatest(h.attempt - 1, 0) END,
               errors = h.errors, claim = NULL, claimed_at = NULL, progress = NULL
          FROM held h
         WHERE j.id = h.id AND h.ending IN ('retry', 'snoozed', 'released')
    ), died AS (
        INSERT INTO {schema}.dead_jobs
               (id, batch, created_at, priority, attempt, max_attempts, flags, queue, kind, key, unique_key, tenant, args,
                meta, errors, fingerprint)
        SELECT h.id, h.batch, h.created_at, h.priority, h.attempt, h.max_attempts, h.flags, h.queue, h.kind, h.key,
               h.unique_key, h.tenant, h.args, h.meta, h.errors, h.fingerprint
          FROM held h
         WHERE h.ending = 'dead'
    ), kept AS (
        INSERT INTO {schema}.job_history
               (id, outcome, created_at, claimed_at, node, priority, attempt, queue, kind, key, tenant, args, meta, errors,
                result, reason)
        SELECT h.id, h.ending, h.created_at, h.claimed_at, h.claim >> 32, h.priority, h.attempt, h.queue, h.kind, h.key,
               h.tenant, h.args, h.meta, h.errors, CASE WHEN h.ending = 'completed' THEN h.result END, nullif(h.reason, '')
          FROM held h
         WHERE h.flags & 128 = 0
           AND (h.ending = 'cancelled'
                OR h.ending = 'completed' AND (h.flags & 64 <> 0 OR h.result IS NOT NULL OR h.reason <> ''))
    )
    SELECT h.id, h.claim, h.ending, h.queue, h.key, h.flags::integer, h.batch,
           h.ending = 'released' OR h.ending IN ('retry', 'snoozed') AND h.delay <= 0
      FROM held h;
END
$body$;

-- The same for jobs on which others wait, with all that follows from their end (see follow_jobs): rows without an id are a
-- queue with something available now, or with a key whose next one is to be promoted after the commit.
CREATE FUNCTION {schema}.settle_linked_jobs(
    ids bigint[], claims bigint[], endings text[], results text[], delays double precision[], errors text[], reasons text[],
    fingerprints text[], waited_for boolean[]
)
RETURNS SETOF {schema}.settled_job
LANGUAGE plpgsql VOLATILE
AS $body$
DECLARE
    settled {schema}.settled_job[];
    over    bigint[];
BEGIN
    over := ARRAY(SELECT g.id FROM unnest(ids, waited_for) AS g(id, waited_for) WHERE g.waited_for);
    IF cardinality(over) > 0 THEN
        PERFORM {schema}.hold_jobs(
            over,
            ARRAY(SELECT g.ending <> 'completed'
                    FROM unnest(ids, endings, waited_for) AS g(id, ending, waited_for) WHERE g.waited_for));
    END IF;
    settled := ARRAY(
        SELECT s FROM {schema}.settle_jobs(ids, claims, endings, results, delays, errors, reasons, fingerprints) s);
    RETURN QUERY SELECT s.* FROM unnest(settled) s;

    RETURN QUERY
    WITH given AS (
        SELECT DISTINCT ON (s.id) s.id, s.batch, s.ending, CASE WHEN s.ending = 'completed' THEN g.result END AS result
          FROM unnest(settled) s
          JOIN unnest(ids, claims, results) AS g(id, claim, result) ON g.id = s.id AND g.claim = s.claim
         WHERE s.flags & 14 <> 0 AND s.ending IN ('completed', 'cancelled')
    ), ended AS MATERIALIZED (
        SELECT array_agg(g.id) AS ids, array_agg(g.batch) AS batches, array_agg(g.ending) AS endings,
               array_agg(g.result) AS results
          FROM given g
    )
    SELECT NULL::bigint, NULL::bigint, '', f.queue, f.key, 0, NULL::bigint, f.key IS NULL
      FROM ended e
     CROSS JOIN LATERAL {schema}.follow_jobs(e.ids, e.batches, e.endings, e.results) f
     WHERE e.ids IS NOT NULL;
END
$body$;
