"""Side effects, look-ups and composites on the Trip domain."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from tally import committed, connected, end_backends
from trip import domain
from trip.checks import assert_documents, documents, log_of
from trip.domain import DayState, Trip, TripState, trip_app
from trip.generator import publish, trips
from trip.oracle import expected_documents

import strandline as sl
from strandline.app import App
from strandline.errors import InvalidDefinition
from strandline.events.event import RecordedEvent
from strandline.projections.handlers import apply, delete, key
from strandline.projections.multi_stream import MultiStream

QUICK: dict[str, Any] = {"failure_pause": 0.1, "poll_interval": 0.05}


@dataclass(frozen=True)
class Written:
    """An entry in the diary of a trip."""

    version: int


def diary_app(url: str, **settings: Any) -> App:
    """An app whose trips write an entry into a stream of their own whenever one ends."""
    app = trip_app(url, models={}, **{**QUICK, **settings})
    app.event("written")(Written)

    @app.projection("trips", shards=2)
    class TellingTrip(Trip):
        @sl.effects
        async def raised(self, changes: sl.Changes[TripState], tx: sl.Transaction) -> None:
            for change in changes:
                for event in change.of(domain.TripEnded):
                    await tx.append(f"diary of {change.id}", Written(event.version))

    return app


async def assert_every_end_is_in_the_diary_once(app: App) -> None:
    diary: dict[str, list[int]] = {}
    ends: dict[str, list[int]] = {}
    for stream, version, event in await log_of(app):
        if isinstance(event, Written):
            diary.setdefault(stream.removeprefix("diary of "), []).append(event.version)
        elif isinstance(event, domain.TripEnded):
            ends.setdefault(stream, []).append(version)
    assert diary == ends
    assert ends


async def test_what_a_batch_causes_happens_once_though_backends_are_killed(
    database_url: str,
) -> None:
    """Events are appended in the batch's own transaction, behind its fence."""
    app = diary_app(database_url, page_events=20, failure_pause=0.05)
    async with app, connected(database_url) as operator:
        await publish(app, trips(25, seed=81), writers=4)
        batches = committed(app, "trips")
        await app.start()
        for number in range(1, 6):
            await batches(2 * number)
            await end_backends(operator, "strandline work")
        await app.catch_up()

        await assert_every_end_is_in_the_diary_once(app)
        await assert_documents(app, "trips")


async def test_a_rebuild_causes_nothing_again(database_url: str) -> None:
    async with diary_app(database_url) as app:
        await publish(app, trips(10, seed=82))
        await app.catch_up()
        await assert_every_end_is_in_the_diary_once(app)

        await app.rebuild("trips", timeout=60)
        await app.catch_up()

        await assert_every_end_is_in_the_diary_once(app)
        await assert_documents(app, "trips")


async def test_an_effect_that_raises_leaves_its_event_to_be_replayed(database_url: str) -> None:
    app = trip_app(database_url, models={}, **QUICK)
    fails = True

    @app.projection("trips")
    class TellingTrip(Trip):
        @sl.effects
        async def raised(self, changes: sl.Changes[TripState], tx: sl.Transaction) -> None:
            for change in changes:
                if fails and change.id == "bad" and change.of(domain.TripEnded):
                    raise ConnectionError("the printer is away")

    async with app:
        start = domain.TripStarted(1)
        await app.append("good", [start, domain.TripEnded(2, "Ohio")])
        await app.append("bad", [start, domain.TripEnded(2, "Ohio"), domain.Arrival(3, "Utah")])
        await app.catch_up(timeout=30)
        good = TripState(1, "Ohio", active=False, ended_on=2)
        assert await documents(app, "trips") == {"good": good, "bad": TripState(1)}

        fails = False
        await app.start()
        await app.letters.retry(all=True)
        async with asyncio.timeout(20):
            while await app.letters.list():
                await asyncio.sleep(0.01)
        await assert_documents(app, "trips")


@pytest.mark.parametrize("lifecycle", ["inline", "live"])
def test_effects_are_for_projections_that_nodes_run(lifecycle: str) -> None:
    app = trip_app("postgresql://nobody@127.0.0.1:1/nowhere", models={})

    with pytest.raises(InvalidDefinition):

        @app.projection("trips", lifecycle=lifecycle)
        class TellingTrip(Trip):
            @sl.effects
            async def raised(self, changes: sl.Changes[TripState], tx: sl.Transaction) -> None: ...


# ---- look-ups


def climates_app(url: str, looks: list[int], **settings: Any) -> App:
    app = trip_app(url, models={}, **{**QUICK, **settings})

    @app.projection("climates", shards=2)
    class Climates(MultiStream[DayState]):
        @sl.enrich
        async def climate(self, events: Sequence[RecordedEvent[Any]], look: sl.Lookup) -> Any:
            looks.append(len(events))
            rows = await look.fetch("SELECT state, climate FROM climates")
            found = {row["state"]: row["climate"] for row in rows}
            return [found.get(getattr(event.data, "state", "")) for event in events]

        @key
        def of(self, event: RecordedEvent[domain.Arrival]) -> str | None:
            return event.found

        @apply
        def arrived(self, day: DayState, event: RecordedEvent[domain.Arrival]) -> None:
            day.travels += 1

    return app


CLIMATES = {"Texas": "hot", "Utah": "dry", "Ohio": "mild", "Maine": "cold", "Iowa": "mild"}


async def test_what_events_lack_is_looked_up_once_a_page_also_in_a_rebuild(
    database_url: str,
) -> None:
    looks: list[int] = []
    app = climates_app(database_url, looks, page_events=100)
    async with app, connected(database_url) as operator:
        await operator.execute("CREATE TABLE climates (state text PRIMARY KEY, climate text)")
        await operator.executemany("INSERT INTO climates VALUES ($1, $2)", CLIMATES.items())
        await publish(app, trips(20, seed=83), writers=4)
        await app.catch_up()

        expected: dict[str, int] = {}
        arrivals = [event for _, _, event in await log_of(app) if isinstance(event, domain.Arrival)]
        for event in arrivals:
            if event.state in CLIMATES:
                climate = CLIMATES[event.state]
                expected[climate] = expected.get(climate, 0) + 1
        found = await documents(app, "climates")
        assert {name: one.travels for name, one in found.items()} == expected
        assert len(looks) < len(arrivals) / 5

        await app.rebuild("climates", timeout=60)
        found = await documents(app, "climates")
        assert {name: one.travels for name, one in found.items()} == expected


# ---- composites


@dataclass
class Where:
    state: str = ""
    traveled: float = 0.0


class Whereabouts(MultiStream[Where]):
    """A later stage: it sees trips as the stage before has made them."""

    @key
    def of(self, told: sl.Updated[TripState] | sl.Deleted[TripState]) -> str:
        return told.id

    @apply
    def moved(self, where: Where, told: sl.Updated[TripState]) -> None:
        where.state, where.traveled = told.state.state, told.state.traveled

    @delete
    def gone(self, told: sl.Deleted[TripState]) -> None: ...


def world_app(url: str, **settings: Any) -> App:
    """One composite of two stages: trips and days first, then where the trips are."""
    app = trip_app(url, models={}, **{**QUICK, **settings})

    @app.projection("world")
    class World(sl.Composite):
        stages = ({"trips": Trip, "days": domain.Day}, {"whereabouts": Whereabouts})

    return app


async def assert_world_is_right(app: App) -> None:
    expected = expected_documents(await log_of(app))
    assert await documents(app, Trip) == expected["trips"]
    assert await documents(app, domain.Day) == expected["days"]
    assert await documents(app, Whereabouts) == {
        name: Where(one.state, one.traveled) for name, one in expected["trips"].items()
    }


async def test_stages_of_a_composite_build_on_each_other_and_commit_together(
    database_url: str,
) -> None:
    """One shard, one reading of the events, one checkpoint; right after every kill."""
    app = world_app(database_url, page_events=25, failure_pause=0.05)
    async with app, connected(database_url) as operator:
        await publish(app, trips(20, seed=84), writers=4)
        batches = committed(app, "world")
        await app.start()
        for number in range(1, 6):
            await batches(2 * number)
            await end_backends(operator, "strandline work")
        await app.catch_up()

        await assert_world_is_right(app)
        assert [one.name for one in await app.progress()] == ["world:v1:all"]


async def test_members_of_a_composite_are_rebuilt_and_swapped_together(database_url: str) -> None:
    async with world_app(database_url, page_events=50) as app:
        await publish(app, trips(15, seed=85), writers=4)
        await app.catch_up()
        before = await documents(app, Whereabouts)
        rebuilding = asyncio.create_task(app.rebuild("world", timeout=60))
        while not rebuilding.done():
            assert await documents(app, Whereabouts) == before
        await rebuilding

        await assert_world_is_right(app)
