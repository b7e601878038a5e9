-- What fails in a table projection, and what waits behind it; used by table_faults.py, which fills in the {names}.

-- name: probe_value(floor bigint, ceiling bigint) :one
-- Reads one value of each event: fails where it does not fit its column.
SELECT count({value}) AS count
  FROM {schema}.events e
 WHERE e.position > $1 AND e.position <= $2 AND e.type = ANY ({types}){slice};

-- name: begin_trial() :none
SAVEPOINT strandline_trial;

-- name: undo_trial() :none
ROLLBACK TO SAVEPOINT strandline_trial;

-- name: end_trial() :none
RELEASE SAVEPOINT strandline_trial;

-- name: touched_rows(positions bigint[]) :many
-- The rows that events touch, one line per event and rule. Fails when a key cannot be read.
-- keyed: whether the event has the key at all; a rule passes over one that has not.
-- plan: events_pkey
SELECT e.position, e.tenant, {row} AS key, {keyed} AS keyed
  FROM {schema}.events e{lanes}
 WHERE e.position = ANY ($1) AND e.type = ANY ({types}) AND {rule} IS NOT NULL{slice};

-- name: parked_lines(floor bigint, ceiling bigint, tenants text[], names text[]) :many
-- Events of parked rows: they wait, each once for each of its rows.
-- plan: events_pkey
SELECT DISTINCT e.tenant, {row} AS key, e.position, e.stream, e.version, e.type
  FROM {schema}.events e{lanes}
 WHERE e.position > $1 AND e.position <= $2 AND e.type = ANY ({types}) AND {rule} IS NOT NULL{slice}{parked}
 ORDER BY e.position;

-- name: letter_rows(ids bigint[]) :many
-- Which row each letter is of.
-- plan: dead_letters_pkey
SELECT id, tenant, key, position FROM {schema}.dead_letters WHERE id = ANY ($1);

-- name: event_at(position bigint) :one
-- What a letter says of an event. No row: there is none at this position.
-- plan: events_pkey
SELECT tenant, stream, version, type, position FROM {schema}.events WHERE position = $1;

-- name: first_unknown(floor bigint, ceiling bigint, known text[]) :one
-- The first event whose type is not among those known. No row: all of them are.
-- plan: events_pkey
SELECT type, position
  FROM {schema}.events
 WHERE position > $1 AND position <= $2 AND type <> ALL ($3)
 ORDER BY position
 LIMIT 1;
