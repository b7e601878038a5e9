"""What gauges show of a survey, and that they show nothing without a fresh one."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from strandline.events.gaps import Holder
from strandline.jobs.queues import QueueState
from strandline.postgres.diagnosis import Room
from strandline.survey.facts import (
    BuildFacts,
    LeaderFacts,
    LetterFacts,
    MarkFacts,
    NodeFacts,
    QueueFacts,
    ServerFacts,
    ShardFacts,
    Survey,
    TransactionFacts,
    WorkFacts,
)
from strandline.survey.office import SurveyStatistics
from strandline.telemetry.catalogue import CATALOGUE
from strandline.telemetry.survey_readings import SURVEY_READERS

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOLDER = Holder(1, "app", "me", "idle in transaction", 9.0, None, None, None)
# Of these nodes the detector is told by each for itself.
OF_NODES = ("strandline_high_water_detector_idle_seconds", "strandline_high_water_moves_total")


def node(name: str, state: str, since: float, **report: Any) -> NodeFacts:
    return NodeFacts(
        id=uuid4(),
        number=1,
        name=name,
        state=state,
        mode="cluster",
        beat_age=since,
        expires_in=10.0,
        loop_lag=0.0,
        work=1,
        shards=1,
        is_leader=False,
        labels=(),
        capacity=1.0,
        priority=0,
        version="1",
        host="h",
        pid=1,
        pulse="loop",
        age=100.0,
        drain_reason=None,
        left_reason="",
        report=report or None,
        gone_for=since if state in ("left", "dead") else None,
    )


def transaction(age: float, state: str) -> TransactionFacts:
    return TransactionFacts(1, "app", "me", state, age, age, "", "", "", False, False)


SURVEY = Survey(
    taken_at=NOW,
    seconds=0.02,
    mode="cluster",
    mark=MarkFacts(
        position=90,
        highest=100,
        settled_at=NOW,
        age=12.0,
        is_stale=True,
        holders=(HOLDER,),
        rolled_back_numbers=3,
        forced_gaps=0,
        forced_numbers=0,
        late_events=0,
        detector="first",
        detector_state="alive",
    ),
    shards=(
        ShardFacts("a:v1:all", "a:v1", "projection", "running", 90, 10, 4.0),
        ShardFacts("b", "b", "subscription", "never_started", None, 100, 60.0),
    ),
    nodes=(
        node("first", "active", 0.5),
        node("second", "silent", 30.0),
        node("third", "left", 60.0, result="forced", seconds=25.0),
        node("fourth", "dead", 60.0),
        node("long ago", "dead", 7_200.0, seconds=900.0),
    ),
    leader=LeaderFacts(UUID(int=1), "first", 3, 100.0, 10.0, 0.5),
    leaderless=None,
    leader_changes=2,
    work=WorkFacts(),
    letters=(LetterFacts("a:v1", "parked", 4, 1, 50.0, 1.0, "ValueError: no", "abc"),),
    queues=(QueueFacts(QueueState("mails"), dead=7, oldest_dead=9.0),),
    builds=(
        BuildFacts(1, "a:v1", "rebuild", "building", "", 25, 100, 0.25, 5.0, 2, 1, 2, 60.0, 3.0),
        BuildFacts(2, "c:v1", "verify", "queued", "", 0, 100, 0.0, 0.0, 0, 0, 2, 60.0, None),
    ),
    server=ServerFacts(
        version="18",
        room=Room(100, 3, None, None, connections=20, ours=12, apps=3),
        is_standby=False,
        horizon=4.0,
        jobs_ended=5,
        transactions=(transaction(40.0, "active"), transaction(30.0, "idle in transaction")),
    ),
)


def told(survey: Survey | None, metric: str) -> dict[tuple[str, ...], float]:
    facts = {"survey": SurveyStatistics(survey, 1.5, 1, 0)}
    found = list(SURVEY_READERS[metric](facts))
    for _, labels in found:
        assert tuple(labels) == CATALOGUE[metric].attributes
    return {tuple(labels.values()): value for value, labels in found}


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("survey_age_seconds", {(): 1.5}),
        ("survey_seconds", {(): 0.02}),
        ("shard_lag_events", {("a:v1", "a:v1:all"): 10, ("b", "b"): 100}),
        ("shard_lag_seconds", {("a:v1", "a:v1:all"): 4, ("b", "b"): 60}),
        (
            "shard_state",
            {("a:v1", "a:v1:all", "running"): 1, ("b", "b", "never_started"): 1},
        ),
        ("high_water_position", {(): 90}),
        ("highest_position", {(): 100}),
        ("high_water_difference_events", {(): 10}),
        ("high_water_age_seconds", {(): 12}),
        ("high_water_stale", {(): 1}),
        ("high_water_holders", {(): 1}),
        ("high_water_detectors", {(): 1}),
        ("oldest_beat_seconds", {(): 30}),
        ("recent_leader_changes", {(): 2}),
        (
            "recent_shutdowns",
            {("clean",): 0, ("degraded",): 0, ("forced",): 1, ("dead",): 1},
        ),
        ("recent_shutdown_seconds", {(): 25}),
        ("open_letters", {("a:v1", "parked"): 4}),
        ("oldest_letter_seconds", {("a:v1", "parked"): 50}),
        ("dead_jobs", {("mails",): 7}),
        ("rebuild_done_ratio", {("a:v1", "rebuild"): 0.25, ("c:v1", "verify"): 0}),
        ("rebuild_idle_seconds", {("a:v1", "rebuild"): 3}),
        ("rebuild_paused_shards", {("a:v1", "rebuild"): 1, ("c:v1", "verify"): 0}),
        ("server_connections", {(): 20}),
        ("server_connections_limit", {(): 97}),
        ("oldest_transaction_seconds", {(): 40}),
        ("oldest_idle_transaction_seconds", {(): 30}),
    ],
)
def test_each_gauge_shows_its_number(metric: str, expected: dict[tuple[str, ...], float]) -> None:
    assert told(SURVEY, f"strandline_{metric}") == expected


def test_states_that_nothing_is_in_are_told_as_zero() -> None:
    shards = told(SURVEY, "strandline_cluster_shards")
    assert (shards[("running",)], shards[("never_started",)], shards[("paused",)]) == (1, 1, 0)
    nodes = told(SURVEY, "strandline_cluster_nodes")
    assert (nodes[("active",)], nodes[("silent",)], nodes[("stalled",)]) == (1, 1, 0)
    assert sum(told(SURVEY, "strandline_cluster_work").values()) == 0


def test_without_a_fresh_survey_only_its_age_is_told() -> None:
    for metric in set(SURVEY_READERS) - set(OF_NODES):
        expected = {(): 1.5} if metric == "strandline_survey_age_seconds" else {}
        assert told(None, metric) == expected
        assert list(SURVEY_READERS[metric]({})) == []


def test_in_mode_solo_there_are_no_series_of_a_cluster() -> None:
    solo = replace(SURVEY, mode="solo", nodes=(), leader=None)
    for name in ("cluster_nodes", "cluster_work", "recent_shutdowns", "recent_leader_changes"):
        assert told(solo, f"strandline_{name}") == {}
    assert told(solo, "strandline_oldest_beat_seconds") == {}
    assert told(solo, "strandline_high_water_detectors") == {(): 1}


def test_a_server_that_could_not_be_read_is_no_zero() -> None:
    survey = replace(SURVEY, server=None, missing=("server",))
    assert told(survey, "strandline_server_connections") == {}
    assert told(survey, "strandline_oldest_idle_transaction_seconds") == {}
