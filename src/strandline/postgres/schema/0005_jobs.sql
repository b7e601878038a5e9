-- Jobs: the hot table of live jobs, their queues, what became of them, flows, and schedules.

CREATE SEQUENCE {schema}.job_ids;    -- drawn in blocks: a value n stands for the ids n * 1024 ... n * 1024 + 1023
CREATE SEQUENCE {schema}.job_order;  -- the order in which jobs become available

-- Live jobs only: what has ended is deleted, so that the table and its indexes stay small.
CREATE TABLE {schema}.jobs (
    id           bigint      NOT NULL,
    seq          bigint      NOT NULL DEFAULT nextval('{schema}.job_order'),
    claim        bigint,
    batch        bigint,
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    run_at       timestamptz,
    claimed_at   timestamptz,
    cancel_at    timestamptz,
    state        smallint    NOT NULL DEFAULT 0,
    priority     smallint    NOT NULL DEFAULT 5,
    attempt      smallint    NOT NULL DEFAULT 0,
    max_attempts smallint    NOT NULL DEFAULT 20,
    flags        smallint    NOT NULL DEFAULT 0,
    queue        text        NOT NULL DEFAULT 'default',
    kind         text        NOT NULL,
    key          text,
    unique_key   text,
    tenant       text,
    args         text        NOT NULL DEFAULT '{}',
    meta         text,
    errors       jsonb,
    progress     jsonb,
    cancel_reason text,
    CONSTRAINT jobs_pkey PRIMARY KEY (id)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 2000,
        autovacuum_vacuum_cost_delay = 0, autovacuum_vacuum_insert_scale_factor = 0.05,
        autovacuum_analyze_scale_factor = 0.05);

-- Its order is the order of the fetch. What is not available is in none of its pages.
CREATE INDEX jobs_ready_idx ON {schema}.jobs (queue, priority, seq) WHERE state = 0;
CREATE INDEX jobs_due_idx ON {schema}.jobs (run_at) WHERE state = 1;
CREATE INDEX jobs_running_idx ON {schema}.jobs (claim) WHERE state = 2;
CREATE INDEX jobs_blocked_idx ON {schema}.jobs (queue, key, seq) WHERE state = 3 AND flags & 513 = 1;
CREATE UNIQUE INDEX jobs_unique_idx ON {schema}.jobs (unique_key) WHERE unique_key IS NOT NULL;
CREATE UNIQUE INDEX jobs_head_idx ON {schema}.jobs (queue, key) WHERE flags & 1 = 1 AND state <> 3;
CREATE INDEX jobs_limited_idx ON {schema}.jobs (queue, key) WHERE state = 2 AND flags & 256 = 256;
CREATE INDEX jobs_key_idx ON {schema}.jobs (queue, key, priority, seq) WHERE state = 0 AND key IS NOT NULL;
CREATE INDEX jobs_cancel_idx ON {schema}.jobs (claim) WHERE cancel_at IS NOT NULL AND state = 2;
CREATE INDEX jobs_batch_idx ON {schema}.jobs (batch) WHERE batch IS NOT NULL;

COMMENT ON TABLE {schema}.jobs IS
    'Live jobs. Who holds one is told by its claim: (number of the node << 32) + number of the fetch. Every later write names it.';
COMMENT ON COLUMN {schema}.jobs.state IS
    '0 available, 1 scheduled (retryable if it has been attempted), 2 running, 3 blocked: behind one of its key, its parents, or a batch.';
COMMENT ON COLUMN {schema}.jobs.flags IS
    'Bits: 1 ordered by its key, 2 has children, 4 has parents, 8 stands in a batch, 16 args are encrypted, 32 unique until it starts, 64 keep all, 128 keep nothing, 256 counts for the limits of its queue, 512 waits for parents.';
COMMENT ON COLUMN {schema}.jobs.seq IS 'Drawn anew whenever it becomes available, but for jobs that are given back unstarted.';

CREATE TABLE {schema}.dead_jobs (
    id           bigint      NOT NULL,
    batch        bigint,
    created_at   timestamptz NOT NULL,
    died_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    priority     smallint    NOT NULL,
    attempt      smallint    NOT NULL,
    max_attempts smallint    NOT NULL,
    flags        smallint    NOT NULL,
    queue        text        NOT NULL,
    kind         text        NOT NULL,
    key          text,
    unique_key   text,
    tenant       text,
    args         text        NOT NULL,
    meta         text,
    errors       jsonb,
    fingerprint  text        NOT NULL DEFAULT '',
    CONSTRAINT dead_jobs_pkey PRIMARY KEY (id)
);

CREATE INDEX dead_jobs_kind_idx ON {schema}.dead_jobs (kind, id);
CREATE INDEX dead_jobs_fingerprint_idx ON {schema}.dead_jobs (fingerprint, id);
CREATE UNIQUE INDEX dead_jobs_head_idx ON {schema}.dead_jobs (queue, key) WHERE flags & 1 = 1;
CREATE INDEX dead_jobs_batch_idx ON {schema}.dead_jobs (batch) WHERE batch IS NOT NULL;

COMMENT ON TABLE {schema}.dead_jobs IS 'Jobs whose attempts are used up. Kept until somebody retries or discards them.';

-- What has ended, by day; a day is dropped as a whole.
CREATE TABLE {schema}.job_history (
    id           bigint      NOT NULL,
    finished_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    outcome      text        NOT NULL CHECK (outcome IN ('completed', 'cancelled', 'discarded')),
    created_at   timestamptz NOT NULL,
    claimed_at   timestamptz,
    node         bigint,
    priority     smallint    NOT NULL,
    attempt      smallint    NOT NULL,
    queue        text        NOT NULL,
    kind         text        NOT NULL,
    key          text,
    tenant       text,
    args         text        NOT NULL,
    meta         text,
    errors       jsonb,
    result       text,
    reason       text
) PARTITION BY RANGE (finished_at);

CREATE TABLE {schema}.job_history_default PARTITION OF {schema}.job_history DEFAULT;
CREATE INDEX job_history_id_idx ON {schema}.job_history (id);
CREATE INDEX job_history_finished_idx ON {schema}.job_history (finished_at, id);

COMMENT ON TABLE {schema}.job_history IS
    'Jobs that have ended, as far as they are kept, partitioned by day. The leader makes and drops the days.';

CREATE TABLE {schema}.job_edges (
    child   bigint NOT NULL,
    parent  bigint NOT NULL,
    name    text   NOT NULL DEFAULT '',
    lenient boolean NOT NULL DEFAULT false,
    ended   text   CHECK (ended IN ('completed', 'cancelled', 'discarded')),
    result  text,
    CONSTRAINT job_edges_pkey PRIMARY KEY (child, parent)
);

CREATE INDEX job_edges_parent_idx ON {schema}.job_edges (parent);

COMMENT ON TABLE {schema}.job_edges IS
    'A child waits for all of its parents, jobs or batches; lenient: however that one ends. Rows go when the child has ended; until then they keep the parents'' results.';

CREATE TABLE {schema}.job_batches (
    id          bigint      NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    members     bigint      NOT NULL,
    completed   bigint      NOT NULL DEFAULT 0,
    failed      bigint      NOT NULL DEFAULT 0,
    then_job    bigint,
    always_job  bigint,
    batch       bigint,
    ended_at    timestamptz,
    CONSTRAINT job_batches_pkey PRIMARY KEY (id)
) WITH (fillfactor = 50);

COMMENT ON TABLE {schema}.job_batches IS
    'Jobs that are waited for together; then_job runs when all have completed, always_job when all have ended.';

CREATE TABLE {schema}.job_periods (
    unique_key  text        NOT NULL,
    job         bigint      NOT NULL,
    expires_at  timestamptz NOT NULL,
    CONSTRAINT job_periods_pkey PRIMARY KEY (unique_key)
);

CREATE INDEX job_periods_expires_idx ON {schema}.job_periods (expires_at);

COMMENT ON TABLE {schema}.job_periods IS 'Which job was enqueued under a key that is unique for a time, also once it has ended.';

CREATE TABLE {schema}.queues (
    name          text        NOT NULL CHECK (octet_length(name) BETWEEN 1 AND 100),
    concurrency   integer     CHECK (concurrency > 0),
    at_most       integer     CHECK (at_most > 0),
    per_key       integer     CHECK (per_key > 0),
    rate          integer     CHECK (rate > 0),
    rate_seconds  double precision CHECK (rate_seconds > 0),
    tokens        double precision,
    refilled_at   timestamptz,
    paused_at     timestamptz,
    paused_reason text        NOT NULL DEFAULT '',
    set_by        text        NOT NULL DEFAULT 'code' CHECK (set_by IN ('code', 'operator')),
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    changed_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT queues_pkey PRIMARY KEY (name)
) WITH (fillfactor = 50);

COMMENT ON TABLE {schema}.queues IS
    'Queues with settings of their own; a queue needs no row to be used. What an operator has set is not changed by code.';

CREATE TABLE {schema}.schedules (
    name       text        NOT NULL CHECK (octet_length(name) BETWEEN 1 AND 200),
    spec       text        NOT NULL,
    zone       text        NOT NULL DEFAULT 'UTC',
    missed     text        NOT NULL DEFAULT 'once' CHECK (missed IN ('skip', 'once', 'all')),
    job        text        NOT NULL,
    next_at    timestamptz NOT NULL,
    last_at    timestamptz,
    last_job   bigint,
    fired      bigint      NOT NULL DEFAULT 0,
    paused_at  timestamptz,
    set_by     text        NOT NULL DEFAULT 'code' CHECK (set_by IN ('code', 'operator')),
    error      text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT schedules_pkey PRIMARY KEY (name)
);

CREATE INDEX schedules_due_idx ON {schema}.schedules (next_at) WHERE paused_at IS NULL;

COMMENT ON TABLE {schema}.schedules IS 'Jobs enqueued again and again. job is what to enqueue, as JSON, so that any leader can fire it.';

CREATE TABLE {schema}.job_senders (
    id      bigint      NOT NULL,
    number  bigint      NOT NULL,
    sent_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    answer  text,
    CONSTRAINT job_senders_pkey PRIMARY KEY (id)
) WITH (fillfactor = 50);

COMMENT ON TABLE {schema}.job_senders IS
    'How far each sender of jobs has come: written with its jobs, so that what is sent again after a lost answer is stored once, also if it has run meanwhile.';

CREATE TYPE {schema}.enqueue_outcome AS (
    item    bigint,  -- place in the batch, from 1
    outcome text,    -- new; replaced; duplicate: one is there already; refused: the same, and it is an error; undone: refused with a sibling
    job     bigint   -- its id, or that of the one there is
);

-- Inserts one job under its unique key, if it has one. An item is
-- [id, kind, args, queue, priority, max_attempts, flags, run_at, delay, key, tenant, batch, meta, blocked,
--  unique_key, unique_seconds, on_duplicate].
-- place: its seq, drawn before in the order of the batch.
-- Waits for whoever is inserting the same key; a later look of this function sees what that one has committed.
CREATE FUNCTION {schema}.enqueue_unique(item bigint, r jsonb, place bigint)
RETURNS {schema}.enqueue_outcome
LANGUAGE plpgsql VOLATILE
AS $body$
DECLARE
    ukey        text := r->>14;
    seconds     double precision := (r->>15)::double precision;
    period      bigint;
    at          timestamptz := coalesce((r->>7)::timestamptz, clock_timestamp() + (r->>8)::double precision * interval '1 second');
    new_state   smallint := CASE WHEN (r->>13)::boolean THEN 3 WHEN at > clock_timestamp() THEN 1 ELSE 0 END;
    found_job   bigint;
BEGIN
    IF seconds IS NOT NULL THEN
        period := floor(extract(epoch FROM clock_timestamp())::double precision / seconds);
        ukey := format('%s/%s/%s', ukey, seconds, period);
    END IF;
    FOR tries IN 1 .. 1000 LOOP
        IF seconds IS NOT NULL THEN
            INSERT INTO {schema}.job_periods AS p (unique_key, job, expires_at)
            VALUES (ukey, (r->>0)::bigint, to_timestamp((period + 1) * seconds))
            ON CONFLICT ON CONSTRAINT job_periods_pkey DO NOTHING;
        END IF;
        IF seconds IS NULL OR FOUND THEN
            INSERT INTO {schema}.jobs AS j
                   (id, seq, kind, args, queue, priority, max_attempts, flags, run_at, key, tenant, batch, meta, state, unique_key)
            VALUES ((r->>0)::bigint, place, r->>1, r->>2, r->>3, (r->>4)::smallint, (r->>5)::smallint, (r->>6)::smallint, at,
                    r->>9, r->>10, (r->>11)::bigint, r->>12, new_state, CASE WHEN seconds IS NULL THEN ukey END)
            ON CONFLICT (unique_key) WHERE unique_key IS NOT NULL DO NOTHING;
            IF FOUND THEN
                RETURN (item, 'new'::text, (r->>0)::bigint);
            END IF;
            SELECT j.id INTO found_job FROM {schema}.jobs j WHERE j.unique_key = ukey;
        ELSE
            SELECT p.job INTO found_job FROM {schema}.job_periods p WHERE p.unique_key = ukey;
        END IF;
        IF found_job IS NOT NULL AND r->>16 = 'raise' THEN
            RETURN (item, 'refused'::text, found_job);
        END IF;
        IF found_job IS NOT NULL AND r->>16 = 'replace' THEN  -- one that has not started; the time starts anew
            IF {schema}.replace_job(found_job, r, at, place) THEN
                RETURN (item, 'replaced'::text, found_job);
            END IF;
            CONTINUE WHEN seconds IS NULL AND NOT EXISTS (SELECT FROM {schema}.jobs j WHERE j.unique_key = ukey);
        END IF;
        IF found_job IS NOT NULL THEN
            RETURN (item, 'duplicate'::text, found_job);
        END IF;
    END LOOP;  -- the one that was in the way had ended before it could be read
    RAISE EXCEPTION 'unique key % was taken and freed again and again', ukey USING ERRCODE = 'serialization_failure';
END
$body$;

-- Inserts jobs, each with its own outcome; unique keys in one order for everybody, those without one last.
CREATE FUNCTION {schema}.enqueue_batch(batch text)
RETURNS SETOF {schema}.enqueue_outcome
LANGUAGE plpgsql VOLATILE
AS $body$
DECLARE
    one record;
BEGIN
    FOR one IN
        SELECT d.o, d.r, d.place
          FROM (SELECT u.o, u.r, nextval('{schema}.job_order') AS place
                  FROM jsonb_array_elements(batch::jsonb) WITH ORDINALITY AS u(r, o)) d
         ORDER BY (d.r->>14) COLLATE "C", d.o
    LOOP
        RETURN NEXT {schema}.enqueue_unique(one.o, one.r, one.place);
    END LOOP;
END
$body$;

-- Like enqueue_batch, but all or none: with one refused, the others are undone.
CREATE FUNCTION {schema}.enqueue_together(batch text)
RETURNS SETOF {schema}.enqueue_outcome
LANGUAGE plpgsql VOLATILE
AS $body$
DECLARE
    outcomes {schema}.enqueue_outcome[];
BEGIN
    BEGIN
        SELECT array_agg(b ORDER BY b.item) INTO outcomes FROM {schema}.enqueue_batch(batch) b;
        IF EXISTS (SELECT FROM unnest(outcomes) u WHERE u.outcome = 'refused') THEN
            RAISE EXCEPTION 'refused' USING ERRCODE = 'SL005';
        END IF;
    EXCEPTION WHEN SQLSTATE 'SL005' THEN  -- the inner block's writes are gone, the variable is not
        SELECT array_agg((u.item, CASE u.outcome WHEN 'refused' THEN 'refused' ELSE 'undone' END, u.job)::{schema}.enqueue_outcome)
          INTO outcomes FROM unnest(outcomes) u;
    END;
    RETURN QUERY SELECT * FROM unnest(outcomes);
END
$body$;

-- enqueue_batch for a sender that may send it again: the second time it answers what it answered the first time.
CREATE FUNCTION {schema}.enqueue_once(sender bigint, number bigint, batch text)
RETURNS SETOF {schema}.enqueue_outcome
LANGUAGE plpgsql VOLATILE
AS $body$
#variable_conflict use_variable
DECLARE
    outcomes {schema}.enqueue_outcome[];
BEGIN
    INSERT INTO {schema}.job_senders AS s (id, number) VALUES (sender, number)
        ON CONFLICT ON CONSTRAINT job_senders_pkey DO UPDATE
       SET number = excluded.number, sent_at = clock_timestamp()
     WHERE s.number < excluded.number;
    IF FOUND THEN
        SELECT array_agg(b ORDER BY b.item) INTO outcomes FROM {schema}.enqueue_batch(batch) b;
        UPDATE {schema}.job_senders s SET answer = array_to_json(outcomes)::text WHERE s.id = sender;
        RETURN QUERY SELECT * FROM unnest(outcomes);
        RETURN;
    END IF;
    RETURN QUERY
        SELECT u.item, u.outcome, u.job
          FROM {schema}.job_senders s, json_populate_recordset(NULL::{schema}.enqueue_outcome, s.answer::json) AS u
         WHERE s.id = sender AND s.number = number;
END
$body$;

-- For any language and driver: enqueue a job inside the caller's transaction; its id, or that of the live job with the
-- same unique key and tenant. ordered: one of its queue and key at a time, as the kind should say too. Wakes workers when
-- the transaction commits. Raises SL004 for what cannot be stored.
CREATE FUNCTION {schema}.enqueue(
    kind         text,
    args         jsonb       DEFAULT '{}',
    queue        text        DEFAULT 'default',
    priority     integer     DEFAULT 5,
    run_at       timestamptz DEFAULT NULL,
    key          text        DEFAULT NULL,
    unique_key   text        DEFAULT NULL,
    max_attempts integer     DEFAULT 20,
    tenant       text        DEFAULT NULL,
    ordered      boolean     DEFAULT false
)
RETURNS bigint
LANGUAGE plpgsql VOLATILE
AS $body$
#variable_conflict use_variable
DECLARE
    job bigint := nextval('{schema}.job_ids') * 1024;
BEGIN
    IF kind IS NULL OR octet_length(kind) NOT BETWEEN 1 AND 200
       OR queue IS NULL OR octet_length(queue) NOT BETWEEN 1 AND 100 THEN
        RAISE EXCEPTION 'a job''s kind has 1 to 200 bytes, its queue 1 to 100' USING ERRCODE = 'SL004';
    END IF;
    IF octet_length(key) NOT BETWEEN 1 AND 500 OR octet_length(unique_key) NOT BETWEEN 1 AND 500
       OR octet_length(tenant) NOT BETWEEN 1 AND 200 THEN
        RAISE EXCEPTION 'keys of a job have 1 to 500 bytes, a tenant 1 to 200' USING ERRCODE = 'SL004';
    END IF;
    IF ordered IS NULL OR (ordered AND key IS NULL) THEN
        RAISE EXCEPTION 'what is ordered needs a key' USING ERRCODE = 'SL004';
    END IF;
    IF jsonb_typeof(args) IS DISTINCT FROM 'object' THEN
        RAISE EXCEPTION 'args must be a JSON object: the arguments by name' USING ERRCODE = 'SL004';
    END IF;
    IF octet_length(args::text) > 16777216 THEN
        RAISE EXCEPTION 'args have more than 16 MiB: store the large part elsewhere' USING ERRCODE = 'SL004';
    END IF;
    IF run_at NOT BETWEEN '0001-01-02 00:00:00+00' AND '9999-12-30 00:00:00+00' THEN  -- what clients can read
        RAISE EXCEPTION 'run_at is between the years 1 and 9999' USING ERRCODE = 'SL004';
    END IF;
    IF priority IS NULL OR priority NOT BETWEEN 1 AND 9
       OR max_attempts IS NULL OR max_attempts NOT BETWEEN 1 AND 32767 THEN
        RAISE EXCEPTION 'priority is 1 (first) to 9, max_attempts 1 to 32767' USING ERRCODE = 'SL004';
    END IF;
    IF unique_key IS NOT NULL THEN
        SELECT b.job INTO job
          FROM {schema}.enqueue_batch(jsonb_build_array(jsonb_build_array(
                   job, kind, args::text, queue, priority, max_attempts, ordered::int, run_at, NULL, key, tenant, NULL, NULL,
                   ordered, coalesce(octet_length(tenant) || ':' || tenant || ':', '') || unique_key, NULL, 'ignore'))::text) b;
    ELSE
        INSERT INTO {schema}.jobs AS j (id, kind, args, queue, priority, max_attempts, run_at, key, tenant, flags, state)
        VALUES (job, kind, args::text, queue, priority, max_attempts, run_at, key, tenant, ordered::int,
                CASE WHEN ordered THEN 3 WHEN run_at > clock_timestamp() THEN 1 ELSE 0 END);
    END IF;
    IF ordered THEN
        PERFORM {schema}.tell_turn(queue, key);
    ELSIF run_at IS NULL OR run_at <= clock_timestamp() THEN
        PERFORM pg_notify((parse_ident('{schema}.jobs'))[1] || '.jobs', queue);
    END IF;
    RETURN job;
END
$body$;
