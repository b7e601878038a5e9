"""What a node says of its own health: pure functions of a picture of it.

Liveness is what a restart may cure, and asks for nothing but the event loop and the stop: an outage
of the database must restart nobody. Readiness is whether the node does its part. All the other
checks are for people and programs that want to know what is the matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from strandline.app.growth import Growth
from strandline.app.part_checks import PART_CHECKS
from strandline.clock import in_words
from strandline.cluster.node import NodeState
from strandline.cluster.pulse import PulseStatistics
from strandline.cluster.shutdown_report import ShutdownReport
from strandline.settings import Settings
from strandline.telemetry.health import Check, Health, Probe

SLOW = 1.0  # seconds without a turn of the event loop that are worth telling
BOTH: tuple[Probe, ...] = ("live", "ready")


class Life(StrEnum):
    """Where a process is in its life as a node."""

    NONE = "none"  # never was one: it appends and reads
    STARTING = "starting"
    UP = "up"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Now:
    """A picture of an app and its node.

    Attributes:
        node: Its name.
        is_open: Whether the database was reached, and its schema is right.
        blocked: Seconds for which the event loop has not turned; waits a moment if that is long.
        place: What the event loop's thread runs.
        stop: What the stop under way has done so far.
        overdue: Seconds by which it has outlived its time.
        ops_failure: Why the ops port is not there.
        facts: Statistics of the parts, as the metrics read them; for the probes only ``pulse``.
        growth: What counters were before.
    """

    node: str
    settings: Settings
    is_open: bool
    life: Life
    blocked: Callable[[], float]
    place: Callable[[], str]
    stop: ShutdownReport | None
    overdue: float
    ops_failure: str
    facts: Mapping[str, Any]
    growth: Growth


def liveness(now: Now) -> Health:
    """What a restart may cure."""
    return Health(now.node, (_event_loop(now), _stop(now)))


def readiness(now: Now) -> Health:
    """Whether the node does its part."""
    found = [_event_loop(now), _stop(now), _app(now), _node(now), _pulse(now)]
    return Health(now.node, tuple(one for one in found if one is not None))


def everything(now: Now) -> Health:
    """All there is to say."""
    found = list(readiness(now).checks)
    found += [one for one in (_leader(now), _side_process(now), _ops_port(now)) if one is not None]
    for check in PART_CHECKS:
        one = check(now.facts, now.settings, now.growth)
        # Loops and connections end in a stop, one after the other: that is no fault of theirs.
        if one is not None and (now.stop is None or one.outcome == "ok"):
            found.append(one)
    return Health(now.node, tuple(found))


# ---- live


def _event_loop(now: Now) -> Check:
    age = now.blocked()
    if age <= SLOW:
        return Check("event_loop", "ok", "it turns")
    words = f"it has not turned for {in_words(age)}"
    place = now.place()
    words += f", in {place}" if place else ""
    cure = "call what blocks in a thread (asyncio.to_thread), or as a job of a thread or process"
    if age <= now.settings.live_loop_lag:
        return Check("event_loop", "warn", words, cure, "event-loop-blocked")
    return Check("event_loop", "fail", words, cure, "event-loop-blocked", BOTH)


def _stop(now: Now) -> Check:
    if now.stop is None and now.life is Life.STOPPED:
        words = "this process was a node, and has stopped"
        return Check("stop", "warn", words, blocks=("ready",))
    if now.stop is None:
        return Check("stop", "ok", "none is under way")
    under_way = [one.name for one in now.stop.steps if one.status == "running"]
    words = f"stopping ({now.stop.reason}) for {in_words(now.stop.seconds)}"
    words += f", at {', '.join(under_way)}" if under_way else ""
    patience = max(1.0, now.settings.stop_hard - now.settings.stop_timeout)
    if now.overdue <= patience:
        return Check("stop", "warn", words, runbook="shutdown-slow", blocks=("ready",))
    words += f"; {in_words(now.overdue)} beyond its time"
    return Check("stop", "fail", words, "kill the process", "shutdown-forced", BOTH)


# ---- ready


def _app(now: Now) -> Check:
    if now.is_open:
        return Check("app", "ok", "open, and the schema is right")
    if now.stop is None and now.life is Life.STARTING:
        words = "the database has not been reached yet"
        return Check("app", "warn", words, "strandline doctor", blocks=("ready",))
    return Check("app", "warn", "it is not open", blocks=("ready",))


def _node(now: Now) -> Check | None:
    if now.stop is not None or now.life is Life.STOPPED or not now.is_open:
        return None
    pulse: PulseStatistics | None = now.facts.get("pulse")
    if now.life is Life.NONE:
        return Check("node", "ok", "open, and no node: it appends and reads")
    if now.life is Life.STARTING:
        return Check("node", "warn", "it joins", blocks=("ready",))
    if pulse is None:
        return Check("node", "ok", "runs everything alone")
    found: dict[str, Check] = {
        NodeState.ACTIVE: Check("node", "ok", "active: it takes work"),
        NodeState.STALLED: Check(
            "node",
            "fail",
            "stalled: its event loop is blocked, and its work is given to others",
            runbook="event-loop-blocked",
            blocks=("ready",),
        ),
        NodeState.DRAINING: Check(
            "node", "warn", "draining: it gives its work away", blocks=("ready",)
        ),
        NodeState.DEAD: Check(
            "node",
            "fail",
            "declared dead: it stops everything and joins again",
            f"strandline nodes show {now.node}",
            "node-silent",
            ("ready",),
        ),
    }
    return found.get(pulse.state) or Check("node", "warn", "it joins", blocks=("ready",))


def _pulse(now: Now) -> Check | None:
    pulse: PulseStatistics | None = now.facts.get("pulse")
    if pulse is None or now.stop is not None:
        return None
    settings, age = now.settings, pulse.seconds_since_tick
    words = f"the last good beat was {in_words(age)} ago"
    if age >= settings.node_ttl:
        words += f": beyond node_ttl ({settings.node_ttl:g} s) its work is others'"
        return Check("pulse", "fail", words, "strandline doctor", "node-silent", ("ready",))
    if age > 2 * settings.pulse_interval + settings.pulse_deadline:
        return Check("pulse", "warn", words, "strandline doctor", "node-silent")
    return Check("pulse", "ok", words)


# ---- what a node knows of its cluster


def _leader(now: Now) -> Check | None:
    pulse: PulseStatistics | None = now.facts.get("pulse")
    if pulse is None or now.stop is not None:
        return None
    if now.facts.get("leadership") is not None:
        return Check("leader", "ok", f"this node leads, epoch {now.facts['leadership'].epoch}")
    age, ttl = pulse.seconds_since_leader_seen, now.settings.leader_ttl
    if age <= ttl:
        return Check("leader", "ok", "somebody leads")
    words = f"no leader was seen for {in_words(age)}"
    if pulse.seconds_since_tick >= now.settings.node_ttl:
        return Check("leader", "warn", f"{words}, since no beat was answered", runbook="no-leader")
    cure = "strandline nodes list, and start a node that may lead"
    return Check("leader", "fail" if age > 2 * ttl else "warn", words, cure, "no-leader")


def _side_process(now: Now) -> Check | None:
    pulse: PulseStatistics | None = now.facts.get("pulse")
    if pulse is None or pulse.kind != "process":
        return None
    words = f"started again {pulse.restarts} times"
    if now.growth.lately("side_process", pulse.restarts):
        cure = "look for a memory limit that ends processes"
        return Check("side_process", "warn", f"{words}, lately", cure, "side-process-dying")
    return Check("side_process", "ok", words if pulse.restarts else "beats")


def _ops_port(now: Now) -> Check | None:
    if not now.ops_failure:
        return None
    words = f"port {now.settings.ops_port} cannot be had: {now.ops_failure}"
    return Check("ops_port", "warn", words, "set another ops_port, or 0 for any that is free")
