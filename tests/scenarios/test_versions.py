"""Versions side by side, the gate before side effects, lifecycles that change, rewinds."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from tally import holds
from trip import domain
from trip.checks import assert_documents, documents, log_of
from trip.domain import Trip, TripState, trip_app
from trip.generator import publish, trips
from trip.oracle import expected_documents

import strandline as sl
from strandline.app import App
from strandline.errors import InvalidDefinition
from strandline.projections.subscription import EventBatch

QUICK: dict[str, Any] = {"failure_pause": 0.1, "poll_interval": 0.05}


class TripAgain(Trip):
    """Version 2."""


async def test_a_new_version_is_built_beside_the_old_one_and_both_are_right(
    database_url: str,
) -> None:
    async with trip_app(database_url, models={"trips": Trip}, **QUICK) as app:
        await publish(app, trips(10, seed=91))
        await app.catch_up()
    app = trip_app(database_url, models={"trips": Trip}, **QUICK)
    app.projection("trips", version=2)(TripAgain)
    async with app:
        await publish(app, {f"later {k}": v for k, v in trips(10, seed=92).items()})
        await app.catch_up()

        for reference in (Trip, TripAgain, "trips:v1", "trips:v2"):
            expected = expected_documents(await log_of(app))["trips"]
            assert await documents(app, reference) == expected
        assert {one.name for one in await app.progress()} == {"trips:v1:all", "trips:v2:all"}


async def test_an_old_version_is_retired_with_everything_it_had(database_url: str) -> None:
    app = trip_app(database_url, models={"trips": Trip}, **QUICK)
    async with app:
        await publish(app, trips(5, seed=93))
        await app.catch_up()
    app = trip_app(database_url, models={}, **QUICK)
    app.projection("trips", version=2)(TripAgain)
    async with app:
        await app.catch_up()
        await app.retire("trips:v1")

        async with app.transaction() as tx:
            (table,) = await tx.fetch("SELECT to_regclass('strandline.doc_trips_v1') AS name")
            shards = await tx.fetch("SELECT name FROM strandline.shards ORDER BY 1")
        assert table["name"] is None
        assert [row["name"] for row in shards] == ["trips:v2:all"]
        await assert_documents(app, "trips")


# ---- the gate


@dataclass(frozen=True)
class Written:
    stream: str
    version: int


def telling(cls: type[Trip]) -> type[Trip]:
    """*cls*, which appends for every end of a trip."""

    class Telling(cls):  # type: ignore[misc,valid-type]  # a class given as a value
        @sl.effects
        async def raised(self, changes: sl.Changes[TripState], tx: sl.Transaction) -> None:
            for change in changes:
                for event in change.of(domain.TripEnded):
                    await tx.append("diary", Written(event.stream, event.version))

    return Telling


def telling_app(url: str, *versions: int) -> App:
    app = trip_app(url, models={}, **QUICK)
    app.event("written")(Written)
    for version in versions:
        app.projection("trips", version=version)(telling(Trip))
    return app


async def told_and_ended(app: App) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    log = await log_of(app)
    told = [(one.stream, one.version) for _, _, one in log if isinstance(one, Written)]
    ended = [(stream, n) for stream, n, one in log if isinstance(one, domain.TripEnded)]
    return sorted(told), sorted(ended)


async def test_every_effect_happens_once_while_one_version_takes_over_from_another(
    database_url: str,
) -> None:
    """The older one speaks until it is retired; the newer one goes on where it ended."""
    async with telling_app(database_url, 1) as app:
        await publish(app, trips(6, seed=94))
        await app.catch_up()
        told, ended = await told_and_ended(app)
        assert told == ended
    async with telling_app(database_url, 1, 2) as app:
        await app.catch_up()
        await publish(app, {f"both {k}": v for k, v in trips(6, seed=95).items()})
        await app.catch_up()
        told, ended = await told_and_ended(app)
        assert told == ended, "the newer one has warmed up without a word"
    async with telling_app(database_url, 2) as app:
        await app.catch_up()
        await app.retire("trips:v1")
        await publish(app, {f"new {k}": v for k, v in trips(6, seed=96).items()})
        await app.catch_up()

        told, ended = await told_and_ended(app)
        assert told == ended
        await assert_documents(app, "trips")


# ---- lifecycles


async def test_an_inline_projection_becomes_asynchronous_and_goes_on_where_it_is(
    database_url: str,
) -> None:
    """Applied twice, a journey would be twice as long."""
    async with trip_app(database_url, lifecycle="inline", **QUICK) as app:
        await publish(app, trips(8, seed=97), writers=4)
    async with trip_app(database_url, **QUICK) as app:
        await publish(app, {f"later {k}": v for k, v in trips(8, seed=98).items()}, writers=4)
        await app.catch_up()

        await assert_documents(app)


async def test_an_asynchronous_projection_becomes_inline_once_it_has_caught_up(
    database_url: str,
) -> None:
    async with trip_app(database_url, models={"trips": Trip}, **QUICK) as app:
        await publish(app, trips(8, seed=99), writers=4)
    behind = trip_app(database_url, models={"trips": Trip}, lifecycle="inline", **QUICK)
    with pytest.raises(InvalidDefinition, match="trips:v1"):
        await behind.open()
    async with trip_app(database_url, models={"trips": Trip}, **QUICK) as app:
        await app.catch_up()
    app = trip_app(database_url, models={"trips": Trip}, lifecycle="inline", **QUICK)
    async with app:
        await publish(app, {f"later {k}": v for k, v in trips(8, seed=100).items()}, writers=4)

        await assert_documents(app, "trips")
        assert await app.progress() == []


async def test_processes_with_the_old_and_the_new_lifecycle_apply_every_event_once(
    database_url: str,
) -> None:
    """A rolling deployment: both append while the projection changes hands."""
    old = trip_app(database_url, lifecycle="inline", **QUICK)
    async with old:
        await publish(old, trips(4, seed=101))
        new = trip_app(database_url, **QUICK)
        publishing = asyncio.create_task(
            publish(old, {f"old {k}": v for k, v in trips(6, seed=102).items()}, writers=4)
        )
        async with new:
            await new.start()
            await publish(new, {f"new {k}": v for k, v in trips(6, seed=103).items()}, writers=4)
            await publishing
            await new.catch_up()

            await assert_documents(new)


# ---- rewinds


def teller(url: str, told: list[int]) -> App:
    app = trip_app(url, models={}, **QUICK)

    @app.subscription("teller")
    async def tell(batch: EventBatch) -> None:
        told.extend(one.position for one in batch)

    return app


async def test_a_subscription_is_rewound_to_the_beginning_a_position_a_time_and_the_present(
    database_url: str,
) -> None:
    told: list[int] = []
    async with teller(database_url, told) as app:
        await publish(app, trips(4, seed=104))
        middle = await app.catch_up()
        at = datetime.now(UTC)
        await publish(app, {f"later {k}": v for k, v in trips(4, seed=105).items()})
        head = await app.catch_up()
        assert told == list(range(1, head + 1))

        for to, first in (("beginning", 1), (5, 6), (at, middle + 1), ("present", head + 1)):
            told.clear()
            await app.rewind("teller", to)
            await app.catch_up()
            assert told == list(range(first, head + 1)), to


async def test_a_subscription_is_rewound_while_another_node_runs_it(database_url: str) -> None:
    """Nobody has to be stopped for it: the epoch turns the owner's next batch away."""
    told: list[int] = []
    elsewhere: list[int] = []
    async with teller(database_url, told) as runs, teller(database_url, elsewhere) as other:
        await publish(runs, trips(4, seed=106))
        await runs.start()
        head = await runs.highest_position()
        await runs.wait_for(head, "teller")
        told.clear()

        await other.rewind("teller", "beginning")

        await holds(lambda: set(told) == set(range(1, head + 1)))
        assert elsewhere == []
        await runs.append("afterwards", domain.TripStarted(1))
        await holds(lambda: told[-1] == head + 1)


async def test_a_projection_is_not_rewound_but_rebuilt(database_url: str) -> None:
    async with trip_app(database_url, models={"trips": Trip}, **QUICK) as app:
        with pytest.raises(InvalidDefinition, match="rebuild"):
            await app.rewind("trips", "beginning")
