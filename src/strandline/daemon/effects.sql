-- Whose side effects count; used by effects.py.

-- name: read_effects_after(label text) :one
-- Beyond which position the label raises side effects; null: not at all yet. No row: it was never declared.
-- plan: slicings_pkey
SELECT effects_after AS after FROM {schema}.slicings WHERE label = $1;

-- name: check_constraints() :none
-- Checks what is deferred, as the commit would; fails like a statement.
SET CONSTRAINTS ALL IMMEDIATE;
