"""What becomes of events that cannot be processed: category by category, on the Trip domain."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import Any

import pytest
from tally import connected, holds
from trip.checks import assert_documents, documents, log_of
from trip.domain import (
    Arrival,
    Day,
    Departure,
    PlaceState,
    Trip,
    TripStarted,
    TripState,
    trip_app,
)
from trip.fragile import QUICK, fragile, letters, mended, raw
from trip.generator import publish, trips
from trip.poison import POISON, FragileTrip, before_poison, but_poison, poisoned

import strandline as sl
from strandline.errors import ApplyFailed, UndecodableEvent, UnknownEventType
from strandline.projections.failure_policy import CONTINUOUS, REBUILDING, category_of
from strandline.projections.handlers import apply
from strandline.projections.multi_stream import MultiStream


async def status_of(connection: Any, shard: str = "trips:v1:all") -> dict[str, Any]:
    """What is told of a shard; empty before anything is."""
    row = await connection.fetchrow("SELECT * FROM strandline.shard_status WHERE name = $1", shard)
    return dict(row or {})


# ---- policies


def test_a_running_projection_parks_and_one_that_is_rebuilt_stops() -> None:
    """Others skip while running, and lose the order of the stream with it."""
    apply_failed = ApplyFailed("trips:v1", "boom", position=1)
    undecodable = UndecodableEvent("arrival", "not an int")
    for error in (apply_failed, undecodable):
        assert CONTINUOUS.action(error) == "park"
        assert REBUILDING.action(error) == "pause"
    assert CONTINUOUS.unknown_type == "ignore"
    assert category_of(ConnectionResetError()) == "database"
    assert category_of(RuntimeError()) == "other", "nobody's event: it is never put aside"


async def test_an_exception_of_ones_own_may_have_an_action_of_its_own(database_url: str) -> None:
    """Skipped are wrong days; whatever else fails stops the projection."""
    policy = sl.ErrorPolicy(apply="pause", exceptions={LookupError: "skip"})
    fails: dict[str, Exception] = {"skipped": KeyError("a day"), "stopped": ValueError("a day")}
    app = trip_app(database_url, models={}, **QUICK)

    @app.projection("picky", on_error=policy)
    class Picky(Trip):
        @apply
        def departed(self, trip: TripState, event: Departure) -> None:
            if event.state in fails:
                raise fails[event.state]
            trip.state = event.state

    async with app, connected(database_url) as look:
        await app.append("a", [TripStarted(1), Departure(1, "skipped"), Departure(2, "Ohio")])
        await app.catch_up()
        assert await documents(app, Picky) == {"a": TripState(1, "Ohio")}
        await app.append("a", Departure(3, "stopped"))
        with pytest.raises(ApplyFailed, match="ValueError"):
            await app.catch_up(timeout=10)

        assert [(one["version"], one["status"]) for one in await letters(look)] == [(2, "skipped")]
        del fails["stopped"]
        await app.catch_up()
        assert await documents(app, Picky) == {"a": TripState(1, "stopped")}


# ---- each category


@pytest.mark.parametrize("action", ["skip", "park"])
async def test_an_event_at_which_the_projections_code_raises_is_put_aside(
    database_url: str, action: str
) -> None:
    journeys = poisoned(trips(15, seed=51), ["trip-3", "trip-7"])
    async with (
        fragile(database_url, on_error=sl.ErrorPolicy(apply=action)) as app,
        connected(database_url) as look,
    ):
        await publish(app, journeys, writers=4)

        await app.catch_up()

        events = await log_of(app)
        left = but_poison(events) if action == "skip" else before_poison(events)
        await assert_documents(app, "trips", events=left)
        failed = [one for one in await letters(look) if one["category"]]
        assert {one["stream"] for one in failed} == {"trip-3", "trip-7"}
        assert {one["category"] for one in failed} == {"apply"}


@pytest.mark.parametrize("action", ["skip", "park"])
async def test_an_event_whose_json_does_not_fit_its_class_is_put_aside(
    database_url: str, action: str
) -> None:
    app = trip_app(
        database_url,
        models={"trips": Trip},
        declared={"on_error": sl.ErrorPolicy(undecodable=action)},
        **QUICK,
    )
    async with app, connected(database_url) as look:
        await app.append("a", [TripStarted(1), Arrival(1, "Ohio")])
        bad = await raw(look, "a", "arrival", '{"day": "Monday", "state": 7}')
        await app.append("a", Arrival(2, "Utah"))
        await app.append("b", TripStarted(4))

        await app.catch_up()

        state = "Utah" if action == "skip" else "Ohio"
        assert await documents(app, "trips") == {"a": TripState(1, state), "b": TripState(4)}
        first = (await letters(look))[0]
        assert (first["position"], first["category"], first["key"]) == (bad, "undecodable", "a")
        assert len(await letters(look)) == (1 if action == "skip" else 2)


async def test_an_undecodable_event_of_many_keys_blocks_none_since_its_key_cannot_be_told(
    database_url: str,
) -> None:
    async with (
        trip_app(database_url, models={"days": Day}, **QUICK) as app,
        connected(database_url) as look,
    ):
        await app.append("a", TripStarted(1))
        bad = await raw(look, "a", "trip-started", '{"day": "Monday"}')
        await app.append("a", TripStarted(1))

        await app.catch_up()

        assert (await documents(app, "days"))["1"].started == 2
        (one,) = await letters(look)
        assert (one["position"], one["key"], one["category"]) == (bad, "", "undecodable")


@pytest.mark.parametrize("action", ["ignore", "skip", "park", "pause"])
async def test_an_event_of_a_type_that_no_class_is_registered_for_is_ignored_or_put_aside(
    database_url: str, action: str
) -> None:
    app = trip_app(
        database_url,
        models={"trips": Trip},
        declared={"on_error": sl.ErrorPolicy(unknown_type=action)},
        **QUICK,
    )
    async with app, connected(database_url) as look:
        await app.append("a", [TripStarted(1), Arrival(1, "Ohio")])
        alien = await raw(look, "a", "alien", "{}")
        await app.append("a", Arrival(2, "Utah"))

        if action == "pause":
            with pytest.raises(UnknownEventType):
                await app.catch_up(timeout=10)
            assert await letters(look) == []
            return
        await app.catch_up()

        state = "Ohio" if action == "park" else "Utah"
        assert await documents(app, "trips") == {"a": TripState(1, state)}
        found = [(one["position"], one["category"]) for one in await letters(look)]
        assert (
            found
            == {
                "ignore": [],
                "skip": [(alien, "unknown_type")],
                "park": [(alien, "unknown_type"), (alien + 1, None)],
            }[action]
        )


# ---- what is told


async def test_a_shard_that_pauses_says_what_failed_and_a_recovered_one_does_not(
    database_url: str,
) -> None:
    async with (
        fragile(database_url, on_error=sl.ErrorPolicy(apply="pause")) as app,
        connected(database_url) as look,
    ):
        paused = asyncio.create_task(app.signals.wait_for("shard_paused", timeout=15))
        await app.append("a", [TripStarted(1), POISON])
        await app.start()
        told = await paused
        assert (told.facts["category"], told.facts["phase"]) == ("apply", "apply")
        row = await holds(lambda: paused_row(look))
        assert (row["category"], row["phase"]) == ("apply", "apply")
        failure = json.loads(row["failure"])
        assert (failure["position"], failure["stream"], failure["version"]) == (2, "a", 2)
        assert failure["type"] == "failing"
        (progress,) = await app.progress()
        assert progress.state == "paused" and progress.category == "apply"

        async with mended():
            await app.catch_up()
            row = await holds(lambda: recovered_row(look))
            assert (row["category"], row["failure"], row["pauses"]) == (None, None, 0)
            await assert_documents(app, "trips")


async def paused_row(look: Any) -> dict[str, Any] | None:
    row = await status_of(look)
    return row if row.get("state") == "paused" else None


async def recovered_row(look: Any) -> dict[str, Any] | None:
    row = await status_of(look)
    return row if row.get("state") == "running" and row["failure"] is None else None


async def test_catching_up_ends_with_the_failure_of_what_pauses(database_url: str) -> None:
    async with fragile(database_url, on_error=sl.ErrorPolicy(apply="pause")) as app:
        await app.append("a", [TripStarted(1), POISON])
        with pytest.raises(ApplyFailed, match="PoisonedError"):
            await app.catch_up(timeout=15)


async def test_shards_that_go_on_are_not_held_up_by_one_that_pauses(database_url: str) -> None:
    app = trip_app(
        database_url,
        models={"trips": FragileTrip, "days": Day},
        declared={"on_error": sl.ErrorPolicy(apply="pause")},
        **QUICK,
    )
    async with app:
        await app.start()
        await publish(app, poisoned(trips(10, seed=56), ["trip-4"]))
        last = await app.highest_position()
        await app.wait_for(last, Day, timeout=20)

        await assert_documents(app, "days")


async def test_two_slices_that_fail_at_once_with_errors_of_others_rest_between_their_tries(
    database_url: str,
) -> None:
    """Not one after the other without a pause, for ever."""
    app = trip_app(database_url, models={}, failure_pause=30.0, poll_interval=0.05)

    @app.projection("both", shards=2, on_error=sl.ErrorPolicy(apply="pause"))
    class Both(MultiStream[PlaceState]):
        from strandline.projections.handlers import key as _key

        @_key
        def of(self, event: Arrival) -> str:
            return event.state

        @apply
        def visited(self, place: PlaceState, event: Arrival) -> None:
            raise ExceptionGroup("of others", [ValueError("a"), OSError("b")])

    tries: list[tuple[float, str]] = []
    begun = time.monotonic()

    def hear(notice: Any) -> None:
        if notice.name == "batch_failed":
            tries.append((time.monotonic() - begun, notice.facts["shard"]))

    async with app:
        app.signals.listen(hear)
        for number in range(20):
            await app.append("a", Arrival(1, f"place {number}"))
        paused: set[str] = set()
        app.signals.listen(
            lambda one: paused.add(one.facts["shard"]) if one.name == "shard_paused" else None
        )
        await app.start()
        await holds(lambda: len(paused) == 2, timeout=20)
        with contextlib.suppress(TimeoutError):
            await app.signals.wait_for("batch_failed", timeout=0.5)

        shards = [shard for _, shard in tries]
        assert len(shards) == 8 and all(shards.count(one) == 4 for one in set(shards))
