-- What goes along with BEGIN; used by pool.py.

-- name: transaction_limits() :none
-- Sent with BEGIN in one message where a pooler takes no startup parameters: they end with the transaction.
SET LOCAL idle_in_transaction_session_timeout = {milliseconds}; SET LOCAL jit = off;
