"""Every log event by name; each module lists those of one part of the code."""

from __future__ import annotations

from strandline.telemetry.catalogue.log_event import LogEvent
from strandline.telemetry.catalogue.log_events import cluster, daemon, events, jobs, nodes, postgres

LOG_GROUPS: dict[str, tuple[LogEvent, ...]] = {
    "Connections": postgres.ALL,
    "Events and the high-water mark": events.ALL,
    "Cluster": cluster.ALL,
    "Projections and subscriptions": daemon.ALL,
    "Jobs": jobs.ALL,
    "Apps and nodes": nodes.ALL,
}

LOG_EVENTS: dict[str, LogEvent] = {one.name: one for group in LOG_GROUPS.values() for one in group}
