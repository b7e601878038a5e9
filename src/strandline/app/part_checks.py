"""Checks of the parts of a node: its loops, its shards, the mark, pools, jobs, letters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from strandline.app.growth import Growth
from strandline.clock import in_words
from strandline.daemon.agent_parts import AgentStatistics
from strandline.daemon.definitions import DaemonStatistics
from strandline.jobs.completer_statistics import CompleterStatistics
from strandline.jobs.worker_statistics import WorkersStatistics
from strandline.loops import LoopStatistics
from strandline.postgres.listener import ListenerStatistics
from strandline.postgres.pool_statistics import PoolStatistics
from strandline.settings import Settings
from strandline.survey.facts import Survey
from strandline.survey.office import SurveyStatistics
from strandline.telemetry.health import Check

Facts = Mapping[str, Any]

NAMED = 5  # shards, loops and holders that are written out before the rest is counted
NOISE = 2  # failures in a row of a background loop that are not worth telling
LONG = 60.0  # seconds in which a loop that fails has done nothing good: it does not work
SURVEYS = 3  # intervals without a look of the survey
QUIET = 10.0  # seconds without a look of the mark's detector, beyond its interval
LATE = 2.0  # seconds granted to a look under way


def background_loops(now: Facts, _: Settings, __: Growth) -> Check | None:
    """A loop that fails again and again, or that has ended though its part runs."""
    loops: tuple[LoopStatistics, ...] = now.get("loops") or ()
    if not loops:
        return None
    ailing = [(one, words) for one in loops if (words := _trouble(one))]
    if not ailing:
        return Check("background_loops", "ok", f"{sum(one.running for one in loops)} run")
    return Check(
        "background_loops",
        "fail" if any(_does_nothing(one) for one, _ in ailing) else "warn",
        _brief([f"{one.name} {words}" for one, words in sorted(ailing, key=_dead_first)]),
        "strandline doctor",
        "background-loop-failing",
    )


def _trouble(one: LoopStatistics) -> str:
    """What is the matter with a loop that is not stopped; empty if nothing is."""
    if one.is_dead:
        return f"has ended after {one.last_error}" if one.last_error else "has ended"
    if not one.running or one.consecutive_failures <= NOISE:
        return ""
    return (
        f"failed {one.consecutive_failures} times in a row, for"
        f" {in_words(one.seconds_since_success)}: {one.last_error}"
    )


def _does_nothing(one: LoopStatistics) -> bool:
    """Whether a loop that is in trouble is as good as none."""
    return one.is_dead or one.seconds_since_success > LONG


def _dead_first(found: tuple[LoopStatistics, str]) -> bool:
    return not found[0].is_dead


def high_water(now: Facts, settings: Settings, _: Growth) -> Check | None:
    """The mark: whether it waits for somebody, and whether anybody moves it."""
    daemon: DaemonStatistics | None = now.get("daemon")
    looked = _survey(now)
    if daemon is None:
        return None
    if looked is not None and (mark := looked.mark).detector_state != "alive":
        words = f"its detector is {mark.detector_state}: the mark stays at {mark.position}"
        return Check(
            "high_water", "fail", words, "strandline work show high-water", "high-water-stalled"
        )
    if not daemon.detects:
        return Check("high_water", "ok", f"follows the mark, at {daemon.mark}")
    seen = daemon.high_water
    if seen.loop is not None and (words := _trouble(seen.loop) or _quiet(seen.loop, settings)):
        return Check(
            "high_water",
            "fail" if _does_nothing(seen.loop) else "warn",
            f"its detector, here, {words}: the mark stays at {seen.position}",
            "strandline doctor",
            "high-water-stalled",
        )
    if not seen.stale:
        return Check("high_water", "ok", f"at {seen.position}, the highest is {seen.highest}")
    words = (
        f"stale for {in_words(seen.stale_seconds)}: at {seen.position},"
        f" {max(0, seen.highest - seen.position)} below the highest"
    )
    held = _brief([one.who for one in seen.holders])
    words += f", held by {held}" if held else ""
    cure = seen.holders[0].cure if seen.holders else "strandline gaps live"
    return Check("high_water", "fail", words, cure, "high-water-stale")


def _quiet(detector: LoopStatistics, settings: Settings) -> str:
    age = detector.seconds_since_success
    is_quiet = age > settings.poll_interval + QUIET
    return f"has not got through a look for {in_words(age)}" if is_quiet else ""


def shards(now: Facts, _: Settings, __: Growth) -> Check | None:
    """Shards that pause, that try again, or that have ended."""
    daemon: DaemonStatistics | None = now.get("daemon")
    if daemon is None:
        return None
    agents = daemon.agents
    down = [one for one in agents if one.state in ("paused", "stopped")]
    working = [one for one in agents if one.state in ("claiming", "running")]
    trying = [one for one in working if one.attempts and one.reason]
    if not down and not trying:
        return Check("shards", "ok", f"{len(agents)} run here")
    found = [f"{one.shard} {_standing(one)}" for one in [*down, *trying]]
    return Check(
        "shards",
        "fail" if down else "warn",
        f"{len(found)} of {len(agents)}: {_brief(found)}",
        "strandline projections list",
        "shard-paused",
    )


def _standing(agent: AgentStatistics) -> str:
    words = {"paused": "pauses", "stopped": "has ended"}.get(agent.state, "tries again")
    if agent.next_at is not None and agent.state == "paused":
        left = (agent.next_at - datetime.now(UTC)).total_seconds()
        words += f" for {in_words(left)}" if left > 0 else ""
    return f"{words} ({agent.reason})" if agent.reason else words


def pools(now: Facts, _: Settings, growth: Growth) -> Check | None:
    """Pools that everybody waits for."""
    known: list[PoolStatistics] = now.get("pools") or []
    found, is_bad = [], False
    for pool in known:
        ran_out = growth.lately(f"exhausted {pool.name}", pool.exhausted)
        is_full = pool.waiting and pool.in_use >= pool.most
        is_bad |= ran_out
        if ran_out or is_full:
            found.append(
                f"{pool.name}: {pool.in_use} of {pool.most} in use, {pool.waiting} wait"
                + (f", {pool.exhausted} got none in time" if pool.exhausted else "")
            )
    if not known:
        return None
    if not found:
        uses = (f"{one.name}: {one.in_use} of {one.most} in use" for one in known)
        return Check("pools", "ok", ", ".join(uses))
    return Check(
        "pools",
        "fail" if is_bad else "warn",
        _brief(found),
        "close transactions sooner, or raise work_connections or control_connections",
        "pool-exhausted",
    )


def transactions(now: Facts, settings: Settings, growth: Growth) -> Check | None:
    """Transactions of this process that nobody ends."""
    known: list[PoolStatistics] = now.get("pools") or []
    found = []
    for pool in known:
        leaked = growth.lately(f"leaked {pool.name}", pool.leaked)
        if settings.leak_after and pool.oldest_transaction > settings.leak_after:
            age = in_words(pool.oldest_transaction)
            found.append(f"{pool.name}: one has been open for {age}")
        elif leaked:
            found.append(f"{pool.name}: {pool.leaked} stayed open too long, the last one lately")
    if not known:
        return None
    if not found:
        return Check("transactions", "ok", "none stays open")
    cure = "the log (event transaction_leaked) names the code that began it"
    return Check("transactions", "warn", _brief(found), cure, "transaction-leaked")


def listener(now: Facts, _: Settings, __: Growth) -> Check | None:
    """The connection that hears notices; without it everything is found by polling."""
    found: ListenerStatistics | None = now.get("listener")
    if found is None:
        return None
    if found.is_polling:
        return Check("listener", "ok", "no LISTEN through a pooler: polls")
    if found.connected:
        return Check("listener", "ok", f"{found.notices} notices heard")
    return Check(
        "listener", "warn", "not connected: everything is found by polling", "strandline doctor"
    )


def jobs(now: Facts, _: Settings, growth: Growth) -> Check | None:
    """Jobs of this node: what has ended and cannot be written, and what does not end."""
    completer: CompleterStatistics | None = now.get("job_completer")
    workers: WorkersStatistics | None = now.get("job_workers")
    if completer is None and workers is None:
        return None
    found = []
    if completer is not None and completer.failures:
        found.append(
            f"{completer.pending} ended jobs could not be written, {completer.failures} tries"
        )
    if completer is not None and completer.aside:
        found.append(f"{completer.aside} ended jobs are refused by the server")
    queues = workers.queues if workers is not None else ()
    found += [
        f"{one.queue}: {one.stuck} did not end when they were told to"
        for one in queues
        if growth.lately(f"stuck {one.queue}", one.stuck)
    ]
    if found:
        return Check("jobs", "warn", _brief(found), "strandline jobs counts", "jobs-stuck")
    running = sum(one.running for one in queues)
    return Check("jobs", "ok", f"{running} run, of {sum(one.concurrency for one in queues)}")


def letters(now: Facts, _: Settings, __: Growth) -> Check | None:
    """Events that could not be processed, of projections that run here."""
    daemon: DaemonStatistics | None = now.get("daemon")
    if daemon is None:
        return None
    seen = _survey(now)
    counts: dict[str, int] = {}
    if seen is not None:  # fresher than what the node counts now and then
        found_now = [(one.projection, one.count) for one in seen.letters]
    else:
        found_now = [(one.label, one.count) for one in daemon.letters]
    for label, count in found_now:
        counts[label] = counts.get(label, 0) + count
    found = [f"{label}: {count}" for label, count in sorted(counts.items()) if count]
    if not found:
        return Check("letters", "ok", "no dead letters are open")
    return Check(
        "letters",
        "warn",
        f"dead letters are open: {_brief(found)}",
        "strandline letters groups",
        "dead-letters",
    )


def survey(now: Facts, settings: Settings, __: Growth) -> Check | None:
    """The leader's look at all shards and nodes, from which the cluster's metrics come."""
    found: SurveyStatistics | None = now.get("survey")
    if found is None:
        return None
    words = f"the last one was made {in_words(found.age)} ago"
    if not found.surveys:
        words = f"none was made in {in_words(found.age)}"
    if found.age <= SURVEYS * settings.survey_interval + LATE:
        return Check("survey", "ok", words)
    return Check("survey", "fail", words, "strandline doctor", "survey-missing")


def _survey(now: Facts) -> Survey | None:
    found: SurveyStatistics | None = now.get("survey")
    return found.last if found is not None else None


def _brief(found: list[str]) -> str:
    rest = len(found) - NAMED
    return "; ".join(found[:NAMED]) + (f"; and {rest} more" if rest > 0 else "")


PartCheck = Callable[[Facts, Settings, Growth], Check | None]

PART_CHECKS: tuple[PartCheck, ...] = (
    background_loops,
    high_water,
    shards,
    pools,
    transactions,
    listener,
    jobs,
    letters,
    survey,
)
"""In the order in which one should read them."""
