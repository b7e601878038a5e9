"""The Trip domain: every document of every read model, against the live fold and the oracle."""

from __future__ import annotations

from typing import Any

import pytest
from trip.domain import MODELS, Trip, trip_app
from trip.generator import publish, trips
from trip.oracle import expected_documents

from strandline.app import App


async def stored(app: App, tenant: str = "default") -> dict[str, dict[str, Any]]:
    """Every document of every read model."""
    return {name: dict(await app.query(name, tenant=tenant)) for name in MODELS}


async def recorded(app: App, tenant: str = "default") -> list[tuple[str, int, Any]]:
    """What the oracle takes: every event in order of positions."""
    return [
        (one.stream, one.version, one.data)
        async for one in app.read_all(tenant=tenant, settled=False)
    ]


async def assert_models_are_right(app: App, tenant: str = "default") -> None:
    """Every stored document equals the oracle's, and every trip the live fold: absence too."""
    events = await recorded(app, tenant)
    found = await stored(app, tenant)

    expected = expected_documents(events)
    for name in MODELS:
        assert found[name] == expected[name], name
    for stream in {event[0] for event in events}:
        live = await app.live(Trip, stream, tenant=tenant)
        assert live == found["trips"].get(stream), stream


@pytest.mark.parametrize("writers", [1, 16])
async def test_documents_equal_the_live_fold_and_the_oracle(
    database_url: str, writers: int
) -> None:
    journeys = trips(60, seed=writers)
    async with trip_app(database_url) as app:
        await publish(app, journeys, writers=writers)

        await app.catch_up()

        await assert_models_are_right(app)
        events = await recorded(app)
        by_stream = {stream: [one[2] for one in events if one[0] == stream] for stream in journeys}
        assert by_stream == journeys


async def test_every_way_of_ending_a_trip_is_in_the_generated_streams() -> None:
    """Otherwise comparing documents proves little."""
    journeys = trips(60, seed=1)
    versions = [
        (stream, version, event)
        for stream, events in journeys.items()
        for version, event in enumerate(events, 1)
    ]
    kinds = {type(event).__name__ for _, _, event in versions}
    expected = expected_documents(versions)

    assert len(kinds) == 9
    assert 20 < len(expected["trips"]) < 55
    assert any(not one.active for one in expected["trips"].values())


@pytest.mark.parametrize(
    "settings",
    [
        {"page_events": 1, "cached_documents": 10},
        {"page_events": 7, "cached_documents": 0},
        {"page_events": 7, "cached_documents": 10},
        {"page_events": 1000, "cached_documents": 0},
        {"page_bytes": 65_536},
        {"prepared_statements": False},
    ],
    ids=str,
)
async def test_page_size_and_cache_change_nothing(
    database_url: str, settings: dict[str, Any]
) -> None:
    async with trip_app(database_url, **settings) as app:
        await publish(app, trips(12, seed=3), writers=4)

        await app.catch_up()

        await assert_models_are_right(app)


async def test_documents_are_right_when_events_come_while_the_node_runs(database_url: str) -> None:
    async with trip_app(database_url) as app:
        await app.start()
        await publish(app, trips(30, seed=4), writers=8)

        await app.catch_up()

        await assert_models_are_right(app)


async def test_tenants_with_the_same_stream_ids_never_meet(database_url: str) -> None:
    async with trip_app(database_url) as app:
        for seed, tenant in enumerate(["north", "south"]):
            await publish(app, trips(15, seed=seed), tenant=tenant, writers=4)

        await app.catch_up()

        for tenant in ("north", "south"):
            await assert_models_are_right(app, tenant)
        assert await stored(app, "north") != await stored(app, "south")
        assert not any((await stored(app, "default")).values())


async def test_inline_documents_equal_asynchronous_ones(database_url: str, server_url: str) -> None:
    journeys = trips(15, seed=5)
    async with trip_app(database_url, lifecycle="inline") as app:
        await publish(app, journeys, writers=8)

        await assert_models_are_right(app)
        inline = await stored(app)
        events = await recorded(app)

    again = trip_app(database_url, schema="second")
    async with again as app:
        for stream, _, event in events:
            await app.append(stream, event)
        await app.catch_up()

        assert await stored(app) == inline


@pytest.mark.parametrize("in_place", [False, True], ids=["in the shadow", "in place"])
async def test_a_rebuild_makes_the_same_documents_again(database_url: str, in_place: bool) -> None:
    async with trip_app(database_url) as app:
        await publish(app, trips(15, seed=6), writers=4)
        await app.catch_up()
        before = await stored(app)

        for name in MODELS:
            await app.rebuild(name, in_place=in_place)
        assert any((await stored(app)).values()) is not in_place
        await app.catch_up()

        assert await stored(app) == before
