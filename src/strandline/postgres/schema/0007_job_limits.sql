-- Queues with limits that hold in the whole cluster.

-- Claims from a queue with limits, one claimer at a time: is_busy if another one is at it. pause: seconds until there
-- are tokens again, if that is what lacks. from_*: the place where the next call looks on, behind keys that are full.
-- Without jobs it answers one row without an id.
CREATE FUNCTION {schema}.claim_limited(
    wanted text, kinds text[], most bigint, token bigint, from_key text, from_priority smallint, from_seq bigint
)
RETURNS TABLE (
    is_busy boolean, pause double precision, next_key text, next_priority smallint, next_seq bigint,
    id bigint, claim bigint, kind text, args text, attempt smallint, max_attempts smallint, flags smallint, queue text,
    key text, tenant text, batch bigint, meta text, seq bigint, priority smallint, created_at timestamptz
)
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
SET jit = off
AS $body$
#variable_conflict use_column
DECLARE
    rule     {schema}.queues;
    now_     timestamptz;
    purse    double precision;
    allowed  bigint := most;
    window_  bigint;
    seen     bigint;
    picked   bigint[] := '{}';
    more     bigint[];
    taken    bigint;
BEGIN
    is_busy := false; next_key := ''; next_priority := 0; next_seq := 0;
    PERFORM set_config('synchronous_commit', 'off', true);
    IF NOT pg_try_advisory_xact_lock(hashtextextended(wanted, 4918)) THEN
        is_busy := true;
        RETURN NEXT;
        RETURN;
    END IF;
    SELECT q.* INTO rule FROM {schema}.queues q WHERE q.name = wanted;
    IF rule.rate IS NOT NULL THEN
        SELECT q.* INTO rule FROM {schema}.queues q WHERE q.name = wanted FOR NO KEY UPDATE;
    END IF;
    IF rule.paused_at IS NOT NULL THEN
        RETURN NEXT;
        RETURN;
    END IF;
    IF rule.rate IS NOT NULL THEN
        now_ := clock_timestamp();
        purse := least(rule.rate, coalesce(rule.tokens, rule.rate)
                       + greatest(0, extract(epoch FROM now_ - coalesce(rule.refilled_at, now_))) * rule.rate / rule.rate_seconds);
        allowed := least(allowed, floor(purse + 1e-6)::bigint);
        IF rule.refilled_at > now_ THEN  -- the clock was set back: it fills from now on
            UPDATE {schema}.queues q SET refilled_at = now_ WHERE q.name = wanted;
        END IF;
        IF allowed <= 0 THEN
            pause := (1 - purse) * rule.rate_seconds / rule.rate;
        END IF;
    END IF;
    IF rule.at_most IS NOT NULL AND allowed > 0 THEN
        allowed := least(allowed, rule.at_most - (
            SELECT count(*) FROM {schema}.jobs j WHERE j.state = 2 AND j.flags & 256 = 256 AND j.queue = wanted));
    END IF;
    IF allowed <= 0 THEN
        RETURN NEXT;
        RETURN;
    END IF;

    IF rule.per_key IS NULL THEN
        picked := ARRAY(
            SELECT j.id
              FROM {schema}.jobs j
             WHERE j.state = 0 AND j.queue = wanted AND j.kind = ANY (kinds)
             ORDER BY j.priority, j.seq
             LIMIT allowed
               FOR UPDATE SKIP LOCKED);
    ELSE
        window_ := allowed * 2 + 100;
        WITH front AS MATERIALIZED (
            SELECT j.id, j.key, j.priority, j.seq
              FROM {schema}.jobs j
             WHERE j.state = 0 AND j.queue = wanted AND j.kind = ANY (kinds)
             ORDER BY j.priority, j.seq
             LIMIT window_
        ), place AS (
            SELECT f.*, row_number() OVER (PARTITION BY f.key ORDER BY f.priority, f.seq) AS n FROM front f
        ), room AS MATERIALIZED (
            SELECT f.key, rule.per_key - (SELECT count(*) FROM {schema}.jobs r
                                           WHERE r.state = 2 AND r.flags & 256 = 256 AND r.queue = wanted AND r.key = f.key) AS n
              FROM (SELECT DISTINCT f.key FROM front f WHERE f.key IS NOT NULL) f
        )
        SELECT (SELECT count(*) FROM front),
               ARRAY(SELECT p.id
                       FROM place p
                       LEFT JOIN room r ON r.key = p.key
                      WHERE p.key IS NULL OR p.n <= r.n
                      ORDER BY p.priority, p.seq
                      LIMIT allowed)
          INTO seen, picked;

        -- The front is full of keys that are full: go from key to key, as many as could be full, and some more.
        IF cardinality(picked) < allowed AND seen >= window_ THEN
            WITH RECURSIVE step AS (
                SELECT from_key AS key, 0 AS n
                UNION ALL
                SELECT f.key, s.n + 1
                  FROM step s
                 CROSS JOIN LATERAL (
                       SELECT j.key
                         FROM {schema}.jobs j
                        WHERE j.state = 0 AND j.queue = wanted AND j.key > s.key
                        ORDER BY j.key
                        LIMIT 1) f
                 WHERE s.n < 300
            ), room AS MATERIALIZED (
                SELECT s.key, rule.per_key
                              - (SELECT count(*) FROM {schema}.jobs r
                                  WHERE r.state = 2 AND r.flags & 256 = 256 AND r.queue = wanted AND r.key = s.key)
                              - (SELECT count(*) FROM {schema}.jobs p WHERE p.id = ANY (picked) AND p.key = s.key) AS n
                  FROM step s
                 WHERE s.n > 0
            )
            SELECT (SELECT CASE WHEN max(s.n) = 300 THEN max(s.key) ELSE '' END FROM step s),
                   ARRAY(SELECT c.id
                           FROM room r
                          CROSS JOIN LATERAL (
                                SELECT l.id, l.priority, l.seq
                                  FROM (SELECT j.id, j.kind, j.priority, j.seq
                                          FROM {schema}.jobs j
                                         WHERE j.state = 0 AND j.queue = wanted AND j.key = r.key AND j.id <> ALL (picked)
                                         ORDER BY j.priority, j.seq
                                         LIMIT 100 + r.n) l
                                 WHERE l.kind = ANY (kinds)
                                 ORDER BY l.priority, l.seq
                                 LIMIT r.n) c
                          WHERE r.n > 0
                          ORDER BY c.priority, c.seq
                          LIMIT allowed - cardinality(picked))
              INTO next_key, more;
            picked := picked || more;
        END IF;

        -- And those without a key, behind all of these: a piece of the line at a time.
        IF cardinality(picked) < allowed AND seen >= window_ THEN
            WITH piece AS MATERIALIZED (
                SELECT j.id, j.key, j.kind, j.priority, j.seq
                  FROM {schema}.jobs j
                 WHERE j.state = 0 AND j.queue = wanted AND (j.priority, j.seq) > (from_priority, from_seq)
                 ORDER BY j.priority, j.seq
                 LIMIT 2000
            ), last AS (
                SELECT p.priority, p.seq FROM piece p ORDER BY p.priority DESC, p.seq DESC LIMIT 1
            )
            SELECT ARRAY(SELECT p.id
                           FROM piece p
                          WHERE p.key IS NULL AND p.kind = ANY (kinds) AND p.id <> ALL (picked)
                          ORDER BY p.priority, p.seq
                          LIMIT allowed - cardinality(picked)),
                   CASE WHEN (SELECT count(*) FROM piece) = 2000 THEN (SELECT l.priority FROM last l) ELSE 0 END,
                   CASE WHEN (SELECT count(*) FROM piece) = 2000 THEN (SELECT l.seq FROM last l) ELSE 0 END
              INTO more, next_priority, next_seq;
            picked := picked || more;
        END IF;
    END IF;

    RETURN QUERY
    WITH held AS MATERIALIZED (
        SELECT l.id
          FROM unnest(picked) AS w(id)
         CROSS JOIN LATERAL (
               SELECT j.id FROM {schema}.jobs j WHERE j.id = w.id AND j.state + 0 = 0 FOR UPDATE SKIP LOCKED) l
    ), claimed AS (
        UPDATE {schema}.jobs j
           SET state = 2, claim = token, attempt = least(j.attempt + 1, 32767), claimed_at = clock_timestamp(), flags = j.flags | 256,
               unique_key = CASE WHEN j.flags & 32 = 0 THEN j.unique_key END
          FROM held h
         WHERE j.id = h.id
        RETURNING j.*
    )
    SELECT false, NULL::double precision, next_key, next_priority, next_seq,
           c.id, c.claim, c.kind, c.args, c.attempt, c.max_attempts, c.flags, c.queue,
           c.key, c.tenant, c.batch, c.meta, c.seq, c.priority, c.created_at
      FROM claimed c
     ORDER BY c.priority, c.seq;
    GET DIAGNOSTICS taken = ROW_COUNT;
    IF rule.rate IS NOT NULL AND taken > 0 THEN
        UPDATE {schema}.queues q SET tokens = purse - taken, refilled_at = now_ WHERE q.name = wanted;
    END IF;
    IF taken = 0 THEN
        RETURN NEXT;
    END IF;
END
$body$;
