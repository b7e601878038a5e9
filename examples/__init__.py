"""Programs that show what strandline is for."""
