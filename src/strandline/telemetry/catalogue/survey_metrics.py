"""Metrics of the whole cluster, told by the node that surveys it, and those of the mark's detector."""

from __future__ import annotations

from strandline.telemetry.catalogue.metric import Metric, counter, gauge

SHARD_STATES = (
    "running",  # its node beats, and its agent said so last
    "rebuilding",  # the same, of a build beside the projection that serves
    "paused",  # every try failed; it is tried again at next_at
    "held",  # an operator has paused it, or something that ends by itself, such as a rewind
    "claiming",  # it has a node, which has not begun it yet
    "unassigned",  # the leader has not given it to a node yet
    "unplaced",  # the leader found no node for it, and says why
    "silent",  # the node that owns it does not beat
    "never_started",  # nobody has ever run it
    "stopped",  # its agent has ended, or no node is there
    "orphaned",  # nodes are there, and none has its code
)
"""Every state of a shard, as a survey sees it."""

NODE_STATES = ("joining", "active", "stalled", "draining", "silent")
"""States of nodes that are there: ``silent`` is one that counts as dead from now on."""

WORK_STATES = ("running", "moving", "held", "unplaced", "waiting")
"""States of work: ``waiting`` has a target that has not begun, or no target yet."""

ENDS = ("clean", "degraded", "forced", "dead")
"""How a node ended: ``dead`` is one that was declared so."""

LETTER_STATES = ("parked", "skipped")

GAP_KINDS = ("rolled_back", "forced")
"""Kinds of settled gaps: proved, or skipped after ``force_after``."""

LAG = (
    gauge(
        "shard_lag_events",
        "{event}",
        "positions from a shard's checkpoint to the highest visible one; not to the high-water mark, so"
        " that a detector that stands still is no lag of 0",
        *("projection", "shard"),
    ),
    gauge(
        "shard_lag_seconds",
        "s",
        "since the first event beyond a shard's checkpoint was recorded, by the database's clock",
        *("projection", "shard"),
    ),
    gauge(
        "shard_state",
        "1",
        "1 for the state a shard is in; one that is dead, missing or was never started has a state too",
        *("projection", "shard", "state"),
    ).where(state=SHARD_STATES),
    gauge("cluster_shards", "{shard}", "shards of the whole cluster by state", "state").where(
        state=SHARD_STATES
    ),
    gauge(
        "open_letters",
        "{letter}",
        "dead letters that are parked or skipped; exact up to 10,000",
        *("projection", "status"),
    ).where(status=LETTER_STATES),
    gauge(
        "oldest_letter_seconds", "s", "since the oldest of them was written", "projection", "status"
    ).where(status=LETTER_STATES),
    gauge(
        "rebuild_done_ratio",
        "1",
        "share of a build under way that is done",
        *("projection", "purpose"),
    ),
    gauge(
        "rebuild_idle_seconds",
        "s",
        "since a shard of it has told anything; no series while it waits for its turn",
        *("projection", "purpose"),
    ),
    gauge(
        "rebuild_paused_shards",
        "{shard}",
        "shards of it that rest, since they failed",
        *("projection", "purpose"),
    ),
)

MARK = (
    gauge("high_water_position", "1", "the high-water mark: readers see nothing beyond it"),
    gauge("highest_position", "1", "the highest visible position"),
    gauge("high_water_difference_events", "{event}", "positions between the two"),
    gauge(
        "high_water_age_seconds",
        "s",
        "how long the mark has stood still while something lies beyond it; 0 when there is nothing",
    ),
    gauge("high_water_stale", "1", "1 if that is longer than `stale_after`"),
    gauge(
        "high_water_holders",
        "{transaction}",
        "transactions that may hold it; `strandline gaps live` names them",
    ),
    gauge(
        "high_water_detectors",
        "{detector}",
        "detectors that do their duty: 0 if nobody has it, its node does not beat, its loop has ended,"
        " or the mark stands still though nobody holds it",
    ),
    gauge(
        "high_water_detector_idle_seconds",
        "s",
        "since the detector's last good look, told by the node whose duty it is",
    ),
    counter("high_water_moves", "move", "times that this node's detector moved the mark"),
    counter(
        "high_water_settled_numbers",
        "number",
        "numbers without an event that this node's detector has passed: rolled_back is proved, forced"
        " was skipped after `force_after`",
        "kind",
    ).where(kind=GAP_KINDS),
    counter(
        "high_water_stale_periods", "period", "times that this node's detector found the mark stale"
    ),
    counter(
        "late_events",
        "event",
        "events that turned up in forced gaps after the mark had passed them: what had passed lacks"
        " them; alert on any increase",
    ),
    counter(
        "high_water_went_back",
        "time",
        "times that the mark in the database was lower than before: it was restored, or failed over to"
        " a standby that lagged",
    ),
)

CLUSTER = (
    gauge("survey_age_seconds", "s", "since the last look at the whole cluster that went well"),
    gauge("survey_seconds", "s", "what it took"),
    gauge("cluster_nodes", "{node}", "nodes that are there, by state", "state").where(
        state=NODE_STATES
    ),
    gauge("cluster_work", "{work}", "work of the cluster, by state", "state").where(
        state=WORK_STATES
    ),
    gauge("oldest_beat_seconds", "s", "the longest that a node which is there has not beaten"),
    gauge("recent_leader_changes", "{term}", "terms of leaders that began within the last hour"),
    gauge(
        "recent_shutdowns",
        "{node}",
        "nodes that have gone within the last hour, by how they ended; dead: declared so",
        "result",
    ).where(result=ENDS),
    gauge("recent_shutdown_seconds", "s", "the longest of these shutdowns, as the nodes told it"),
    gauge("dead_jobs", "{job}", "dead jobs, by queue; exact up to 10,000", "queue"),
    gauge("server_connections", "{connection}", "clients connected to the server"),
    gauge(
        "server_connections_limit",
        "{connection}",
        "connections that roles without privileges may have on the server: `max_connections` less the"
        " reserved ones",
    ),
    gauge("oldest_transaction_seconds", "s", "age of the oldest open transaction, whoever has it"),
    gauge(
        "oldest_idle_transaction_seconds",
        "s",
        "the longest that the client of an open transaction has done nothing",
    ),
)

SURVEY: dict[str, tuple[Metric, ...]] = {
    "Lag and state": LAG,
    "High-water mark": MARK,
    "Cluster": CLUSTER,
}
