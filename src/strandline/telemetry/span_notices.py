"""Spans of what is over by the time it is told: elections, plans, detections, the steps of a stop.

They happen where no span can be current, in a side process or between awaits of many tasks, and are
told by notices. Each is a root of its own, but for the steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from strandline.telemetry import tracing
from strandline.telemetry.journal import Journal
from strandline.telemetry.readings import Facts
from strandline.telemetry.signals import Notice, Signals

log = Journal("strandline.tracing")

BUILD_ENDS = ("done", "failed", "cancelled", "gone")
MOST_BUILDS = 1_000  # followed at once


class Tracing:
    """Makes spans of one app's notices, from ``start`` to ``stop``.

    Args:
        signals: The app's notices.
        node: The node's name.
    """

    def __init__(self, signals: Signals, *, node: Callable[[], str]) -> None:
        self._signals = signals
        self._node = node
        self._deaf: Callable[[], None] | None = None
        self._stop: tracing.AnySpan | None = None
        self._builds: dict[int, float] = {}
        self._spans: dict[str, Callable[[Facts, float], None]] = {
            "election": self._election,
            "planned": self._plan,
            "high_water_detected": self._detection,
            "jobs_claimed": self._fetch,
            "jobs_flushed": self._flush,
            "rebuild": self._rebuild,
            "shutdown_step": self._step,
            "shutdown": self._shutdown,
        }

    def start(self) -> None:
        """Begin. A second call does nothing."""
        if self._deaf is None:
            self._deaf = self._signals.listen(self._heard)

    def stop(self) -> None:
        """End."""
        if self._deaf is not None:
            self._deaf()
            self._deaf = None

    def _heard(self, notice: Notice) -> None:
        tell = self._spans.get(notice.name)
        if tell is None or not tracing.is_on():
            return
        try:
            tell(notice.facts, time.time())
        except Exception as error:  # whoever tells something must never be hit by its being traced
            log.tell("span_begin_failed", span=notice.name, error=error)

    def _election(self, facts: Facts, now: float) -> None:
        error = str(facts.get("error") or "")
        tracing.record(
            "strandline.election",
            *_spell(facts, now),
            failure=error,
            node=self._node(),
            outcome=facts["outcome"],
            reason=error or None,
        )

    def _plan(self, facts: Facts, now: float) -> None:
        tracing.record(
            "strandline.plan",
            *_spell(facts, now),
            node=self._node(),
            changes=facts["changes"],
            moves=facts["moves"],
        )

    def _detection(self, facts: Facts, now: float) -> None:
        tracing.record(
            "strandline.high_water",
            *_spell(facts, now),
            node=self._node(),
            mark=facts.get("mark"),
            highest=facts.get("highest"),
            settled=facts.get("settled"),
            difference=facts.get("difference"),
            stale=facts.get("stale"),
            holders=facts.get("holders"),
            skipped=facts.get("skipped"),
            forced=facts.get("forced"),
        )

    def _fetch(self, facts: Facts, now: float) -> None:
        tracing.record(
            "strandline.jobs.fetch",
            *_spell(facts, now),
            node=self._node(),
            queue=facts["queue"],
            jobs=facts["count"],
        )

    def _flush(self, facts: Facts, now: float) -> None:
        tracing.record(
            "strandline.jobs.flush", *_spell(facts, now), node=self._node(), jobs=facts["count"]
        )

    def _rebuild(self, facts: Facts, now: float) -> None:
        number, state = facts["number"], facts["state"]
        began = self._builds.setdefault(number, now)
        if state not in BUILD_ENDS:
            while len(self._builds) > MOST_BUILDS:
                del self._builds[next(iter(self._builds))]
            return
        del self._builds[number]
        reason = str(facts.get("reason") or "")
        tracing.record(
            "strandline.rebuild",
            began,
            now,
            failure=(reason or "failed") if state == "failed" else "",
            node=self._node(),
            projection=facts["label"],
            build=number,
            state=state,
            reason=reason or None,
        )

    def _step(self, facts: Facts, now: float) -> None:
        began, ended = _spell(facts, now)
        stop = self._stopping(began)
        error = str(facts.get("error") or "")
        status = facts["status"]
        tracing.record(
            "strandline.shutdown.step",
            began,
            ended,
            parent=stop,
            failure="" if status == "ok" else error or status,
            step=facts["step"],
            status=status,
            reason=error or None,
        )

    def _shutdown(self, facts: Facts, now: float) -> None:
        report: Any = facts["report"]
        stop = self._stopping(now - report.seconds)
        self._stop = None
        stop.set(result=report.result, reason=report.reason, signals=report.signals)
        tracing.over(stop, now, "" if report.result == "clean" else report.summary())

    def _stopping(self, began: float) -> tracing.AnySpan:
        """The span of the stop, begun with its first step: what has ended can leave before the rest."""
        if self._stop is None:
            self._stop = tracing.span(
                "strandline.shutdown", parent=tracing.ROOT, began=began, node=self._node()
            )
        return self._stop


def _spell(facts: Facts, now: float) -> tuple[float, float]:
    return now - float(facts.get("seconds") or 0.0), now
