-- Which migrations a database has; used by migrations.py.

-- name: lock_migrations(name text) :one
-- One migrator at a time in a database; released with the transaction.
SELECT true AS locked FROM (SELECT pg_advisory_xact_lock(hashtextextended('strandline migrations ' || $1, 0))) AS l;

-- name: migrations_exist(schema text) :one
-- Whether the schema has ever been migrated.
SELECT to_regclass(quote_ident($1) || '.migrations') IS NOT NULL AS found;

-- name: create_migrations() :none
CREATE SCHEMA IF NOT EXISTS {schema};

-- name: create_migrations_table() :none
CREATE TABLE {schema}.migrations (
    number     integer     NOT NULL,
    name       text        NOT NULL,
    checksum   text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT migrations_pkey PRIMARY KEY (number)
);

-- name: applied_migrations() :many
SELECT number, name, checksum, applied_at FROM {schema}.migrations ORDER BY number;

-- name: record_migration(number integer, name text, checksum text) :none
INSERT INTO {schema}.migrations (number, name, checksum) VALUES ($1, $2, $3);
