-- The cluster: who is there, who leads, what should run where, and what happened.

CREATE TABLE {schema}.nodes (
    id                 uuid        NOT NULL,
    number             bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
    name               text        NOT NULL,
    state              text        NOT NULL CHECK (state IN ('joining', 'active', 'stalled', 'draining', 'left', 'dead')),
    mode               text        NOT NULL CHECK (mode IN ('cluster', 'follower')),
    labels             text[]      NOT NULL DEFAULT '{}',
    capacity           real        NOT NULL DEFAULT 1 CHECK (capacity > 0),
    priority           smallint    NOT NULL DEFAULT 0,
    version            text        NOT NULL DEFAULT '',
    host               text        NOT NULL DEFAULT '',
    pid                integer     NOT NULL DEFAULT 0,
    pulse              text        NOT NULL CHECK (pulse IN ('process', 'thread', 'loop')),
    ttl                real        NOT NULL,
    started_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    beats              bigint      NOT NULL DEFAULT 0,
    beat_at            timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at         timestamptz NOT NULL,
    steady_since       timestamptz NOT NULL DEFAULT clock_timestamp(),
    loop_lag           real        NOT NULL DEFAULT 0,
    progress           bigint      NOT NULL DEFAULT 0,
    drain_requested_at timestamptz,
    drain_reason       text        NOT NULL DEFAULT '',
    left_at            timestamptz,
    left_reason        text        NOT NULL DEFAULT '',
    report             jsonb,
    CONSTRAINT nodes_pkey PRIMARY KEY (id)
) WITH (fillfactor = 50);  -- one small row a node, updated by every beat

CREATE INDEX nodes_present_idx ON {schema}.nodes (number) WHERE state NOT IN ('left', 'dead');

COMMENT ON TABLE {schema}.nodes IS
    'One row per process start. An id is never used again, and left and dead are final.';
COMMENT ON COLUMN {schema}.nodes.steady_since IS
    'Since when its beats came without a long break: it could tell if another was silent.';

CREATE TABLE {schema}.leases (
    name                text        NOT NULL,
    epoch               bigint      NOT NULL DEFAULT 0,
    holder              uuid,
    acquired_at         timestamptz,
    renewed_at          timestamptz,
    expires_at          timestamptz NOT NULL DEFAULT '-infinity',
    renewals            bigint      NOT NULL DEFAULT 0,
    resign_requested_at timestamptz,
    resign_reason       text        NOT NULL DEFAULT '',
    CONSTRAINT leases_pkey PRIMARY KEY (name)
) WITH (fillfactor = 40);

COMMENT ON TABLE {schema}.leases IS
    'Named rights with an epoch that grows with every new holder. Logged, and never deleted: with the row the epoch would go.';

INSERT INTO {schema}.leases (name) VALUES ('leader');

CREATE TABLE {schema}.work (
    name       text        NOT NULL,
    needs      text[]      NOT NULL DEFAULT '{}',
    together   text        NOT NULL DEFAULT '',
    apart      text        NOT NULL DEFAULT '',
    weight     real        NOT NULL DEFAULT 1 CHECK (weight >= 0),
    pinned_to  text,
    paused_at  timestamptz,
    rests_until timestamptz,
    rests_for  uuid,
    reason     text        NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT work_pkey PRIMARY KEY (name)
);

COMMENT ON TABLE {schema}.work IS 'What should run, and under which conditions.';
COMMENT ON COLUMN {schema}.work.rests_until IS
    'Paused not by an operator but for a rebuild or the like, which renews this; what is past is over.';

CREATE TABLE {schema}.assignments (
    work         text        NOT NULL,
    target       uuid,
    target_at    timestamptz,
    leader_epoch bigint      NOT NULL DEFAULT 0,
    owner        uuid,
    owner_name   text        NOT NULL DEFAULT '',
    epoch        bigint      NOT NULL DEFAULT 0,
    owned_at     timestamptz,
    failures     integer     NOT NULL DEFAULT 0,
    avoid        jsonb       NOT NULL DEFAULT '{}',
    CONSTRAINT assignments_pkey PRIMARY KEY (work),
    CONSTRAINT assignments_work_fkey FOREIGN KEY (work) REFERENCES {schema}.work (name) ON DELETE CASCADE
) WITH (fillfactor = 50);

CREATE INDEX assignments_target_idx ON {schema}.assignments (target);
CREATE INDEX assignments_owner_idx ON {schema}.assignments (owner);

COMMENT ON TABLE {schema}.assignments IS
    'Where work should run (target, by the leader) and where it runs (owner and epoch, by claim and release).';
COMMENT ON COLUMN {schema}.assignments.owner_name IS
    'Of the last owner; kept after it has gone, so that a node of that name gets its work back.';
COMMENT ON COLUMN {schema}.assignments.avoid IS
    'Names of nodes that gave it up because it failed there, and until when: {name: instant}.';

CREATE TABLE {schema}.cluster (
    one     boolean NOT NULL DEFAULT true CHECK (one),
    version bigint  NOT NULL DEFAULT 0,
    CONSTRAINT cluster_pkey PRIMARY KEY (one)
);

INSERT INTO {schema}.cluster DEFAULT VALUES;

COMMENT ON TABLE {schema}.cluster IS
    'One row: version grows with every change of nodes, work, targets and owners, so that who cannot LISTEN sees it in its next beat.';

CREATE TABLE {schema}.node_log (
    id     bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
    at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    kind   text        NOT NULL,
    node   uuid,
    name   text        NOT NULL DEFAULT '',
    work   text,
    epoch  bigint,
    detail jsonb       NOT NULL DEFAULT '{}',
    CONSTRAINT node_log_pkey PRIMARY KEY (id)
);

COMMENT ON TABLE {schema}.node_log IS
    'What happened to nodes, leadership, plans and owners. The leader prunes it by age and by rows.';

-- Slices of one projection that run independently; how many there are is data, so that it can change.
CREATE TABLE {schema}.slicings (
    label       text        NOT NULL,
    parts       integer     NOT NULL CHECK (parts > 0),
    wanted      integer     NOT NULL CHECK (wanted > 0),
    wanted_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT slicings_pkey PRIMARY KEY (label)
);

COMMENT ON TABLE {schema}.slicings IS
    'Into how many shards a projection or subscription is cut, and into how many it is to be cut.';

ALTER TABLE {schema}.shards ADD COLUMN seal bigint;

COMMENT ON COLUMN {schema}.shards.seal IS
    'Where its owner must stop, since the projection is about to be cut otherwise; told by the claim.';
