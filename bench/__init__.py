"""The numbers that the README quotes: strandline, its peer and the limits side by side in one run."""
