"""What follows from a picture of a node: outcomes, and which probes do not pass."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from strandline.app import health_checks, part_checks
from strandline.app.growth import Growth
from strandline.app.health_checks import Life, Now, everything, liveness, readiness
from strandline.cluster.lease import Leadership
from strandline.cluster.shutdown_report import ShutdownReport, StepOutcome
from strandline.cluster.vitals import PulseStatistics
from strandline.jobs.completer_statistics import CompleterStatistics
from strandline.jobs.worker_statistics import WorkersStatistics, WorkerStatistics
from strandline.loops import LoopStatistics
from strandline.postgres.listener import ListenerStatistics
from strandline.postgres.pool_statistics import PoolStatistics
from strandline.settings import Settings
from strandline.survey.office import SurveyStatistics
from strandline.telemetry.health import Check, Health, probe, whole
from strandline.telemetry.ops_server import Request

SETTINGS = Settings(
    live_loop_lag=60.0,
    pulse_interval=3.0,
    pulse_deadline=2.5,
    node_ttl=15.0,
    leader_ttl=12.0,
    stop_timeout=25.0,
    stop_hard=28.0,
    survey_interval=10.0,
)
PULSE = PulseStatistics(
    kind="process",
    state="active",
    ticks=10,
    failures=0,
    last_tick_seconds=0.01,
    seconds_since_tick=1.0,
    loop_lag=0.0,
    epoch=0,
    attempts=0,
    wins=0,
    losses=0,
    timeouts=0,
    election_seconds=0.0,
    seconds_since_leader_seen=1.0,
    restarts=0,
)
LOOP = LoopStatistics("mark", "mark", True, 10, 0, 0, "", 0.5)
COMPLETER = CompleterStatistics(0, 0, 5, 0, 0, 0, 1, 0, LOOP)
WORKER = WorkerStatistics("mail", 10, 2, 0, 5, 1.0, 3, 5, 0.01, 0, 0, False, False)
POOL = PoolStatistics("work", 8, 8, 0, 0, 8, 0.1)


def now(*, blocked: float = 0.0, **changes: Any) -> Now:
    """A node of a cluster that is well, but for *changes*; facts beside the others."""
    facts: dict[str, Any] = {"pulse": PULSE, "leadership": None, **changes.pop("facts", {})}
    given: dict[str, Any] = {"is_open": True, "life": Life.UP, "stop": None, "overdue": 0.0}
    return Now(
        node="shop-1",
        settings=SETTINGS,
        blocked=lambda: blocked,
        place=lambda: "sleep, shop.py:7",
        ops_failure=changes.pop("ops_failure", ""),
        facts=facts,
        growth=changes.pop("growth", Growth()),
        **{**given, **changes},
    )


def outcome(name: str, **facts: Any) -> str:
    return everything(now(facts=facts))[name].outcome


def beats(**changes: Any) -> dict[str, Any]:
    return {"pulse": replace(PULSE, **changes)}


# ---- probes


def test_a_node_that_is_well_passes_every_probe() -> None:
    health = everything(now())

    assert (health.status, health.live, health.ready) == ("ok", True, True)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.9, "ok"), (1.1, "warn"), (59.0, "warn"), (61.0, "fail")],
)
def test_a_blocked_loop_fails_liveness_only_beyond_its_limit(seconds: float, expected: str) -> None:
    health = liveness(now(blocked=seconds))

    assert health["event_loop"].outcome == expected
    assert health.live == (expected != "fail")
    assert ("shop.py:7" in health["event_loop"].reason) == (expected != "ok")


@pytest.mark.parametrize(
    ("pulse", "passes"),
    [
        ({"state": "active"}, True),
        ({"state": ""}, False),
        ({"state": "joining"}, False),
        ({"state": "stalled"}, False),
        ({"state": "draining"}, False),
        ({"state": "dead"}, False),
        ({"state": "left"}, False),
        ({"seconds_since_tick": 14.0}, True),
        ({"seconds_since_tick": 15.0}, False),
    ],
)
def test_readiness_follows_the_node_and_its_beats_and_liveness_never(
    pulse: dict[str, Any], passes: bool
) -> None:
    picture = now(facts=beats(**pulse))

    assert readiness(picture).ready == passes
    assert liveness(picture).live
    assert everything(picture).ready == passes


@pytest.mark.parametrize(
    ("life", "is_open", "passes"),
    [
        (Life.NONE, False, False),
        (Life.NONE, True, True),
        (Life.STARTING, False, False),
        (Life.STARTING, True, False),
        (Life.UP, True, True),
        (Life.STOPPED, True, False),
    ],
)
def test_readiness_follows_the_life_of_the_process(life: Life, is_open: bool, passes: bool) -> None:
    picture = replace(now(life=life, is_open=is_open), facts={})

    assert readiness(picture).ready == passes
    assert readiness(picture).live


@pytest.mark.parametrize(("overdue", "is_live"), [(0.0, True), (2.9, True), (3.1, False)])
def test_a_stop_is_never_ready_and_live_until_it_has_outlived_its_time(
    overdue: float, is_live: bool
) -> None:
    stop = ShutdownReport("SIGTERM", seconds=4.0, steps=(StepOutcome("drain", "running", 3.0),))

    health = readiness(now(stop=stop, overdue=overdue))

    assert (health.ready, health.live) == (False, is_live)
    assert "stopping (SIGTERM) for 4.0 s, at drain" in health["stop"].reason


def test_what_ends_in_a_stop_is_no_fault() -> None:
    stop = ShutdownReport("SIGTERM")
    dead = replace(LOOP, running=False, is_dead=True)

    health = everything(now(stop=stop, facts={"loops": (dead,)}))

    assert {one.name for one in health.checks if one.outcome != "ok"} == {"stop"}


# ---- checks


@pytest.mark.parametrize(
    ("age", "expected"), [(1.0, "ok"), (8.0, "ok"), (9.0, "warn"), (16.0, "fail")]
)
def test_beats_without_an_answer(age: float, expected: str) -> None:
    assert outcome("pulse", **beats(seconds_since_tick=age)) == expected


@pytest.mark.parametrize(("age", "expected"), [(11.0, "ok"), (13.0, "warn"), (25.0, "fail")])
def test_a_cluster_without_a_leader(age: float, expected: str) -> None:
    assert outcome("leader", **beats(seconds_since_leader_seen=age)) == expected
    leads = {"leadership": Leadership(3, 1e12)}
    assert outcome("leader", **leads, **beats(seconds_since_leader_seen=age)) == "ok"


def test_a_node_that_hears_nothing_does_not_say_that_nobody_leads() -> None:
    facts = beats(seconds_since_leader_seen=60.0, seconds_since_tick=60.0)

    found = everything(now(facts=facts))["leader"]

    assert (found.outcome, "no beat was answered" in found.reason) == ("warn", True)


def test_a_side_process_is_told_of_when_it_died_again() -> None:
    growth = Growth()

    found = [
        everything(now(growth=growth, facts=beats(restarts=count)))["side_process"].outcome
        for count in (2, 2, 3)
    ]

    assert found == ["ok", "ok", "warn"]


@pytest.mark.parametrize(
    ("loop", "expected"),
    [
        (LOOP, "ok"),
        (replace(LOOP, consecutive_failures=2), "ok"),
        (replace(LOOP, consecutive_failures=3, seconds_since_success=5.0), "warn"),
        (replace(LOOP, consecutive_failures=9, seconds_since_success=61.0), "fail"),
        (replace(LOOP, running=False, is_dead=True), "fail"),
        (replace(LOOP, running=False), "ok"),
    ],
)
def test_background_loops(loop: LoopStatistics, expected: str) -> None:
    assert outcome("background_loops", loops=(LOOP, loop)) == expected


def test_a_pool_that_is_full_warns_and_one_that_ran_out_fails() -> None:
    growth = Growth()

    def found(**changes: Any) -> str:
        pools = [replace(POOL, **changes)]
        return everything(now(growth=growth, facts={"pools": pools}))["pools"].outcome

    assert found(exhausted=7) == "ok"  # long ago, for all we know
    assert found(exhausted=7, waiting=2) == "warn"
    assert found(exhausted=8) == "fail"


def test_old_and_leaked_transactions_warn() -> None:
    growth = Growth()

    def found(**changes: Any) -> str:
        pools = [replace(POOL, **changes)]
        return everything(now(growth=growth, facts={"pools": pools}))["transactions"].outcome

    assert found(oldest_transaction=SETTINGS.leak_after - 1) == "ok"
    assert found(oldest_transaction=SETTINGS.leak_after + 1) == "warn"
    assert found(leaked=1) == "warn"


@pytest.mark.parametrize(
    ("statistics", "expected"),
    [
        (ListenerStatistics(True, 3, 0), "ok"),
        (ListenerStatistics(False, 3, 0), "warn"),
        (ListenerStatistics(False, 0, 0, is_polling=True), "ok"),
    ],
)
def test_the_listener(statistics: ListenerStatistics, expected: str) -> None:
    assert outcome("listener", listener=statistics) == expected


@pytest.mark.parametrize(
    ("completer", "expected"),
    [
        (COMPLETER, "ok"),
        (replace(COMPLETER, pending=3), "ok"),
        (replace(COMPLETER, pending=3, failures=2), "warn"),
        (replace(COMPLETER, aside=1), "warn"),
    ],
)
def test_jobs_that_cannot_be_written(completer: CompleterStatistics, expected: str) -> None:
    workers = WorkersStatistics((WORKER,))

    assert outcome("jobs", job_completer=completer, job_workers=workers) == expected


def test_a_job_that_does_not_end_warns_when_it_happens() -> None:
    growth = Growth()

    def found(stuck: int) -> str:
        workers = WorkersStatistics((replace(WORKER, stuck=stuck),))
        return everything(now(growth=growth, facts={"job_workers": workers}))["jobs"].outcome

    assert [found(0), found(1)] == ["ok", "warn"]


@pytest.mark.parametrize(("age", "expected"), [(5.0, "ok"), (31.0, "ok"), (33.0, "fail")])
def test_a_survey_that_is_too_old(age: float, expected: str) -> None:
    assert outcome("survey", survey=SurveyStatistics(None, age, 4, 0)) == expected


def test_an_ops_port_that_cannot_be_had_is_told() -> None:
    assert everything(now(ops_failure="Address already in use"))["ops_port"].outcome == "warn"


def test_growth_is_news_for_a_while() -> None:
    brief, long = Growth(lately=0.0), Growth()

    assert [long.lately("x", value) for value in (5, 5, 6, 6, 0)] == [
        False,
        False,
        True,
        True,
        True,
    ]
    assert [brief.lately("x", value) for value in (5, 6)] == [False, False]


# ---- the page

CODE = "\n".join(Path(module.__file__ or "").read_text() for module in (health_checks, part_checks))
DOCS = Path(__file__).parents[2] / "docs" / "operate"


def test_every_check_stands_in_the_table_of_the_page() -> None:
    page = (DOCS / "health.md").read_text(encoding="utf-8")
    table = page.partition("## Checks")[2]

    checks = set(re.findall(r"Check\(\s*\"(\w+)\"", CODE))

    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == checks


def test_every_runbook_that_a_check_names_is_there() -> None:
    named = set(re.findall(r"\"([a-z]+(?:-[a-z]+)+)\"", CODE)) - {"high-water"}

    assert len(named) > 10
    assert {one for one in named if not (DOCS / "runbooks" / f"{one}.md").is_file()} == set()


# ---- answers

WELL = Check("a", "ok", "fine")
WARNS = Check("b", "warn", "soon", "do it")
FAILS = Check("c", "fail", "broken", "mend it", "page")
NOT_READY = Check("d", "warn", "leaves", blocks=("ready",))
NOT_LIVE = Check("e", "fail", "hangs", blocks=("live", "ready"))


@pytest.mark.parametrize(
    ("checks", "statuses"),
    [
        ((WELL,), (200, 200, 200)),
        ((WELL, WARNS), (200, 200, 200)),
        ((WELL, FAILS), (503, 200, 200)),
        ((WELL, NOT_READY), (200, 200, 503)),
        ((WELL, NOT_LIVE), (503, 503, 503)),
        ((), (200, 200, 200)),
    ],
)
def test_statuses(checks: tuple[Check, ...], statuses: tuple[int, ...]) -> None:
    health, request = Health("shop-1", checks), Request("/")

    found = (
        whole(health, request),
        probe(health, request, "live"),
        probe(health, request, "ready"),
    )

    assert tuple(one.status for one in found) == statuses


def test_a_probe_that_fails_says_only_why() -> None:
    health = Health("shop-1", (WELL, FAILS, NOT_READY))

    answer = probe(health, Request("/readyz"), "ready")

    assert str(answer.body) == "shop-1: not ready\nwarn d: leaves\n"


def test_the_worst_comes_first_with_its_cure() -> None:
    text = Health("shop-1", (WELL, WARNS, FAILS)).text()

    assert text.splitlines() == [
        "shop-1: fail",
        "fail c: broken",
        "     -> mend it",
        "warn b: soon",
        "     -> do it",
        "ok   a: fine",
    ]


@pytest.mark.parametrize(
    ("query", "headers", "is_json"),
    [
        ({}, {}, False),
        ({"format": "json"}, {}, True),
        ({}, {"accept": "application/json"}, True),
        ({"format": "text"}, {"accept": "application/json"}, False),
        ({}, {"accept": "text/html,*/*"}, False),
    ],
)
def test_text_is_for_people_and_json_for_who_asks(
    query: dict[str, str], headers: dict[str, str], is_json: bool
) -> None:
    answer = whole(Health("shop-1", (FAILS,)), Request("/healthz", query, headers))

    assert (answer.content_type == "application/json") == is_json
    if is_json:
        assert json.loads(answer.body)["checks"][0]["runbook"] == "page"
