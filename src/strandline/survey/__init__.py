"""One picture of the whole database: the mark, shards, nodes, leadership, work, jobs, the server."""
