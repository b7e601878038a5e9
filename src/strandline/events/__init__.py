"""The event store: append, read, the high-water mark."""
