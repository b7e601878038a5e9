"""Harms a cluster in every way it must survive, and checks afterwards that nothing was lost."""
