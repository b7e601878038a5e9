"""Job queues side by side: ``python -m bench.jobs``; and how ours scales: ``python -m bench.jobs.scale``."""
