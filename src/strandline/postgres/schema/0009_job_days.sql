-- Days of the history. Each function is a whole transaction: no client stands between its locks and its commit.

-- Whether the caller leads, and goes on to until it commits. No epoch: there is no cluster, and nobody does.
CREATE FUNCTION {schema}.still_leads(me uuid, epoch bigint)
RETURNS boolean
LANGUAGE plpgsql VOLATILE
AS $body$
BEGIN
    IF still_leads.epoch IS NULL THEN
        RETURN true;
    END IF;
    PERFORM FROM {schema}.leases l WHERE l.name = 'leader' AND l.holder = me AND l.epoch = still_leads.epoch FOR SHARE;
    RETURN FOUND;
END
$body$;

-- Makes the partition of a day; rows of it in the default partition move there. made; left: there are more than `most`
-- of these, so that they stay; refused: the caller does not lead (epoch NULL: it need not). Waits only briefly for the
-- tables, since whoever asks for a table alone makes everybody else wait behind it. The parent is locked first, against
-- readers too: whoever has looked up the partitions and then waits for the default one would not see what moved.
CREATE FUNCTION {schema}.make_job_day(day date, most bigint, me uuid, epoch bigint)
RETURNS text
LANGUAGE plpgsql VOLATILE
SET lock_timeout = '500ms'
AS $body$
#variable_conflict use_variable
DECLARE
    since  timestamptz := day::timestamp AT TIME ZONE 'UTC';
    beyond timestamptz := (day + 1)::timestamp AT TIME ZONE 'UTC';
    name   text := 'job_history_' || to_char(day, 'YYYYMMDD');
    strays bigint;
BEGIN
    LOCK TABLE ONLY {schema}.job_history IN ACCESS EXCLUSIVE MODE;
    LOCK TABLE ONLY {schema}.job_history_default IN ACCESS EXCLUSIVE MODE;
    IF NOT {schema}.still_leads(me, epoch) THEN
        RETURN 'refused';
    END IF;
    SELECT count(*) INTO strays
      FROM (SELECT FROM {schema}.job_history_default h
             WHERE h.finished_at >= since AND h.finished_at < beyond LIMIT most + 1) s;
    IF strays > most THEN
        RETURN 'left';
    END IF;
    EXECUTE format('CREATE TABLE IF NOT EXISTS {schema}.%I (LIKE {schema}.job_history INCLUDING ALL)', name);
    IF strays > 0 THEN
        EXECUTE format(
            'WITH moved AS (DELETE FROM {schema}.job_history_default h WHERE h.finished_at >= $1 AND h.finished_at < $2 RETURNING h.*)
             INSERT INTO {schema}.%I SELECT * FROM moved', name) USING since, beyond;
    END IF;
    EXECUTE format('ALTER TABLE {schema}.job_history ATTACH PARTITION {schema}.%I FOR VALUES FROM (%L) TO (%L)', name, since, beyond);
    RETURN 'made';
END
$body$;

-- Drops the partition of a day with everything in it: dropped, or refused.
CREATE FUNCTION {schema}.drop_job_day(day date, me uuid, epoch bigint)
RETURNS text
LANGUAGE plpgsql VOLATILE
SET lock_timeout = '500ms'
AS $body$
BEGIN
    LOCK TABLE ONLY {schema}.job_history IN ACCESS EXCLUSIVE MODE;
    IF NOT {schema}.still_leads(me, epoch) THEN
        RETURN 'refused';
    END IF;
    EXECUTE format('DROP TABLE IF EXISTS {schema}.%I', 'job_history_' || to_char(day, 'YYYYMMDD'));
    RETURN 'dropped';
END
$body$;
