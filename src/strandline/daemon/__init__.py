"""Runs projections and subscriptions on a node: feed, batches, agents."""
