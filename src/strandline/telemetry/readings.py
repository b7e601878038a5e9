"""What gauges show: read from the statistics of the parts at the moment somebody collects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from strandline.telemetry.survey_readings import SURVEY_READERS

TRIES = 3  # for a picture

Facts = Mapping[str, Any]
Reading = tuple[float, dict[str, str]]


def looked_at(look: Callable[[], Facts]) -> Facts:
    """What *look* sees, although a part may change under the hands of this other thread."""
    for _ in range(TRIES - 1):
        try:
            return look()
        except RuntimeError:  # a dict changed while it was read
            continue
    return look()


def _field(part: str, name: str) -> Callable[[Facts], Iterator[Reading]]:
    """Reads the number *name* of the statistics of *part*, if there are any."""

    def read(now: Facts) -> Iterator[Reading]:
        value = getattr(now.get(part), name, None)
        if value is not None:
            yield float(value), {}

    return read


def _number(part: str) -> Callable[[Facts], Iterator[Reading]]:
    def read(now: Facts) -> Iterator[Reading]:
        if part in now:
            yield float(now[part]), {}

    return read


def _listening(now: Facts) -> Iterator[Reading]:
    listener = now.get("listener")
    if listener is not None and not listener.is_polling:
        yield float(listener.connected), {}


def _leader(now: Facts) -> Iterator[Reading]:
    if "leadership" in now:
        yield float(now["leadership"] is not None), {}


def _pool(name: str) -> Callable[[Facts], Iterator[Reading]]:
    def read(now: Facts) -> Iterator[Reading]:
        for pool in now.get("pools", ()):
            yield float(getattr(pool, name)), {"pool": pool.name}

    return read


def _unplaced(now: Facts) -> Iterator[Reading]:
    if now.get("leadership") is not None:  # what a former leader last saw is out of date
        yield from _field("balancer", "unplaced")(now)


def _shards(now: Facts) -> Iterator[Reading]:
    states = [one.state for one in getattr(now.get("daemon"), "agents", ())]
    for state in ("claiming", "running", "paused", "stopped"):
        if "daemon" in now:
            yield float(states.count(state)), {"state": state}


def _positions(now: Facts) -> Iterator[Reading]:
    for one in getattr(now.get("daemon"), "agents", ()):
        yield float(one.position), {"shard": one.shard}


def _of_workers(name: str) -> Callable[[Facts], Iterator[Reading]]:
    def read(now: Facts) -> Iterator[Reading]:
        for one in getattr(now.get("job_workers"), "queues", ()):
            yield float(getattr(one, name)), {"queue": one.queue}

    return read


def _jobs(now: Facts) -> Iterator[Reading]:
    for one in getattr(now.get("job_watch"), "counts", ()):
        yield float(one.count), {"queue": one.queue, "state": one.state}


def _oldest_jobs(now: Facts) -> Iterator[Reading]:
    for one in getattr(now.get("job_watch"), "counts", ()):
        if one.state == "available" and one.oldest is not None:
            age = (datetime.now(UTC) - one.oldest).total_seconds()
            yield max(0.0, age), {"queue": one.queue}


def _ailing_loops(now: Facts) -> Iterator[Reading]:
    """Of loops of one kind the worst."""
    worst: dict[str, float] = {}
    for one in now.get("loops", ()):
        ails = one.consecutive_failures > 0 or one.is_dead
        seconds = one.seconds_since_success if ails else 0.0
        worst[one.kind] = max(worst.get(one.kind, 0.0), seconds)
    for kind, seconds in worst.items():
        yield seconds, {"loop": kind}


READERS: dict[str, Callable[[Facts], Iterator[Reading]]] = {
    "strandline_last_tick_age_seconds": _field("pulse", "seconds_since_tick"),
    "strandline_loop_lag_seconds": _field("pulse", "loop_lag"),
    "strandline_leader": _leader,
    "strandline_leader_epoch": _field("leadership", "epoch"),
    "strandline_leader_unseen_seconds": _field("pulse", "seconds_since_leader_seen"),
    "strandline_unplaced_work": _unplaced,
    "strandline_shards": _shards,
    "strandline_shard_position": _positions,
    "strandline_jobs_running": _of_workers("running"),
    "strandline_jobs_buffered": _of_workers("buffered"),
    "strandline_job_slots": _of_workers("concurrency"),
    "strandline_jobs_completed_total": _field("job_completer", "completed"),
    "strandline_jobs_unrecorded": _field("job_completer", "pending"),
    "strandline_jobs": _jobs,
    "strandline_job_oldest_available_seconds": _oldest_jobs,
    "strandline_jobs_dead_tuples": _field("job_watch", "dead_tuples"),
    "strandline_jobs_index_bytes": _field("job_watch", "index_bytes"),
    "strandline_oldest_snapshot_seconds": _field("job_watch", "oldest_xmin"),
    "strandline_pool_connections": _pool("size"),
    "strandline_pool_limit_connections": _pool("most"),
    "strandline_pool_used_connections": _pool("in_use"),
    "strandline_pool_waiting_tasks": _pool("waiting"),
    "strandline_pool_longest_wait_seconds": _pool("longest_wait"),
    "strandline_pool_oldest_transaction_seconds": _pool("oldest_transaction"),
    "strandline_pool_exhausted_total": _pool("exhausted"),
    "strandline_pool_wait_seconds_total": _pool("waited"),
    "strandline_pool_checkouts_total": _pool("taken"),
    "strandline_listener_connected": _listening,
    "strandline_listener_reconnects_total": _field("listener", "reconnects"),
    "strandline_lease_trust_remaining_seconds": _number("lease_trust"),
    "strandline_events_appended_total": _number("events_appended"),
    "strandline_loop_seconds_since_success": _ailing_loops,
    **SURVEY_READERS,
}
