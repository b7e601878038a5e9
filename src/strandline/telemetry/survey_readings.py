"""What gauges show of the survey: of the whole cluster, told by the node that looks at it alone.

Without a fresh survey there are no series: numbers that are out of date must not look alive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from strandline.telemetry.catalogue.survey_metrics import (
    ENDS,
    NODE_STATES,
    SHARD_STATES,
    WORK_STATES,
)

Facts = Mapping[str, Any]
Reading = tuple[float, dict[str, str]]
Reader = Callable[[Facts], Iterator[Reading]]

RECENT = 3_600.0  # seconds in which a node that is gone counts as one that went lately


def _survey(now: Facts) -> Any:
    return getattr(now.get("survey"), "last", None)


def _of_survey(read: Callable[[Any], Iterable[Reading]]) -> Reader:
    """Reads the last survey, if there is a fresh one."""

    def reader(now: Facts) -> Iterator[Reading]:
        survey = _survey(now)
        if survey is not None:
            yield from read(survey)

    return reader


def _number(look: Callable[[Any], float | None]) -> Reader:
    """Reads one number of the last survey."""

    def read(survey: Any) -> Iterator[Reading]:
        value = look(survey)
        if value is not None:
            yield float(value), {}

    return _of_survey(read)


def _age(now: Facts) -> Iterator[Reading]:
    statistics = now.get("survey")
    if statistics is not None:  # told as well when nothing else is: that is when it matters
        yield float(statistics.age), {}


def _of_shards(value: Callable[[Any], float]) -> Reader:
    def read(survey: Any) -> Iterator[Reading]:
        for one in survey.shards:
            yield float(value(one)), {"projection": one.projection, "shard": one.name}

    return _of_survey(read)


def _shard_states(survey: Any) -> Iterator[Reading]:
    for one in survey.shards:
        labels = {"projection": one.projection, "shard": one.name, "state": one.state}
        yield 1.0, labels


def _by_state(states: Iterable[str], found: Callable[[Any], Iterable[str]]) -> Reader:
    """Counts what is in which state; those that nothing is in are told as 0."""

    def read(survey: Any) -> Iterator[Reading]:
        counted = list(found(survey))
        for state in states:
            yield float(counted.count(state)), {"state": state}

    return _of_survey(read)


def _nodes(survey: Any) -> Iterator[Reading]:
    if survey.mode == "cluster":
        here = [one.state for one in survey.nodes_here]
        for state in NODE_STATES:
            yield float(here.count(state)), {"state": state}


def _work(survey: Any) -> Iterator[Reading]:
    if survey.mode == "cluster":
        counts = survey.work.counts
        for state in WORK_STATES:
            yield float(counts[state]), {"state": state}


def _gone_lately(survey: Any) -> list[Any]:
    return [one for one in survey.nodes if one.gone_for is not None and one.gone_for <= RECENT]


def _ends(survey: Any) -> Iterator[Reading]:
    if survey.mode == "cluster":
        results = [one.result for one in _gone_lately(survey)]
        for result in ENDS:
            yield float(results.count(result)), {"result": result}


def _longest_end(survey: Any) -> float | None:
    if survey.mode != "cluster":
        return None
    reports = (one.report or {} for one in _gone_lately(survey))
    return max((float(one.get("seconds") or 0.0) for one in reports), default=0.0)


def _oldest_beat(survey: Any) -> float | None:
    return max((float(one.beat_age) for one in survey.nodes_here), default=None)


def _letters(survey: Any) -> Iterator[Reading]:
    for one in survey.letters:
        yield float(one.count), {"projection": one.projection, "status": one.status}


def _oldest_letters(survey: Any) -> Iterator[Reading]:
    for one in survey.letters:
        yield float(one.oldest), {"projection": one.projection, "status": one.status}


def _dead_jobs(survey: Any) -> Iterator[Reading]:
    for one in survey.queues:
        yield float(one.dead), {"queue": one.name}


def _of_builds(value: Callable[[Any], float | None]) -> Reader:
    def read(survey: Any) -> Iterator[Reading]:
        for one in survey.builds:
            found = value(one)
            if found is not None:
                yield float(found), {"projection": one.projection, "purpose": one.purpose}

    return _of_survey(read)


def _of_server(look: Callable[[Any], float | None]) -> Reader:
    return _number(lambda survey: None if survey.server is None else look(survey.server))


def _detector_idle(now: Facts) -> Iterator[Reading]:
    """Of the node whose duty it is, whether or not it surveys."""
    daemon = now.get("daemon")
    loop = getattr(getattr(daemon, "high_water", None), "loop", None)
    if getattr(daemon, "detects", False) and loop is not None:
        yield float(loop.seconds_since_success), {}


def _of_detector(name: str) -> Reader:
    def read(now: Facts) -> Iterator[Reading]:
        daemon: Any = now.get("daemon")
        if getattr(daemon, "detects", False):
            yield float(getattr(daemon.high_water, name)), {}

    return read


SURVEY_READERS: dict[str, Reader] = {
    "strandline_survey_age_seconds": _age,
    "strandline_survey_seconds": _number(lambda survey: survey.seconds),
    "strandline_shard_lag_events": _of_shards(lambda one: one.lag_events),
    "strandline_shard_lag_seconds": _of_shards(lambda one: one.lag_seconds),
    "strandline_shard_state": _of_survey(_shard_states),
    "strandline_cluster_shards": _by_state(
        SHARD_STATES, lambda survey: (one.state for one in survey.shards)
    ),
    "strandline_high_water_position": _number(lambda survey: survey.mark.position),
    "strandline_highest_position": _number(lambda survey: survey.mark.highest),
    "strandline_high_water_difference_events": _number(lambda survey: survey.mark.difference),
    "strandline_high_water_age_seconds": _number(lambda survey: survey.mark.age),
    "strandline_high_water_stale": _number(lambda survey: survey.mark.is_stale),
    "strandline_high_water_holders": _number(lambda survey: len(survey.mark.holders)),
    "strandline_high_water_detectors": _number(
        lambda survey: survey.mark.detector_state == "alive"
    ),
    "strandline_high_water_detector_idle_seconds": _detector_idle,
    "strandline_high_water_moves_total": _of_detector("moves"),
    "strandline_cluster_nodes": _of_survey(_nodes),
    "strandline_cluster_work": _of_survey(_work),
    "strandline_oldest_beat_seconds": _number(_oldest_beat),
    "strandline_recent_leader_changes": _number(
        lambda survey: survey.leader_changes if survey.mode == "cluster" else None
    ),
    "strandline_recent_shutdowns": _of_survey(_ends),
    "strandline_recent_shutdown_seconds": _number(_longest_end),
    "strandline_open_letters": _of_survey(_letters),
    "strandline_oldest_letter_seconds": _of_survey(_oldest_letters),
    "strandline_dead_jobs": _of_survey(_dead_jobs),
    "strandline_rebuild_done_ratio": _of_builds(lambda one: one.done),
    "strandline_rebuild_idle_seconds": _of_builds(lambda one: one.idle),
    "strandline_rebuild_paused_shards": _of_builds(lambda one: one.paused),
    "strandline_server_connections": _of_server(lambda server: server.connections),
    "strandline_server_connections_limit": _of_server(lambda server: server.most),
    "strandline_oldest_transaction_seconds": _of_server(
        lambda server: server.oldest_transaction.age if server.oldest_transaction else 0.0
    ),
    "strandline_oldest_idle_transaction_seconds": _of_server(
        lambda server: server.oldest_idle.idle if server.oldest_idle else 0.0
    ),
}
