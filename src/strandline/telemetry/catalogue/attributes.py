"""Every attribute by name: what tells series, spans and log records apart."""

from __future__ import annotations

from strandline.telemetry.catalogue import span_attributes
from strandline.telemetry.catalogue.attribute import Attribute
from strandline.telemetry.catalogue.attribute import ours as _ours

# Of metrics. Their values are bounded by the program: never a stream, an event, a job or a tenant.
OF_METRICS = (
    _ours("node", "name of the node", "shop@web-1:4711"),
    _ours("shard", "shard of a projection or subscription", "orders:v2:3/8"),
    _ours("projection", "projection or subscription with its version", "orders:v2"),
    _ours("queue", "queue of jobs", "default", key="strandline.job.queue"),
    _ours("kind", "kind of job, or of what is counted", "mail.send"),
    _ours("pool", "pool of connections", "work", "work", "control", "sync"),
    _ours("outcome", "how it ended", "won"),
    _ours("state", "state it is in", "running"),
    _ours("status", "how it went", "ok"),
    _ours("category", "category of the failure", "apply"),
    _ours("error", "class of the error", "DatabaseUnavailable", key="error.type"),
    _ours("step", "step of the shutdown", "drain", key="strandline.shutdown.step"),
    _ours("result", "how the shutdown ended", "clean", "clean", "degraded", "forced"),
    _ours("lease", "name of the lease", "leader", "leader"),
    _ours("schedule", "name of the schedule", "nightly"),
    _ours("loop", "loop in the background, without the shard or queue it is for", "agent"),
    _ours("reason", "why", "stopping"),
    _ours(
        "class",
        "why events were passed over: the category of their failure, or `forced_gap` for numbers passed"
        " without proof that no event will appear there",
        "apply",
        *("apply", "undecodable", "unknown_type", "other", "forced_gap"),
        key="strandline.skipped_events.class",
    ),
    _ours("purpose", "what a build is for", "rebuild", "rebuild", "verify", "repair"),
    _ours("metric", "name of a metric", "strandline_batches_total"),
    _ours("version", "of strandline", "1.0.0", key="service.version"),
    _ours("python", "version of Python", "3.13.1"),
)

ALL = (*OF_METRICS,)

ATTRIBUTES: dict[str, Attribute] = {one.name: one for one in (*ALL, *span_attributes.ALL)}
