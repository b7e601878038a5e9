"""The command `strandline`."""
