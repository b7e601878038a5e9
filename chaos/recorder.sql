-- What the checker notes inside the database while the run goes on: who owned what, who moved which
-- checkpoint, and at once what must never happen. It reads strandline's tables and changes none of them.
-- Run by recorder.py in the app's database; strandline's schema is `strandline`.

CREATE SCHEMA chaos;

CREATE TABLE chaos.ledger (
    seq      bigint GENERATED ALWAYS AS IDENTITY,
    position bigint NOT NULL,
    stream   text   NOT NULL,
    number   bigint NOT NULL
);

CREATE TABLE chaos.journal (
    seq      bigint GENERATED ALWAYS AS IDENTITY,
    position bigint NOT NULL,
    stream   text   NOT NULL,
    number   bigint NOT NULL,
    epoch    bigint NOT NULL
);

CREATE TABLE chaos.notes (
    seq      bigint GENERATED ALWAYS AS IDENTITY,
    position bigint NOT NULL,
    stream   text   NOT NULL,
    number   bigint NOT NULL
);

-- Every change of a node's state, of a lease's holder, of an owner. Ids grow in the order of commits
-- of one row: they are drawn while its lock is held.
CREATE TABLE chaos.signs (
    id     bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    kind   text        NOT NULL,  -- node, lease, assignment, shard
    name   text        NOT NULL,
    owner  uuid,
    epoch  bigint,
    detail text        NOT NULL DEFAULT ''
);

CREATE TABLE chaos.violations (
    id        bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    invariant text        NOT NULL,
    words     text        NOT NULL
);

-- Which process claimed a shard under its present epoch. A process is known by the setting
-- `chaos.node` that its database URL carries.
CREATE TABLE chaos.claims (
    shard text   NOT NULL PRIMARY KEY,
    owner uuid,
    epoch bigint NOT NULL,
    tag   text   NOT NULL
) WITH (fillfactor = 50);

CREATE FUNCTION chaos.tag() RETURNS text LANGUAGE sql STABLE
RETURN coalesce(current_setting('chaos.node', true), '');

CREATE FUNCTION chaos.accuse(invariant text, words text) RETURNS void LANGUAGE sql VOLATILE
BEGIN ATOMIC
    INSERT INTO chaos.violations (invariant, words) VALUES (invariant, words);
END;

CREATE FUNCTION chaos.watch_shards() RETURNS trigger LANGUAGE plpgsql AS $body$
DECLARE
    claim chaos.claims;
BEGIN
    IF TG_OP = 'DELETE' THEN
        DELETE FROM chaos.claims WHERE shard = OLD.name;
        RETURN NULL;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        IF NEW.position < OLD.position THEN
            PERFORM chaos.accuse('I1', format('checkpoint of %s moved back from %s to %s by %s (epoch %s)',
                                              NEW.name, OLD.position, NEW.position, chaos.tag(), NEW.epoch));
        END IF;
        IF NEW.epoch < OLD.epoch THEN
            PERFORM chaos.accuse('I3', format('epoch of %s went back from %s to %s', NEW.name, OLD.epoch, NEW.epoch));
        END IF;
        IF NEW.owner IS NOT NULL AND NEW.owner IS DISTINCT FROM OLD.owner AND NEW.epoch <= OLD.epoch THEN
            PERFORM chaos.accuse('I3', format('%s changed its owner from %s to %s within epoch %s',
                                              NEW.name, OLD.owner, NEW.owner, NEW.epoch));
        END IF;
    END IF;
    IF TG_OP = 'INSERT' OR NEW.epoch <> OLD.epoch OR NEW.owner IS DISTINCT FROM OLD.owner THEN
        INSERT INTO chaos.signs (kind, name, owner, epoch, detail)
        VALUES ('shard', NEW.name, NEW.owner, NEW.epoch, chaos.tag());
        INSERT INTO chaos.claims (shard, owner, epoch, tag)
        VALUES (NEW.name, NEW.owner, NEW.epoch, chaos.tag())
            ON CONFLICT (shard) DO UPDATE SET owner = excluded.owner, epoch = excluded.epoch, tag = excluded.tag;
    ELSIF NEW.position > OLD.position THEN
        SELECT * INTO claim FROM chaos.claims WHERE shard = NEW.name;
        IF claim.tag IS DISTINCT FROM chaos.tag() OR NEW.owner IS NULL THEN
            PERFORM chaos.accuse('I3', format('%s was moved from %s to %s by %s under epoch %s, which %s claimed for %s',
                                              NEW.name, OLD.position, NEW.position, chaos.tag(), NEW.epoch,
                                              claim.tag, NEW.owner));
        END IF;
    END IF;
    RETURN NULL;
END
$body$;

CREATE TRIGGER chaos_shards AFTER INSERT OR UPDATE OR DELETE ON strandline.shards
    FOR EACH ROW EXECUTE FUNCTION chaos.watch_shards();

CREATE FUNCTION chaos.watch_leases() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    IF TG_OP = 'DELETE' THEN
        PERFORM chaos.accuse('epochs', format('lease %s was deleted, and with it epoch %s', OLD.name, OLD.epoch));
        RETURN NULL;
    END IF;
    IF NEW.epoch < OLD.epoch THEN
        PERFORM chaos.accuse('epochs', format('epoch of lease %s went back from %s to %s', NEW.name, OLD.epoch, NEW.epoch));
    END IF;
    IF NEW.holder IS NOT NULL AND NEW.holder IS DISTINCT FROM OLD.holder AND NEW.epoch <= OLD.epoch THEN
        PERFORM chaos.accuse('epochs', format('lease %s has a second holder %s (after %s) at epoch %s',
                                              NEW.name, NEW.holder, OLD.holder, NEW.epoch));
    END IF;
    IF NEW.epoch <> OLD.epoch OR NEW.holder IS DISTINCT FROM OLD.holder THEN
        INSERT INTO chaos.signs (kind, name, owner, epoch, detail)
        VALUES ('lease', NEW.name, NEW.holder, NEW.epoch, chaos.tag());
    END IF;
    RETURN NULL;
END
$body$;

CREATE TRIGGER chaos_leases AFTER UPDATE OR DELETE ON strandline.leases
    FOR EACH ROW EXECUTE FUNCTION chaos.watch_leases();

CREATE FUNCTION chaos.watch_assignments() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF NEW.epoch < OLD.epoch THEN
            PERFORM chaos.accuse('epochs', format('epoch of work %s went back from %s to %s', NEW.work, OLD.epoch, NEW.epoch));
        END IF;
        IF NEW.owner IS NOT NULL AND NEW.owner IS DISTINCT FROM OLD.owner AND NEW.epoch <= OLD.epoch THEN
            PERFORM chaos.accuse('epochs', format('work %s has a second owner %s (after %s) at epoch %s',
                                                  NEW.work, NEW.owner, OLD.owner, NEW.epoch));
        END IF;
        IF NEW.owner IS NOT DISTINCT FROM OLD.owner AND NEW.epoch = OLD.epoch THEN
            RETURN NULL;
        END IF;
    END IF;
    INSERT INTO chaos.signs (kind, name, owner, epoch, detail)
    VALUES ('assignment', NEW.work, NEW.owner, NEW.epoch, chaos.tag());
    RETURN NULL;
END
$body$;

CREATE TRIGGER chaos_assignments AFTER INSERT OR UPDATE ON strandline.assignments
    FOR EACH ROW EXECUTE FUNCTION chaos.watch_assignments();

CREATE FUNCTION chaos.watch_nodes() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF OLD.state IN ('left', 'dead') AND NEW.state <> OLD.state THEN
            PERFORM chaos.accuse('membership', format('node %s (%s) was %s and is %s', NEW.name, NEW.id, OLD.state, NEW.state));
        END IF;
        IF OLD.state = NEW.state THEN
            RETURN NULL;
        END IF;
    END IF;
    INSERT INTO chaos.signs (kind, name, owner, detail)
    VALUES ('node', NEW.name, NEW.id, NEW.state || ' ' || NEW.left_reason);
    RETURN NULL;
END
$body$;

CREATE TRIGGER chaos_nodes AFTER INSERT OR UPDATE OF state ON strandline.nodes
    FOR EACH ROW EXECUTE FUNCTION chaos.watch_nodes();

CREATE FUNCTION chaos.watch_mark() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    PERFORM chaos.accuse('I4', format('the mark moved back from %s to %s', OLD.position, NEW.position));
    RETURN NULL;
END
$body$;

CREATE TRIGGER chaos_mark AFTER UPDATE ON strandline.high_water
    FOR EACH ROW WHEN (NEW.position < OLD.position) EXECUTE FUNCTION chaos.watch_mark();

-- Write errors as of a full disk: recorder.py replaces this body for a while. Replacing a function locks
-- no table, so it works however the tables are held.
CREATE FUNCTION chaos.write() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    RETURN NULL;
END
$body$;

CREATE TRIGGER chaos_write BEFORE INSERT OR UPDATE ON strandline.shards
    FOR EACH STATEMENT EXECUTE FUNCTION chaos.write();
CREATE TRIGGER chaos_write BEFORE INSERT OR UPDATE ON strandline.events
    FOR EACH STATEMENT EXECUTE FUNCTION chaos.write();
CREATE TRIGGER chaos_write BEFORE INSERT OR UPDATE ON strandline.nodes
    FOR EACH STATEMENT EXECUTE FUNCTION chaos.write();
CREATE TRIGGER chaos_write BEFORE INSERT OR UPDATE ON strandline.leases
    FOR EACH STATEMENT EXECUTE FUNCTION chaos.write();
CREATE TRIGGER chaos_write BEFORE INSERT OR UPDATE ON strandline.high_water
    FOR EACH STATEMENT EXECUTE FUNCTION chaos.write();
