"""Subscriptions and the kit for tests, on the Trip domain."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tally import committed, connected, end_backends
from trip import domain
from trip.checks import assert_documents
from trip.domain import Trip, TripState, trip_app
from trip.generator import publish, trips

from strandline.app import App, Transaction
from strandline.errors import OwnershipLost, UnknownProjection
from strandline.projections.subscription import EventBatch
from strandline.testing import app_scenario, no_leaks, scenario

Told = list[tuple[int, str, int, Any]]


def taker(into: Told) -> Any:
    async def take(batch: EventBatch) -> None:
        into.extend((one.position, one.stream, one.version, one.data) for one in batch)

    return take


async def all_events(app: App) -> Told:
    return [
        (one.position, one.stream, one.version, one.data)
        async for one in app.read_all(settled=False)
    ]


async def test_a_subscription_is_told_every_event_once_in_order_with_its_data_while_others_append(
    database_url: str,
) -> None:
    told: Told = []
    app = trip_app(database_url, models={}, page_events=30)
    app.subscription("teller")(taker(told))
    async with app:
        await publish(app, trips(10, seed=31), writers=4)
        await app.start()
        await publish(app, {f"later {k}": v for k, v in trips(10, seed=32).items()}, writers=4)
        await app.catch_up()

        assert told == await all_events(app)


async def test_a_subscription_filters_by_class_and_gets_nothing_else(database_url: str) -> None:
    arrivals: Told = []
    by_base: Told = []
    app = trip_app(database_url, models={})
    app.subscription("arrivals", types=[domain.Arrival])(taker(arrivals))
    app.subscription("ends", types=[domain.TripEnded, domain.TripAborted])(taker(by_base))
    async with app:
        await publish(app, trips(12, seed=33), writers=2)
        await app.catch_up()

        log = await all_events(app)
        assert arrivals == [one for one in log if isinstance(one[3], domain.Arrival)]
        ends = (domain.TripEnded, domain.TripAborted)
        assert by_base == [one for one in log if isinstance(one[3], ends)]


async def test_what_a_subscription_does_by_its_transaction_happens_once_though_backends_are_killed(
    database_url: str,
) -> None:
    """Others call a listener before and after the commit; here the transaction is handed over."""
    app = trip_app(database_url, models={}, page_events=10, failure_pause=0.05)

    @app.subscription("mirror")
    async def mirror(batch: EventBatch, tx: Transaction) -> None:
        for event in batch:
            await tx.execute("INSERT INTO mirror (position) VALUES ($1)", event.position)

    async with app, connected(database_url) as operator:
        await operator.execute("CREATE TABLE mirror (n serial, position bigint UNIQUE)")
        await publish(app, trips(12, seed=34), writers=2)
        batches = committed(app, "mirror")
        await app.start()
        for number in range(1, 7):
            await batches(number)
            await end_backends(operator, "strandline work")
        await app.catch_up()

        rows = await operator.fetch("SELECT position FROM mirror ORDER BY n")
        assert [row[0] for row in rows] == [one[0] for one in await all_events(app)]


async def test_a_new_subscription_begins_at_the_beginning_the_present_or_a_position(
    database_url: str,
) -> None:
    told: dict[str, Told] = {"beginning": [], "present": [], "position": []}
    starts = {"beginning": "beginning", "present": "present", "position": 40}
    app = trip_app(database_url, models={})
    for name, into in told.items():
        app.subscription(name, start=starts[name])(taker(into))
    async with app:
        await publish(app, trips(5, seed=35))
        highest = await app.catch_up()
        await publish(app, {f"later {k}": v for k, v in trips(3, seed=36).items()})
        await app.catch_up()

        log = await all_events(app)
        assert told["beginning"] == log
        assert told["present"] == [one for one in log if one[0] > highest]
        assert told["position"] == [one for one in log if one[0] > 40]


async def test_a_subscription_goes_on_where_it_was_and_is_told_nothing_again_after_a_restart(
    database_url: str,
) -> None:
    told: Told = []
    for seed in (37, 38):
        app = trip_app(database_url, models={})
        app.subscription("teller", start="present" if seed == 38 else "beginning")(taker(told))
        async with app:
            await publish(app, {f"{seed} {k}": v for k, v in trips(3, seed=seed).items()})
            await app.catch_up()
            log = await all_events(app)

    assert told == log


async def test_an_outside_system_can_refuse_a_predecessor_by_the_epoch(database_url: str) -> None:
    """Of two owners the earlier one may call once more, late; its epoch tells."""
    accepted: list[tuple[int, int]] = []
    apps = [trip_app(database_url, models={}, mode="solo") for _ in range(2)]
    for app in apps:

        @app.subscription("caller")
        async def call(batch: EventBatch) -> None:
            if all(batch.epoch >= epoch for epoch, _ in accepted):
                accepted.extend((batch.epoch, one.position) for one in batch)

    first, second = apps
    async with first, second:
        lost = asyncio.create_task(first.signals.wait_for("ownership_lost", timeout=10))
        await first.start()
        done = await first.append("trip-1", domain.TripStarted(1))
        await first.wait_for(done.position, "caller")
        claimed = asyncio.create_task(second.signals.wait_for("shard_claimed", timeout=10))
        await second.start()
        await claimed
        done = await second.append("trip-1", domain.Arrival(1, "Ohio"))
        await second.wait_for(done.position, "caller")
        assert isinstance((await lost).facts["error"], OwnershipLost)

        assert accepted[0] == (1, 1) and accepted[-1] == (2, 2)


async def test_names_of_what_nodes_run_are_unique(database_url: str) -> None:
    app = trip_app(database_url, models={"trips": Trip})
    with pytest.raises(Exception, match="taken"):
        app.subscription("trips")(taker([]))


async def test_events_of_an_archived_stream_still_reach_what_has_not_seen_them(
    database_url: str,
) -> None:
    """Nothing is lost silently: an archived stream takes no more, and what it took is followed."""
    told: Told = []
    app = trip_app(database_url)
    app.subscription("teller")(taker(told))
    async with app:
        await publish(app, trips(6, seed=39))
        for number in range(1, 4):
            await app.archive(f"trip-{number}")
        await app.catch_up()

        await assert_documents(app)
        assert told == await all_events(app)


# ---- the kit


def test_a_read_model_is_tested_without_a_database() -> None:
    (
        scenario(Trip)
        .given("trip-1", domain.TripStarted(3))
        .when(domain.Arrival(4, "Ohio"))
        .then(TripState(3, "Ohio"))
        .when(domain.TripAborted())
        .then_no_document()
    )


async def test_a_scenario_looks_only_when_everything_has_caught_up(database_url: str) -> None:
    async with trip_app(database_url) as app, no_leaks(app):
        await (
            app_scenario(app)
            .given("trip-1", domain.TripStarted(3), domain.Arrival(4, "Ohio"))
            .then_document(Trip, "trip-1", TripState(3, "Ohio"))
            .when("trip-1", domain.TripAborted())
            .then_no_document(Trip, "trip-1")
            .then_documents("days", {"3": domain.DayState(started=1)})
        )


async def test_a_step_of_a_scenario_that_fails_skips_the_rest_and_says_how(
    database_url: str,
) -> None:
    async with trip_app(database_url) as app:
        with pytest.raises(AssertionError, match="Ohio"):
            await (
                app_scenario(app)
                .given("trip-1", domain.TripStarted(3), domain.Arrival(4, "Ohio"))
                .then_document(Trip, "trip-1", TripState(3, "Utah"))
                .when("trip-1", domain.TripAborted())
            )

        assert len(await app.read_stream("trip-1")) == 2


async def test_waiting_for_a_position_is_reading_your_own_write_also_of_one_projection(
    database_url: str,
) -> None:
    app = trip_app(database_url)
    async with app:
        await app.start()
        for number in range(5):
            done = await app.append(f"trip-{number}", domain.TripStarted(number))
            await app.wait_for(done.position, Trip)
            assert await app.get(Trip, f"trip-{number}") == TripState(number)
        with pytest.raises(UnknownProjection):
            await app.wait_for(done.position, "nobody")


async def test_a_test_may_catch_up_while_a_node_runs_and_while_none_does(
    database_url: str,
) -> None:
    async with trip_app(database_url) as app:
        await app.append("trip-1", domain.TripStarted(1))
        await app.catch_up()
        assert not app.is_running
        await app.start()
        await app.append("trip-1", domain.Arrival(1, "Ohio"))
        await app.catch_up()
        assert app.is_running

        await assert_documents(app)


async def test_a_timeout_of_waiting_says_who_is_where(database_url: str) -> None:
    async with trip_app(database_url, models={"trips": Trip}) as app:
        done = await app.append("trip-1", domain.TripStarted(1))
        with pytest.raises(Exception, match=r"trips:v1:all is at"):
            await app.wait_for(done.position, timeout=0.2)
