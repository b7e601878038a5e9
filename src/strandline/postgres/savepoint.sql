-- A part of somebody's transaction; used by savepoint.py. A name may be used again inside: the innermost is meant.

-- name: begin_part() :none
-- Inside somebody's transaction: what is refused must leave nothing behind.
SAVEPOINT strandline_part;

-- name: undo_part() :none
ROLLBACK TO SAVEPOINT strandline_part; RELEASE SAVEPOINT strandline_part;

-- name: keep_part() :none
RELEASE SAVEPOINT strandline_part;
