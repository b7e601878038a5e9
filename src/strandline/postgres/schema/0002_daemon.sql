-- Shards: who may process for a projection or subscription, and how far it is.

CREATE TABLE {schema}.shards (
    name       text        NOT NULL,
    position   bigint      NOT NULL DEFAULT 0,
    epoch      bigint      NOT NULL DEFAULT 0,
    owner      uuid,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    claimed_at timestamptz,
    CONSTRAINT shards_pkey PRIMARY KEY (name)
) WITH (fillfactor = 50);  -- one small row, updated by every batch

COMMENT ON TABLE {schema}.shards IS
    'Checkpoints. Every write names (owner, epoch) and the position it starts from; a later claim refuses it.';

CREATE TABLE {schema}.shard_status (
    name       text        NOT NULL,
    state      text        NOT NULL CHECK (state IN ('running', 'paused', 'stopped')),
    node       text        NOT NULL,
    reason     text        NOT NULL DEFAULT '',
    failure    jsonb,
    rate       real        NOT NULL DEFAULT 0,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT shard_status_pkey PRIMARY KEY (name)
) WITH (fillfactor = 50);

COMMENT ON TABLE {schema}.shard_status IS
    'What agents say of themselves; apart from shards, so that telling never waits for a checkpoint.';
