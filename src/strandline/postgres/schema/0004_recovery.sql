-- When things go wrong: dead letters, rebuilds in the shadow, lifecycles.

CREATE TABLE {schema}.dead_letters (
    id          bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
    label       text        NOT NULL,
    shard       text        NOT NULL,
    tenant      text        NOT NULL,
    key         text        NOT NULL,
    position    bigint      NOT NULL,
    stream      text        NOT NULL,
    version     bigint      NOT NULL,
    type        text        NOT NULL,
    status      text        NOT NULL CHECK (status IN ('parked', 'skipped', 'resolved', 'discarded', 'superseded')),
    category    text        CHECK (category IN ('apply', 'undecodable', 'unknown_type')),
    error       jsonb,
    fingerprint text        NOT NULL DEFAULT '',
    attempts    integer     NOT NULL DEFAULT 0,
    data        jsonb,
    reason      text        NOT NULL DEFAULT '',
    retry_at    timestamptz,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    failed_at   timestamptz,
    closed_at   timestamptz,
    CONSTRAINT dead_letters_pkey PRIMARY KEY (id)
);

CREATE UNIQUE INDEX dead_letters_open_idx ON {schema}.dead_letters
    (label, tenant, key, position, (CASE WHEN key = '' OR right(key, 1) = '/' THEN shard ELSE '' END))
    WHERE status IN ('parked', 'skipped');
CREATE INDEX dead_letters_due_idx ON {schema}.dead_letters (label) WHERE retry_at IS NOT NULL;
CREATE INDEX dead_letters_closed_idx ON {schema}.dead_letters (closed_at) WHERE closed_at IS NOT NULL;

COMMENT ON TABLE {schema}.dead_letters IS
    'Events that a projection or subscription could not process, and those parked behind one. Written with the checkpoint.';
COMMENT ON COLUMN {schema}.dead_letters.key IS
    'What waits for it: a stream, a document or a row of a table. Empty, or MEMBER/ of a composite: nothing, since the key cannot be told; the slice in the shard''s name says for whose documents it stands.';
COMMENT ON COLUMN {schema}.dead_letters.category IS
    'NULL: it has not failed itself, it is parked behind one of the same key that has.';
COMMENT ON COLUMN {schema}.dead_letters.data IS
    'What an operator has put in the place of the event''s data for this projection alone.';
COMMENT ON COLUMN {schema}.dead_letters.retry_at IS
    'Somebody has asked for it to be tried again; the shard''s owner does so.';

CREATE TABLE {schema}.rebuilds (
    number       bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
    label        text        NOT NULL,
    purpose      text        NOT NULL CHECK (purpose IN ('rebuild', 'verify', 'repair')),
    scope        jsonb       NOT NULL DEFAULT '{}',
    parts        integer     NOT NULL CHECK (parts > 0),
    on_error     text        NOT NULL DEFAULT 'pause' CHECK (on_error IN ('pause', 'skip', 'park')),
    state        text        NOT NULL DEFAULT 'queued'
                             CHECK (state IN ('queued', 'building', 'sealed', 'done', 'cancelled', 'failed')),
    reason       text        NOT NULL DEFAULT '',
    target       bigint      NOT NULL DEFAULT 0,
    outcome      jsonb,
    requested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at   timestamptz,
    sealed_at    timestamptz,
    ended_at     timestamptz,
    CONSTRAINT rebuilds_pkey PRIMARY KEY (number)
);

CREATE UNIQUE INDEX rebuilds_open_idx ON {schema}.rebuilds (label) WHERE state IN ('queued', 'building', 'sealed');

COMMENT ON TABLE {schema}.rebuilds IS
    'Builds of a projection in a shadow schema of their own, beside the one that serves. Shards of a build are LABEL~NUMBER:part.';
COMMENT ON COLUMN {schema}.rebuilds.target IS 'The mark when it began, which is to be read at least; once it is done, up to where it had read.';

CREATE TABLE {schema}.lifecycles (
    label      text        NOT NULL,
    lifecycle  text        NOT NULL CHECK (lifecycle IN ('inline', 'async', 'retired')),
    until      bigint,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT lifecycles_pkey PRIMARY KEY (label)
);

COMMENT ON TABLE {schema}.lifecycles IS
    'Who brings a projection up to date: its appends, or nodes; or nobody any more. Appends to what is inline hold ROW SHARE on it.';
COMMENT ON COLUMN {schema}.lifecycles.until IS
    'async: up to this position its appends have applied events, NULL if they never have; retired: up to here it has raised side effects.';

ALTER TABLE {schema}.slicings ADD COLUMN effects_after bigint DEFAULT 0;

COMMENT ON COLUMN {schema}.slicings.effects_after IS
    'Side effects are raised for events beyond this position; NULL: not yet, an older version still raises them.';

ALTER TABLE {schema}.slicings ADD COLUMN build bigint;

COMMENT ON COLUMN {schema}.slicings.build IS
    'Number of the build whose shards these are, or whose swap they are sealed for: nobody else seals, opens or cuts them.';

ALTER TABLE {schema}.shard_status
    ADD COLUMN category text,
    ADD COLUMN phase    text,
    ADD COLUMN attempts integer NOT NULL DEFAULT 0,
    ADD COLUMN pauses   integer NOT NULL DEFAULT 0,
    ADD COLUMN next_at  timestamptz;

COMMENT ON COLUMN {schema}.shard_status.phase IS 'What failed: start, fetch, apply, commit or stop.';
COMMENT ON COLUMN {schema}.shard_status.next_at IS 'When a shard that rests is tried again.';
