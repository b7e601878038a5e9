"""Metrics through the OpenTelemetry API, where that is installed; nothing otherwise.

Counters and histograms are fed by notices of ``Signals``; gauges, and what is counted already, are
read from the statistics of the node at the moment somebody collects. Nothing here runs by itself, and nothing that fails here reaches the node.

The names are in ``catalogue``. All apps of a process share the instruments, and the attribute ``node``
tells them apart.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from strandline.errors import OwnershipLost
from strandline.telemetry.catalogue import CATALOGUE, Metric
from strandline.telemetry.readings import READERS, Facts, Reading
from strandline.telemetry.signals import Notice, Signals

log = logging.getLogger("strandline.metrics")

# How a pulse tells that a term ended without being given up. What it was given up for is free text.
LOST = (
    *(
        "it could not be renewed",
        "its pulse has not renewed",
        "the term ",
        "epoch ",
        "a later epoch",
    ),
    "its node was declared dead",
)


@dataclass(frozen=True, slots=True)
class Rule:
    """What a notice adds to a metric.

    Attributes:
        metric: Its name.
        amount: The fact that is added or recorded; empty for 1.
        attributes: Facts that become attributes; an error becomes the name of its class.
        fixed: Attributes that are always the same.
        only: Notices for which this does not hold are left out.
    """

    metric: str
    amount: str = ""
    attributes: tuple[str, ...] = ()
    fixed: Mapping[str, str] | None = None
    only: Callable[[Facts], bool] | None = None


def _was_lost(facts: Facts) -> bool:
    return str(facts.get("reason", "")).startswith(LOST)


def _was_fenced(facts: Facts) -> bool:
    return isinstance(facts.get("error"), OwnershipLost)


def _has_waited(facts: Facts) -> bool:
    return facts.get("wait") is not None


RULES: dict[str, tuple[Rule, ...]] = {
    "tick": (Rule("strandline_tick_seconds", "seconds"),),
    "tick_failed": (Rule("strandline_tick_failures_total"),),
    "loop_blocked": (Rule("strandline_loop_blocks_total"),),
    "unblocked": (Rule("strandline_blocked_loop_seconds", "seconds"),),
    "side_process_died": (Rule("strandline_side_process_deaths_total"),),
    "election": (
        Rule("strandline_elections_total", attributes=("outcome",)),
        Rule("strandline_election_seconds", "seconds", ("outcome",)),
    ),
    "leading": (Rule("strandline_leaderships_total"),),
    "not_leading": (
        Rule("strandline_lease_lost_total", fixed={"lease": "leader"}, only=_was_lost),
    ),
    "ownership_lost": (Rule("strandline_ownership_lost_total", attributes=("shard",)),),
    "evicted": (Rule("strandline_evictions_total"),),
    "work_claimed": (Rule("strandline_claims_total", "count"),),
    "work_released": (Rule("strandline_releases_total", "count"),),
    "work_failed": (Rule("strandline_work_failures_total"),),
    "work_avoided": (Rule("strandline_work_avoided_total"),),
    "zombie_ended": (Rule("strandline_zombies_ended_total"),),
    "planned": (
        Rule("strandline_plans_total"),
        Rule("strandline_plan_seconds", "seconds"),
        Rule("strandline_rebalances_total", only=lambda facts: bool(facts.get("moves"))),
        *(
            Rule("strandline_moves_total", kind, fixed={"kind": kind})
            for kind in ("placed", "moved", "withdrawn")
        ),
    ),
    "leader_refused": (Rule("strandline_leader_refused_total"),),
    "node_dead": (Rule("strandline_mark_dead_total"),),
    "brake": (Rule("strandline_brakes_total"),),
    "batch_committed": (Rule("strandline_batches_total", attributes=("shard",)),),
    "batch_failed": (
        Rule("strandline_batch_failures_total", attributes=("shard", "error")),
        Rule("strandline_fenced_writes_total", attributes=("shard",), only=_was_fenced),
    ),
    "shard_paused": (Rule("strandline_shard_pauses_total", attributes=("shard", "error")),),
    "letters_written": (
        Rule("strandline_letters_written_total", "count", ("label", "category", "status")),
    ),
    "letters_replayed": (Rule("strandline_letters_replayed_total", "count", ("label",)),),
    "letter_failed_again": (
        Rule("strandline_letters_failed_again_total", attributes=("label", "error")),
    ),
    "jobs_enqueued": (Rule("strandline_jobs_enqueued_total", "count", ("queue",)),),
    "jobs_claimed": (
        Rule("strandline_jobs_claimed_total", "count", ("queue",)),
        Rule("strandline_job_claim_seconds", "seconds", ("queue",)),
        Rule("strandline_job_wait_seconds", "wait", ("queue",), only=_has_waited),
    ),
    "jobs_ran": (
        Rule("strandline_job_attempts_total", "count", ("queue",)),
        Rule("strandline_job_run_seconds_total", "seconds", ("queue",)),
    ),
    **{
        notice: (
            Rule(
                "strandline_jobs_not_completed_total",
                attributes=("queue", "kind"),
                fixed={"outcome": outcome},
            ),
        )
        for notice, outcome in {
            "job_failed": "retried",
            "job_dead": "dead",
            "job_snoozed": "snoozed",
            "job_cancelled": "cancelled",
            "job_interrupted": "released",
        }.items()
    },
    "job_stuck": (Rule("strandline_jobs_stuck_total", attributes=("kind",)),),
    "jobs_flushed": (Rule("strandline_job_flush_seconds", "seconds"),),
    "jobs_fenced": (Rule("strandline_jobs_fenced_total", "count"),),
    "jobs_promoted": (Rule("strandline_jobs_promoted_total", "count"),),
    "jobs_rescued": (Rule("strandline_jobs_rescued_total", "count"),),
    "schedule_fired": (Rule("strandline_schedules_fired_total", "count", ("schedule",)),),
    "schedule_missed": (Rule("strandline_schedules_missed_total", "count", ("schedule",)),),
    "transaction_leaked": (Rule("strandline_leaked_transactions_total", attributes=("pool",)),),
    "transaction_rolled_back": (
        Rule("strandline_rolled_back_transactions_total", attributes=("pool",)),
    ),
    "shutdown_step": (Rule("strandline_shutdown_step_seconds", "seconds", ("step", "status")),),
    "shutdown": (
        Rule("strandline_shutdown_seconds", "seconds", ("result",)),
        Rule("strandline_shutdowns_total", attributes=("result",)),
    ),
}


# Told with 0 before anything happens: a series that begins at 1 has no increase to alert on.
BEGIN_AT_CLAIM = ("strandline_ownership_lost_total", "strandline_fenced_writes_total")
BEGIN_AT_START = tuple(
    one.name
    for one in CATALOGUE.values()
    if one.kind == "counter" and not one.attributes and one.name not in READERS
)


# ---- instruments


class Instruments:
    """The instruments of one meter. There is one set of them, however many apps feed it."""

    def __init__(self, meter: Any) -> None:
        self.watched: weakref.WeakSet[Metrics] = weakref.WeakSet()
        self._add: dict[str, Callable[[float, Mapping[str, str]], None]] = {}
        for one in CATALOGUE.values():
            self._make(meter, one)

    def add(self, metric: str, value: float, attributes: Mapping[str, str]) -> None:
        """Add to a counter, or record in a histogram."""
        self._add[metric](value, attributes)

    def _make(self, meter: Any, one: Metric) -> None:
        told = {"unit": one.unit, "description": one.meaning}
        if one.kind == "gauge":
            meter.create_observable_gauge(one.name, [self._observer(one.name)], **told)
        elif one.name in READERS:
            meter.create_observable_counter(one.name, [self._observer(one.name)], **told)
        elif one.kind == "counter":
            self._add[one.name] = meter.create_counter(one.name, **told).add
        else:
            self._add[one.name] = _histogram(meter, one, told).record

    def _observer(self, name: str) -> Callable[[Any], list[Any]]:
        from opentelemetry.metrics import Observation

        def observe(_: Any) -> list[Any]:
            return [
                Observation(value, attributes)
                for metrics in list(self.watched)
                for value, attributes in metrics.readings(name)
            ]

        return observe


def _histogram(meter: Any, one: Metric, told: dict[str, str]) -> Any:
    try:
        return meter.create_histogram(
            one.name, explicit_bucket_boundaries_advisory=one.bounds, **told
        )
    except TypeError:  # the API before 1.30 leaves buckets to the SDK's views
        return meter.create_histogram(one.name, **told)


_of_meters: dict[Any, Instruments] = {}


def _instruments(meter: Any | None) -> Instruments | None:
    """The instruments of *meter* (None: of the provider that is set); None without OpenTelemetry."""
    found = _of_meters.get(meter)
    if found is None:
        try:
            from opentelemetry.metrics import get_meter
        except ImportError:
            return None
        found = _of_meters[meter] = Instruments(meter or get_meter("strandline"))
    return found


class Metrics:
    """Feeds the metrics of one app, from ``start`` to ``stop``.

    Args:
        signals: The app's notices.
        sources: A picture of the node, asked for at each collection, maybe by another thread. Keys,
            all optional: ``node`` (a name) or ``identity``; ``leadership``, ``pulse``, ``balancer``,
            ``daemon``, ``job_workers``, ``job_completer`` and ``job_watch`` (statistics); ``pools``
            (statistics of each).
        meter: Of OpenTelemetry; None for that of the provider that is set.
    """

    def __init__(
        self, signals: Signals, *, sources: Callable[[], Facts], meter: Any | None = None
    ) -> None:
        self._signals = signals
        self._sources = sources
        self._meter = meter
        self._instruments: Instruments | None = None
        self._deaf: Callable[[], None] | None = None
        self._node = ""

    def start(self) -> None:
        """Begin. Does nothing without OpenTelemetry; a second call does nothing."""
        if self._deaf is not None:
            return
        try:
            self._instruments = _instruments(self._meter)
            self._picture()
        except Exception as error:  # somebody's exporter must not keep a node from starting
            log.warning("metrics are incomplete or missing: %r", error)
        if self._instruments is not None:
            self._instruments.watched.add(self)
            self._deaf = self._signals.listen(self._heard)
            for name in BEGIN_AT_START:
                self._add(name, 0.0, {})
            self._add("strandline_lease_lost_total", 0.0, {"lease": "leader"})

    def stop(self) -> None:
        """End: nothing is counted any more, and gauges of this app are no longer told."""
        if self._deaf is not None and self._instruments is not None:
            self._instruments.watched.discard(self)
            self._deaf()
            self._deaf = None

    def readings(self, name: str) -> list[Reading]:
        """What the metric *name* shows now."""
        try:
            return [
                (value, {"node": self._node, **attributes})
                for value, attributes in READERS[name](self._picture())
            ]
        except Exception as error:  # a part that is just closing; the others are told
            log.debug("metric %s cannot be read: %r", name, error)
            return []

    def _picture(self) -> Facts:
        now = self._sources()
        named = now.get("node") or getattr(now.get("identity"), "name", "")
        self._node = str(named or self._node)
        return now

    def _heard(self, notice: Notice) -> None:
        try:
            if notice.name == "shard_claimed":
                for name in BEGIN_AT_CLAIM:
                    self._add(name, 0.0, {"shard": _text(notice.facts["shard"])})
            for rule in RULES.get(notice.name, ()):
                self._apply(rule, _flat(notice.facts))
        except Exception as error:  # whoever tells something must never be hit by its being counted
            log.debug("notice %s is not counted: %r", notice.name, error)

    def _apply(self, rule: Rule, facts: Facts) -> None:
        if rule.only is not None and not rule.only(facts):
            return
        amount = float(facts.get(rule.amount) or 0) if rule.amount else 1.0
        attributes = {one: _text(facts.get(one)) for one in rule.attributes}
        self._add(rule.metric, amount, {**(rule.fixed or {}), **attributes})

    def _add(self, metric: str, amount: float, attributes: Mapping[str, str]) -> None:
        if self._instruments is not None:
            self._instruments.add(metric, amount, {"node": self._node, **attributes})


def _flat(facts: Facts) -> Facts:
    """*facts*; those of a report instead of the report."""
    report = facts.get("report")
    if report is None:
        return facts
    return {"result": report.result, "seconds": report.seconds}


def _text(value: Any) -> str:
    return type(value).__name__ if isinstance(value, BaseException) else str(value)
