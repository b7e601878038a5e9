"""The survey as a duty: who looks, what is shown, and for how long."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from clusters import tables
from prometheus_client.parser import text_string_to_metric_families
from tally import fill, holds, tally_app

from strandline.app import App
from strandline.cluster.leading import Term
from strandline.survey.office import ALONE, GRACE, INTERVALS, SurveyOffice
from strandline.testing.faults import Proxy

NODE: dict[str, Any] = {
    "pulse": "loop",
    "pulse_interval": 0.1,
    "node_ttl": 5.0,
    "leader_ttl": 2.0,
    "leader_margin": 0.2,
    "poll_interval": 0.05,
    "survey_interval": 0.05,
}


class HandClock:
    """Monotonic time that moves when told."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        """See ``Clock``."""
        return self.seconds

    def now(self) -> datetime:
        """See ``Clock``."""
        return datetime.now(UTC)


def value(app: App, name: str, **labels: str) -> float | None:
    """What Prometheus would read of the series ``strandline_NAME`` with *labels*."""
    body, _ = app._metrics.exposition()
    wanted = {"node": app.node_name, **labels}
    for family in text_string_to_metric_families(body.decode()):
        for one in family.samples:
            if one.name == f"strandline_{name}" and one.labels == wanted:
                return float(one.value)
    return None


def lag(app: App) -> float | None:
    return value(app, "shard_lag_events", projection="versions:v1", shard="versions:v1:all")


async def test_the_leader_alone_shows_the_whole_cluster_and_its_successor_goes_on(
    database_url: str,
) -> None:
    first = tally_app(database_url, node_name="first", **NODE)
    second = tally_app(database_url, node_name="second", leader_priority=-1, **NODE)
    async with first, second:
        await first.start()
        await second.start()
        await fill(first, 20)
        await holds(lambda: value(first, "cluster_nodes", state="active") == 2, timeout=30.0)
        assert value(first, "cluster_shards", state="running") is not None
        await holds(lambda: value(first, "high_water_position") == 20, timeout=30.0)
        await holds(lambda: lag(first) == 0, timeout=30.0)
        assert value(first, "high_water_detectors") == 1
        assert value(second, "survey_age_seconds") is None
        assert lag(second) is None

        await first.stop()
        third = tally_app(database_url, node_name="third", **NODE)
        async with third:
            await third.start()
            await holds(lambda: lag(third) == 0, timeout=30.0)
            await holds(
                lambda: value(third, "recent_shutdowns", result="clean") == 1,
                timeout=30.0,
            )
            assert value(third, "recent_shutdown_seconds") is not None
            assert lag(first) is None  # it shows nothing any more


async def test_a_solo_node_surveys_for_itself_and_tells_it(database_url: str) -> None:
    app = tally_app(database_url, **NODE, mode="solo")
    async with app:
        await app.start()
        notice = await app.signals.wait_for("surveyed", timeout=30.0)
        assert notice.facts["survey"].mode == "solo"
        await holds(lambda: value(app, "cluster_shards", state="running") == 2, timeout=30.0)
        names = {"projection": "versions:v1", "shard": "versions:v1:all"}
        assert value(app, "shard_state", **names, state="running") == 1
        assert value(app, "cluster_nodes", state="active") is None  # there is no cluster
        await app.stop()
        assert app._readings().get("survey") is None


async def test_without_metrics_nobody_looks(database_url: str) -> None:
    app = tally_app(database_url, **NODE, mode="solo", metrics=False)
    async with app:
        await app.start()
        assert app._readings().get("survey") is None


async def test_a_detector_whose_loop_has_ended_shows_within_two_surveys(
    database_url: str,
) -> None:
    app = tally_app(database_url, **NODE, mode="solo")
    async with app:
        await app.start()
        await holds(lambda: value(app, "high_water_detectors") == 1, timeout=30.0)
        detector: Any = app._node.daemon._detector  # type: ignore[union-attr]
        detector._loop._task.cancel()  # dies without having been told to
        await detector._loop.join()
        surveys = app._readings()["survey"].surveys
        await holds(lambda: app._readings()["survey"].surveys >= surveys + 3, timeout=30.0)
        assert value(app, "high_water_detectors") == 0
        assert app._readings()["survey"].last.mark.detector_state == "missing"

        await fill(app, 10)  # and there it shows as lag: not as a mark that nothing lags behind
        await holds(lambda: lag(app) == 10, timeout=30.0)
        assert value(app, "high_water_difference_events") == 10


async def test_a_state_that_only_one_look_saw_is_not_shown(database_url: str) -> None:
    async with tables(database_url, survey_interval=0.05) as found:
        detects = False
        office = SurveyOffice(found.url, found.settings, found.signals, detects=lambda: detects)
        try:
            office.begin_alone()
            first = await found.signals.wait_for("surveyed", timeout=30.0)
            assert first.facts["survey"].mark.detector_state == "alive"
            second = await found.signals.wait_for("surveyed", timeout=30.0)
            assert second.facts["survey"].mark.detector_state == "missing"
            detects = True
            third = await found.signals.wait_for("surveyed", timeout=30.0)
            assert third.facts["survey"].mark.detector_state == "alive"
        finally:
            await office.stop(timeout=5.0)


async def test_when_looks_fail_their_age_grows_and_nothing_old_is_shown(
    database_url: str,
) -> None:
    async with tables(database_url, survey_interval=0.2) as found, Proxy(database_url) as proxy:
        clock = HandClock()
        office = SurveyOffice(
            proxy.url, found.settings, found.signals, detects=lambda: True, clock=clock
        )
        try:
            office.begin_alone()
            await found.signals.wait_for("surveyed", timeout=30.0)
            await holds(lambda: office.last, timeout=30.0)
            proxy.refuse()  # from now on every look fails
            fresh = INTERVALS * found.settings.survey_interval + GRACE
            clock.seconds = fresh
            assert office.last is not None
            clock.seconds = fresh + 0.1
            told = office.statistics()
            assert told is not None
            assert (told.last, told.age) == (None, fresh + 0.1)
            await holds(lambda: (office.statistics() or told).failures > 0, timeout=30.0)
        finally:
            await office.stop(timeout=5.0)


async def test_the_age_counts_from_the_begin_when_no_look_ever_went_well(
    database_url: str,
) -> None:
    async with tables(database_url) as found, Proxy(database_url) as proxy:
        clock = HandClock()
        proxy.refuse()
        office = SurveyOffice(
            proxy.url, found.settings, found.signals, detects=lambda: True, clock=clock
        )
        try:
            office.begin_alone()
            clock.seconds = 42.0
            told = office.statistics()
            assert told is not None
            assert (told.last, told.age, told.surveys) == (None, 42.0, 0)
        finally:
            await office.stop(timeout=5.0)


async def test_a_look_that_ends_after_its_term_is_not_shown(database_url: str) -> None:
    async with tables(database_url, survey_interval=0.05) as found:
        node = await found.node("first")
        term = await found.leads(node)
        office = SurveyOffice(found.url, found.settings, found.signals, detects=lambda: True)
        blocker = await found.connect()
        await blocker.execute("BEGIN")
        await blocker.execute("LOCK TABLE strandline.slicings IN ACCESS EXCLUSIVE MODE")
        try:
            office.begin(term)
            assert office.serves(term.epoch)
            watch = await found.connect()
            waits = (
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND wait_event_type = 'Lock'"
            )
            await holds(lambda: watch.fetchval(waits), timeout=30.0)
            office.end(term.epoch)
            assert not office.serves(term.epoch)
            assert office.statistics() is None
            await blocker.execute("ROLLBACK")
            await office.stop(timeout=5.0)
            assert found.told("surveyed") == []

            later = Term(node.id, term.epoch + 1, term.channel)
            office.begin(later)
            office.end(term.epoch)  # the end of an earlier term ends no later one
            assert office.serves(later.epoch)
            await holds(lambda: office.last, timeout=30.0)
        finally:
            await office.stop(timeout=5.0)
        assert not office.serves(term.epoch + 1)


async def test_a_stop_does_not_wait_for_a_look_that_hangs(database_url: str) -> None:
    async with tables(database_url, survey_interval=0.05) as found:
        office = SurveyOffice(found.url, found.settings, found.signals, detects=lambda: True)
        blocker = await found.connect()
        await blocker.execute("BEGIN")
        await blocker.execute("LOCK TABLE strandline.slicings IN ACCESS EXCLUSIVE MODE")
        office.begin_alone()
        async with asyncio.timeout(20.0):
            await office.stop(timeout=0.1)
        await blocker.execute("ROLLBACK")
        await holds(lambda: _surveying(blocker, "true", none=True), timeout=30.0)


# ---- a connection of its own

PLACE: dict[str, Any] = {"mode": "solo", "control_connections": 1, "survey_interval": 0.05}


async def _surveying(connection: Any, condition: str, *, none: bool = False) -> bool:
    """Whether a connection of the survey meets *condition*; or none does."""
    found = await connection.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        f" AND application_name = 'strandline survey' AND {condition}"
    )
    return bool(found) is not none


@asynccontextmanager
async def looking_through(proxy: Proxy, url: str, **settings: Any) -> AsyncIterator[App]:
    """A solo node that takes its looks, and nothing else, through *proxy*."""
    app = tally_app(url, **{**NODE, **PLACE, **settings})
    async with app:
        app.pools.control_url = proxy.url
        yield app


async def _goes_on(app: App) -> None:
    """Whoever waits is answered, and the mark moves."""
    for _ in range(3):
        last = await fill(app, 5)
        await app.wait_for(last, timeout=30.0)
        assert app._node is not None
        assert app._node.statistics().mark >= last


async def test_a_look_that_waits_for_a_lock_holds_up_neither_the_mark_nor_who_waits(
    database_url: str,
) -> None:
    async with tables(database_url) as found:
        blocker, watch = await found.connect(), await found.connect()
        async with tally_app(database_url, **{**NODE, **PLACE}) as app:
            await app.start()
            await app.signals.wait_for("surveyed", timeout=30.0)
            await blocker.execute("BEGIN; LOCK TABLE strandline.leases IN ACCESS EXCLUSIVE MODE")
            waits = "wait_event_type = 'Lock'"
            await holds(lambda: _surveying(watch, waits), timeout=30.0)
            await _goes_on(app)
            await holds(lambda: _surveying(watch, waits), timeout=30.0)
            assert not [one for one in app.pools.control.holders() if "survey" in one.task]
            await blocker.execute("ROLLBACK")
            await app.signals.wait_for("surveyed", timeout=30.0)
        await holds(lambda: _surveying(watch, "true", none=True), timeout=30.0)


async def test_a_look_in_a_black_hole_holds_up_neither_the_mark_nor_who_waits(
    database_url: str,
) -> None:
    async with Proxy(database_url) as proxy, looking_through(proxy, database_url) as app:
        await app.start()
        await app.signals.wait_for("surveyed", timeout=30.0)
        proxy.black_hole()
        surveys = app._readings()["survey"].surveys
        await _goes_on(app)
        assert app._readings()["survey"].surveys <= surveys + 1  # one was on its way
        proxy.forward()
        await app.signals.wait_for("surveyed", timeout=30.0)


async def test_catching_up_does_not_wait_for_a_look_under_way(database_url: str) -> None:
    async with Proxy(database_url) as proxy, looking_through(proxy, database_url) as app:
        last = await fill(app, 20)
        proxy.black_hole()
        catching_up = asyncio.create_task(app.catch_up(timeout=30.0))
        looks = await holds(lambda: app._node and app._node.survey._watch, timeout=30.0)
        assert await catching_up == last
        assert not looks.is_at_work
        assert looks._loop._task.cancelling() == 0  # as it is when a stop has waited in vain


async def test_an_end_in_the_second_look_cuts_it_and_opens_nothing_more(
    database_url: str,
) -> None:
    async with tables(database_url, survey_interval=60.0, stale_after=0.1) as found:
        await found.one(
            "SELECT position FROM strandline.append('s', $1)",
            json.dumps([{"type": "X", "data": {}}]),
        )
        await found.one(
            "UPDATE strandline.events SET recorded_at = clock_timestamp() - interval '1 minute'"
        )
        await found.one(
            "UPDATE strandline.high_water SET settled_at = clock_timestamp() - interval '1 minute'"
        )
        watch = await found.connect()
        office = SurveyOffice(found.url, found.settings, found.signals, detects=lambda: True)
        office.begin_alone()
        rests = "state = 'idle' AND state_change < clock_timestamp() - interval '0.3 s'"
        await holds(lambda: _surveying(watch, rests), timeout=30.0)
        office.end(ALONE)
        for _ in range(10):  # turns of the event loop, not time
            await asyncio.sleep(0)
        assert not {"strandline:survey", "strandline:look"} & {
            one.get_name() for one in asyncio.all_tasks()
        }
        await holds(lambda: _surveying(watch, "true", none=True), timeout=30.0)
        assert found.told("surveyed") == []
        await office.stop(timeout=5.0)
