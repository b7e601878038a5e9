"""One program per system: it enqueues, or it works, as the order in its environment says."""
