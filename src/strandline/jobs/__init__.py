"""Jobs: enqueued in a transaction, fetched in batches, completed once under a claim."""
