-- A job that ends in the transaction of what it did; used by completing.py.

-- name: number_transaction() :one
SELECT pg_current_xact_id()::text AS xid;

-- name: transaction_status(xid text, id bigint) :one
-- What became of the transaction that was to complete a job: committed, aborted, in progress; NULL if it is too old to
-- be known. A job that is there was not completed: after a fail-over that lost the commit, the number may be that of
-- somebody else's transaction, or of none yet.
-- plan: jobs_pkey
SELECT CASE WHEN NOT pg_visible_in_snapshot($1::text::xid8, pg_current_snapshot()) THEN 'in progress'
            WHEN EXISTS (SELECT FROM {schema}.jobs j WHERE j.id = $2) THEN 'aborted'
            ELSE pg_xact_status($1::text::xid8) END AS status;
