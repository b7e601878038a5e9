"""What gauges show: read from the statistics of the parts at the moment somebody collects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

Facts = Mapping[str, Any]
Reading = tuple[float, dict[str, str]]


def _field(part: str, name: str) -> Callable[[Facts], Iterator[Reading]]:
    """Reads the number *name* of the statistics of *part*, if there are any."""

    def read(now: Facts) -> Iterator[Reading]:
        value = getattr(now.get(part), name, None)
        if value is not None:
            yield float(value), {}

    return read


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


def _lags(now: Facts) -> Iterator[Reading]:
    daemon: Any = now.get("daemon")
    for one in getattr(daemon, "agents", ()):
        if one.state != "claiming":  # its checkpoint is not known yet
            yield float(max(0, daemon.mark - one.position)), {"shard": one.shard}


def _letters(now: Facts) -> Iterator[Reading]:
    for one in getattr(now.get("daemon"), "letters", ()):
        yield float(one.count), {"label": one.label, "status": one.status}


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


READERS: dict[str, Callable[[Facts], Iterator[Reading]]] = {
    "strandline_last_tick_age_seconds": _field("pulse", "seconds_since_tick"),
    "strandline_loop_lag_seconds": _field("pulse", "loop_lag"),
    "strandline_leader": _leader,
    "strandline_leader_epoch": _field("leadership", "epoch"),
    "strandline_leader_unseen_seconds": _field("pulse", "seconds_since_leader_seen"),
    "strandline_unplaced_work": _unplaced,
    "strandline_shards": _shards,
    "strandline_shard_position": _positions,
    "strandline_shard_lag_events": _lags,
    "strandline_high_water_position": _field("daemon", "mark"),
    "strandline_open_letters": _letters,
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
}
