"""What a survey says in words: pictures made by hand, and what each of them leads to."""

from __future__ import annotations

import shlex
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from pictured import (
    BUILD,
    HELD_UP,
    HOLDER,
    LATE,
    NOW,
    PREPARED,
    SERVER,
    STEPS,
    WELL,
    gone,
    node,
    queue,
    shard,
    transaction,
    with_mark,
    with_nodes,
    with_shards,
    work,
)
from typer.main import get_command
from typer.testing import CliRunner

from strandline.cli.main import app as commands
from strandline.postgres.diagnosis import Needs, Room, shortage
from strandline.settings import Settings
from strandline.survey.case import Limits
from strandline.survey.diagnosis import findings
from strandline.survey.facts import SHARD_STATES, LetterFacts, Survey, WorkFacts
from strandline.survey.finding import FAIL, OK, WARN, Finding, troubles
from strandline.telemetry.alerts import alerts


def judged(survey: Survey, **more: Any) -> list[Finding]:
    return troubles(findings(survey, app="shop:app", **more))


def only(survey: Survey, **more: Any) -> Finding:
    (found,) = judged(survey, **more)
    return found


CASES: dict[str, tuple[Survey, str, str, str]] = {
    # what is wrong: the survey, the outcome, words of the finding, and its cure
    "nobody leads though one may": (
        replace(WELL, leader=None, leaderless=40.0),
        *(FAIL, "nobody leads, for 40 s, though 1 node may (a)", "strandline nodes log"),
    ),
    "an election is just under way": (
        replace(WELL, leader=None, leaderless=2.0),
        *(WARN, "nobody leads, for 2.0 s", "strandline nodes log"),
    ),
    "only followers are here": (
        with_nodes(node(mode="follower"), leader=None, leaderless=40.0),
        *(FAIL, "none of 1 node may", "strandline node shop:app --mode cluster"),
    ),
    "no node is here": (
        with_nodes(gone(gone_for=9_000.0), leader=None, shards=()),
        *(FAIL, "no node is here", "strandline node shop:app"),
    ),
    "leaders change all the time": (
        replace(WELL, leader_changes=30),
        *(WARN, "changed 30 times", "strandline nodes log"),
    ),
    "a node is silent": (
        with_nodes(node(), node("b", 2, state="silent", beat_age=20.0)),
        *(WARN, "node b has not beaten for 20 s", "strandline nodes evict 2"),
    ),
    "a node is blocked": (
        with_nodes(node(), node("b", 2, state="stalled", loop_lag=40.0)),
        *(FAIL, "event loop of node b is 40 s late", "strandline nodes evict 2"),
    ),
    "a node's loop is late": (
        with_nodes(node(), node("b", 2, loop_lag=2.0)),
        *(WARN, "event loop of node b is 2.0 s late", "make what computes"),
    ),
    "two nodes have one name": (
        with_nodes(node(), node("a", 2)),
        *(WARN, "2 nodes are named 'a'", "strandline nodes drain 2"),
    ),
    "a node died": (
        with_nodes(node(), gone("dead", left_reason="no beat for 15.1 s")),
        *(WARN, "node b died 1 min 0 s ago: no beat for 15.1 s", "strandline nodes show 9"),
    ),
    "a stop was forced": (
        with_nodes(node(), gone(report={"result": "forced", "seconds": 25.0, **STEPS})),
        *(WARN, "node b was stopped by force 1 min 0 s ago, after 25 s", "strandline nodes show 9"),
    ),
    "a stop was slow": (
        with_nodes(node(), gone(report={"result": "clean", "seconds": 24.5, **STEPS})),
        *(WARN, "node b took 24 s to stop", "strandline nodes show 9"),
    ),
    "work is pinned to a node that is gone": (
        replace(
            WELL,
            work=WorkFacts((work("x:v1:all", pinned_to="z", unplaced="pinned to 'z'"),)),
        ),
        *(FAIL, "1 piece of work without a node: x:v1:all", "strandline work unpin x:v1:all"),
    ),
    "work needs a label": (
        replace(WELL, work=WorkFacts((work("x:v1:all", needs=["x:v1", "gpu"], unplaced="no"),))),
        *(FAIL, "without a node", "strandline node shop:app --label gpu"),
    ),
    "a transaction holds the mark": (
        with_mark(holders=(HOLDER,), **HELD_UP),
        *(WARN, "20 positions behind the end of the log, for 12 s", "strandline gaps cancel 42"),
    ),
    "a prepared transaction holds the mark": (
        with_mark(holders=(PREPARED,), **HELD_UP),
        *(WARN, "20 positions behind", "ROLLBACK PREPARED 'it''s'"),
    ),
    "the detector stands still": (
        with_mark(detector_state="silent", **HELD_UP),
        *(FAIL, "and no transaction holds it", "strandline nodes evict 1"),
    ),
    "nobody detects": (
        with_mark(detector_state="missing", detector="", **HELD_UP),
        *(FAIL, "nobody has the duty", "strandline node shop:app"),
    ),
    "the detector's node does not begin": (
        replace(
            with_mark(detector_state="missing", detector="", **HELD_UP),
            work=WorkFacts((work("high-water", target="a"),)),
        ),
        *(FAIL, "nobody has the duty", "strandline nodes evict 1"),
    ),
    "an operator has paused the detector": (
        replace(
            with_mark(detector_state="missing", detector=""),
            work=WorkFacts((work("high-water", paused_at=NOW),)),
        ),
        *(WARN, "nobody has the duty", "strandline work resume high-water"),
    ),
    "gaps were skipped by force": (
        with_mark(forced_gaps=1, forced_numbers=3),
        *(WARN, "1 gap with 3 numbers skipped without proof", "strandline gaps list --forced"),
    ),
    "a shard fails": (
        with_shards(
            shard(
                state="paused",
                reason="ApplyFailed: no",
                category="apply",
                **{"attempts": 4, "pauses": 1, "next_at": NOW + timedelta(seconds=21), **LATE},
                failure={"position": 7, "type": "odd", "stream": "s", "version": 2},
            )
        ),
        *(FAIL, "orders:v2:all is paused: ApplyFailed: no", "correct the handler or the event's"),
    ),
    "a shard is held": (
        with_shards(shard(state="held", paused_by="operator", reason="a trial", **LATE)),
        *(WARN, "paused by an operator: a trial", "strandline work resume orders:v2:all"),
    ),
    "a shard was never started": (
        with_shards(shard(state="never_started", position=None, owner=None)),
        *(WARN, "orders:v2:all never ran", "strandline node shop:app"),
    ),
    "nobody has a shard's code": (
        with_shards(shard(state="orphaned", **LATE)),
        *(FAIL, "in no living node's code", "strandline node shop:app"),
    ),
    "a shard is of an old version": (
        with_shards(shard("orders:v1:all", "orphaned", **LATE), shard()),
        *(WARN, "of an old version", "strandline projections retire orders:v1 --app shop:app"),
    ),
    "a shard is not begun": (
        with_shards(shard(state="claiming", since=40.0, **LATE)),
        *(WARN, "was given to a node that has not begun it", "strandline nodes evict 1"),
    ),
    "a shard is given to nobody": (
        with_shards(shard(state="unassigned", since=40.0, **LATE)),
        *(WARN, "has no node yet", "strandline nodes resign"),
    ),
    "a shard's node is silent": (
        with_shards(shard(state="silent", **LATE)),
        *(WARN, "belongs to a node that does not beat", "strandline nodes evict 1"),
    ),
    "a shard lags": (
        with_shards(shard(rate=100.0, **LATE)),
        *(WARN, "5,000 events, 4 min 0 s behind", "strandline projections list shop:app"),
    ),
    "events are parked": (
        replace(WELL, letters=(LetterFacts("orders:v2", "parked", 5, 2, 60.0, 1.0, "E: x", "f"),)),
        *(WARN, "orders:v2 lacks 2 events that failed (parked), and 3 events waiting behind"),
        "strandline letters retry --projection orders:v2 --app shop:app",
    ),
    "jobs are dead": (
        replace(WELL, queues=(queue(dead=2, oldest_dead=90.0),)),
        *(WARN, "2 dead in queue 'mail'", "strandline jobs retry --state dead --queue mail"),
    ),
    "a queue is paused": (
        replace(WELL, queues=(queue(available=3, paused_at=NOW, paused_reason="x"),)),
        *(WARN, "queue 'mail' is paused (x), and 3 jobs wait", "strandline queues resume mail"),
    ),
    "a queue has no worker": (
        replace(WELL, queues=(queue(available=3, oldest=90.0),)),
        *(WARN, "3 jobs wait in queue 'mail'", "strandline node shop:app --queues mail"),
    ),
    "a queue is at its limit": (
        replace(WELL, queues=(queue(available=3, oldest=90.0, running=2, at_most=2),)),
        *(WARN, "3 jobs wait", "strandline queues set --at-most 4 mail"),
    ),
    "a rebuild rests": (
        replace(WELL, builds=(replace(BUILD, paused=1, reason="KeyError"),)),
        *(
            FAIL,
            "rebuild 3 of orders:v2 rests at 25%",
            "strandline projections cancel orders --app",
        ),
    ),
    "a rebuild is known by nobody": (
        replace(WELL, builds=(replace(BUILD, known_by=0),)),
        *(WARN, "no node has its code", "strandline node shop:app"),
    ),
    "a rebuild stands still": (
        replace(WELL, builds=(replace(BUILD, idle=900.0),)),
        *(WARN, "nothing was told of it for 15 min", "strandline projections cancel orders --app"),
    ),
    "a transaction is forgotten": (
        replace(WELL, server=replace(SERVER, transactions=(transaction(),))),
        *(WARN, "pid 42 ('report', user 'ada') is idle", "SELECT pg_terminate_backend(42)"),
    ),
    "a prepared transaction lingers": (
        replace(
            WELL,
            server=replace(
                SERVER, transactions=(transaction(pid=None, state="prepared", prepared="p"),)
            ),
        ),
        *(WARN, "prepared transaction 'p'", "ROLLBACK PREPARED 'p'"),
    ),
    "a snapshot is old": (
        replace(WELL, server=replace(SERVER, horizon=9_000.0)),
        *(WARN, "old snapshot", "SELECT pid"),
    ),
    "connections run out": (
        replace(WELL, server=replace(SERVER, room=Room(100, 3, None, None, 95, 12, 1))),
        *(WARN, "95 of 97 connections", "raise max_connections"),
    ),
    "a part is missing": (
        replace(WELL, missing=("letters",)),
        *(WARN, "letters could not be read in time", "strandline doctor"),
    ),
}


def test_nothing_is_said_of_what_is_well() -> None:
    found = findings(WELL)

    assert {one.outcome for one in found} == {OK}
    assert all(not one.cure for one in found)
    assert "a leads, epoch 5" in " ".join(one.what for one in found)


@pytest.mark.parametrize("name", CASES)
def test_each_trouble_is_told_with_its_cure(name: str) -> None:
    survey, outcome, words, cure = CASES[name]

    found = judged(survey)

    assert [one for one in found if words in one.what], found
    first = next(one for one in found if words in one.what)
    assert first.outcome == outcome
    assert first.cure.startswith(cure)
    assert first.why or first.name in ("jobs", "work")
    assert len(found) <= 2, found  # a holder of the mark is told by itself


def test_every_command_in_a_cure_exists() -> None:
    cures = [one.cure for survey, *_ in CASES.values() for one in judged(survey)]
    typed = {tuple(shlex.split(one)[1:]) for one in cures if one.startswith("strandline ")}
    assert len(typed) >= 20

    alike: dict[tuple[str, ...], set[str]] = {}  # by the command: the options that it must have
    known: Any = get_command(commands)
    for words in typed:
        named = words[: 2 if hasattr(known.commands[words[0]], "commands") else 1]
        alike.setdefault(named, set()).update(one for one in words if one.startswith("--"))
    for named, options in alike.items():
        done = CliRunner().invoke(commands, [*named, "--help"])
        assert done.exit_code == 0, (named, done.output)
        assert all(one in done.output for one in options), (named, done.output)


def test_every_runbook_of_a_finding_is_that_of_an_alert() -> None:
    named = {one.runbook for survey, *_ in CASES.values() for one in judged(survey)} - {""}

    assert named <= {one.runbook for one in alerts()}
    assert len(named) >= 20


def test_every_state_of_a_shard_is_judged() -> None:
    for state in SHARD_STATES:
        found = findings(with_shards(shard(state=state, since=600.0, **LATE)))
        (one,) = [one for one in found if one.name in ("shards", "lag")]
        is_bad = state != "held"  # nobody has said who holds it
        assert (one.outcome != OK) == is_bad or state == "held", (state, one)


def test_shards_in_the_same_trouble_are_told_together() -> None:
    shards = [shard(f"orders:v2:{n}/9", "held", paused_by="operator", **LATE) for n in range(1, 10)]

    found = only(with_shards(*shards))

    assert found.what.startswith(
        "9 shards (orders:v2:1/9, orders:v2:2/9, orders:v2:3/9 and 6 more)"
    )
    assert found.cure == "strandline work resume 'orders:v2:*'"


def test_work_without_a_node_is_told_once() -> None:
    shards = (shard("x:v1:all", "orphaned", **LATE), shard("y:v1:all", "unplaced", **LATE))
    rows = (
        work("x:v1:all", unplaced="no code"),
        work("y:v1:all", unplaced="pinned", pinned_to="z"),
    )

    found = judged(with_shards(*shards, work=WorkFacts(rows)))

    assert [(one.name, one.runbook) for one in found] == [
        ("work", "unplaced-work"),
        ("shards", "shard-orphaned"),
    ]


def test_only_the_last_stop_of_each_name_is_told_and_no_old_one() -> None:
    forced = {"result": "forced", "seconds": 25.0, **STEPS}
    clean = gone(report={"result": "clean", "seconds": 1.0})

    assert judged(with_nodes(node(), clean, gone(report=forced, gone_for=90.0))) == []
    assert judged(with_nodes(node(), gone(report=forced, gone_for=7_000.0))) == []
    evicted = gone("dead", left_reason="evicted by `strandline nodes evict`")
    assert judged(with_nodes(node(), evicted)) == []  # a person knows already
    back = (node(), node("b", 2), gone("dead", left_reason="no beat for 15.1 s"))
    assert judged(with_nodes(*back)) == []


def test_what_is_just_beginning_is_no_trouble() -> None:
    fresh = {"since": 2.0, **LATE, "lag_seconds": 2.0}
    starting = [shard(f"{state}:all", state, **fresh) for state in ("claiming", "unassigned")]

    assert judged(with_shards(*starting)) == []
    assert judged(with_shards(shard(state="held", paused_by="rest", **LATE))) == []
    assert judged(with_shards(shard(state="orphaned"))) == []  # nothing waits for it


def test_the_limit_of_a_role_is_not_compared_with_the_clients_of_all() -> None:
    crowd = replace(SERVER, room=Room(100, 3, None, 20, 60, 12, 1))

    assert judged(replace(WELL, server=crowd)) == []


def test_a_lag_is_told_by_what_makes_it() -> None:
    late = shard(rate=50.0, **LATE)
    survey = with_shards(late)

    def after(**before: Any) -> Finding:
        earlier = with_shards(replace(late, **before), taken_at=NOW - timedelta(seconds=20))
        return only(survey, before=earlier)

    assert "and needs 1 min 40 s more" in only(survey).why
    assert after(position=50, lag_events=4_000).runbook == "lag-rising"
    assert after(position=50, lag_events=9_000).runbook == "lag-high"
    stuck = after()
    assert (stuck.outcome, stuck.cure) == (FAIL, "strandline nodes evict 1")
    younger = with_shards(late, taken_at=NOW - timedelta(seconds=1))
    assert only(survey, before=younger).outcome == WARN  # a second tells nothing

    held = replace(with_mark(holders=(HOLDER,), **HELD_UP), shards=(late,))
    assert any(one.name == "lag" and one.cure == "strandline gaps live" for one in judged(held))


def test_late_events_count_as_healed_only_when_somebody_has_looked() -> None:
    survey = with_mark(late_events=2, forced_gaps=1, forced_numbers=2)

    assert only(survey).outcome == WARN
    assert (only(survey, unhealed=2).outcome, only(survey, unhealed=2).name) == (
        FAIL,
        "skipped positions",
    )
    assert "skipped without proof" in only(survey, unhealed=0).what


def test_in_mode_solo_nothing_is_said_of_leaders_and_nodes() -> None:
    solo = replace(WELL, mode="solo", nodes=(), leader=None, work=WorkFacts())
    assert judged(solo) == []

    away = replace(SERVER, room=Room(100, 3, None, None, 20, 0, 0))
    stopped = replace(solo, server=away, shards=(shard(state="stopped", **LATE),))
    assert only(stopped).cure == "strandline node shop:app"


def test_troubles_begin_with_the_worst() -> None:
    survey = replace(WELL, leader=None, leaderless=60.0, queues=(queue(dead=1),))

    assert [one.outcome for one in judged(survey)] == [FAIL, WARN]


def test_limits_follow_the_settings() -> None:
    one = Limits.of(Settings(leak_after=5.0, stop_timeout=10.0, stop_hard=20.0))

    assert (one.idle, one.stop, one.starting) == (5.0, 8.0, 25.0)


def test_connections_of_jobs_are_counted() -> None:
    plain, jobs = Needs.of(Settings()), Needs.of(Settings(), jobs=True)

    assert (plain.total, jobs.total, jobs.of_all(3)) == (12, 14, 45)
    assert str(jobs) == "8 work, 2 control, 1 listen, 1 beats, 2 jobs, 3 more while it leads"
    assert Needs.of(Settings(queues="none"), jobs=True).total == 12
    assert Needs.of(Settings(mode="follower"), jobs=True).of_all(1) == 14
    tight = Room(46, 3, None, None, 0, 0, 3)
    assert shortage(tight, jobs).startswith(
        "3 apps on this database may open 14 connections each, 45"
    )
    assert shortage(tight, plain) == ""
