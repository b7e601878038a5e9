-- Appending; used by append.py and group.py. The order rules live in the SQL functions.

-- name: append_batch(batch text) :many
-- Items of one stream each, each with its own outcome.
SELECT item, outcome, version, position FROM {schema}.append_batch($1);

-- name: append_together(batch text) :many
-- All items or none.
SELECT item, outcome, version, position FROM {schema}.append_together($1);

-- name: stored_events(ids uuid[], tenant text) :many
-- Which of these ids are stored, and where.
-- plan: events_id_key
SELECT id, stream, version, position FROM {schema}.events WHERE id = ANY ($1) AND tenant = $2;
