"""Dead letters on the Trip domain: written with the checkpoint, in order, replayed, given up, mended."""

from __future__ import annotations

from typing import Any

import pytest
from tally import committed, connected, end_backends, holds
from trip.checks import assert_documents, documents, log_of
from trip.domain import (
    Arrival,
    Day,
    Departure,
    Place,
    PlaceState,
    Trip,
    TripStarted,
    TripState,
    trip_app,
)
from trip.fragile import QUICK, fragile, letters, mended, none_open, raw
from trip.generator import publish, trips
from trip.poison import POISON, before_poison, behind_poison, but_poison, poisoned
from trip.tables import Route

import strandline as sl
from strandline.app import Transaction
from strandline.events.event import RecordedEvent
from strandline.projections.handlers import apply
from strandline.projections.subscription import EventBatch


async def test_a_dead_letter_tells_which_event_of_which_projection_failed_and_why(
    database_url: str,
) -> None:
    async with fragile(database_url) as app:
        await publish(app, poisoned(trips(5, seed=52), ["trip-2"]))
        await app.catch_up()

        found = await app.letters.list()
        failed = [one for one in found if one.category == "apply"]
        (event,) = [one for one in await app.read_stream("trip-2") if one.data == POISON]
        (letter,) = failed
        assert (letter.label, letter.stream, letter.tenant) == ("trips:v1", "trip-2", "default")
        assert (letter.position, letter.version) == (event.position, event.version)
        assert letter.type == "failing"
        assert letter.status == "parked"
        assert "PoisonedError" in str(letter.error)
        assert all(one.stream == "trip-2" and one.category is None for one in found[1:])
        (group,) = await app.letters.groups()
        assert (group.label, group.count) == ("trips:v1", 1)


async def test_letters_and_checkpoint_are_one_whatever_is_killed_in_between(
    database_url: str,
) -> None:
    """Backends are ended over and over: never a letter without its checkpoint, and none twice."""
    chosen = [f"trip-{number}" for number in range(1, 31, 3)]
    async with (
        fragile(database_url, page_events=25, failure_pause=0.05) as app,
        connected(database_url) as look,
    ):
        await publish(app, poisoned(trips(30, seed=53), chosen), writers=4)
        batches = committed(app, "trips")
        await app.start()
        for number in range(1, 8):
            await batches(2 * number)
            await end_backends(look, "strandline work")
        await app.catch_up()

        events = await log_of(app)
        await assert_documents(app, "trips", events=before_poison(events))
        aside = [(one["stream"], one["version"]) for one in await letters(look)]
        assert aside == behind_poison(events), "each once, and nothing is lost"


async def test_a_letter_that_cannot_be_written_fails_its_batch_loudly(database_url: str) -> None:
    """Nothing passes the event before its letter is there."""
    async with fragile(database_url) as app, connected(database_url) as look:
        await look.execute(
            """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
               $$ BEGIN RAISE EXCEPTION 'no letters today'; END $$;
               CREATE TRIGGER refuse BEFORE INSERT ON strandline.dead_letters
               FOR EACH ROW EXECUTE FUNCTION refuse()"""
        )
        await app.append("a", [TripStarted(1), POISON, Arrival(1, "Ohio")])
        with pytest.raises(Exception, match="no letters today"):
            await app.catch_up(timeout=15)
        position = await look.fetchval("SELECT position FROM strandline.shards")
        assert position < 2, "the poison event was not passed"

        await look.execute("DROP TRIGGER refuse ON strandline.dead_letters")
        await app.catch_up()

        assert await documents(app, "trips") == {"a": TripState(1)}
        assert [one["position"] for one in await letters(look)] == [2, 3]


async def test_replay_after_the_fix_makes_what_a_clean_fold_makes(database_url: str) -> None:
    chosen = [f"trip-{number}" for number in range(1, 20, 4)]
    async with fragile(database_url) as app, connected(database_url) as look:
        await publish(app, poisoned(trips(20, seed=54), chosen), writers=4)
        await app.catch_up()
        async with mended():
            await app.start()
            await publish(app, {f"trip-{n}": [Arrival(9, "Maine")] for n in (1, 2)})
            await app.letters.retry(all=True)
            await holds(lambda: none_open(app))
            await app.catch_up()

            await assert_documents(app, "trips")
            found = await letters(look)
            assert {one["status"] for one in found} == {"resolved"}


async def test_a_skipped_event_takes_its_place_when_its_letter_is_tried_again(
    database_url: str,
) -> None:
    """Later events have gone on without it, so its document is built again from its first event."""
    async with fragile(database_url, on_error=sl.ErrorPolicy(apply="skip")) as app:
        await publish(app, poisoned(trips(8, seed=58), ["trip-3"], at=3))
        await app.catch_up()
        await assert_documents(app, "trips", events=but_poison(await log_of(app)))
        (letter,) = await app.letters.list(status=["skipped"])
        async with mended():
            await app.start()
            await app.letters.retry([letter.id])
            await holds(lambda: none_open(app), timeout=20)

            await assert_documents(app, "trips")


async def test_a_letter_that_fails_again_counts_its_attempts_and_stays_the_only_one(
    database_url: str,
) -> None:
    async with fragile(database_url) as app, connected(database_url) as look:
        await app.append("a", [TripStarted(1), POISON, Arrival(1, "Ohio")])
        await app.catch_up()
        before = (await letters(look))[0]["attempts"]
        await app.start()
        await app.letters.retry(stream="a")
        await holds(lambda: attempts_beyond(look, before))

        assert [one["position"] for one in await letters(look)] == [2, 3]
        assert await documents(app, "trips") == {"a": TripState(1)}


async def attempts_beyond(look: Any, number: int) -> bool:
    found = await look.fetchval("SELECT max(attempts) FROM strandline.dead_letters")
    waiting = await look.fetchval(
        "SELECT count(*) FROM strandline.dead_letters WHERE retry_at IS NOT NULL"
    )
    return bool(found > number and not waiting)


async def test_a_letter_may_be_given_up_and_what_waited_behind_it_goes_on(
    database_url: str,
) -> None:
    async with fragile(database_url) as app:
        await app.append("a", [TripStarted(1), POISON, Arrival(1, "Ohio")])
        await app.catch_up()
        (letter,) = [one for one in await app.letters.list() if one.category]
        await app.start()
        await app.letters.discard([letter.id], reason="a test event")
        await holds(lambda: none_open(app))
        await app.catch_up()

        assert await documents(app, "trips") == {"a": TripState(1, "Ohio")}


async def test_the_data_of_a_letter_may_be_mended_for_its_projection_alone(
    database_url: str,
) -> None:
    async with (
        trip_app(database_url, models={"trips": Trip, "days": Day}, **QUICK) as app,
        connected(database_url) as look,
    ):
        await app.append("a", TripStarted(1))
        bad = await raw(look, "a", "arrival", '{"day": "Monday", "state": "Iowa"}')
        await app.append("a", Arrival(2, "Utah"))
        await app.catch_up()
        (letter,) = [one for one in await app.letters.list(projection="trips") if one.category]
        assert letter.position == bad
        await app.start()
        await app.letters.edit(letter.id, {"day": 1, "state": "Iowa"}, reason="a typing error")
        await app.letters.retry([letter.id])
        await holds(lambda: none_open(app))

        assert await documents(app, "trips") == {"a": TripState(1, "Utah")}
        stored = await look.fetchval(
            "SELECT data->>'day' FROM strandline.events WHERE position = $1", bad
        )
        assert stored == "Monday", "what is recorded stays as it is"


async def test_an_event_that_fails_for_one_of_its_documents_is_applied_to_the_others(
    database_url: str,
) -> None:
    app = trip_app(database_url, models={}, **QUICK)

    @app.projection("places")
    class FragilePlace(Place):
        @apply
        def visited(
            self, place: PlaceState, event: RecordedEvent[Arrival | Departure]
        ) -> PlaceState:
            if event.data.state == "Nowhere" and place.visits == 0:
                raise LookupError("no such place")
            return PlaceState(place.visits + 1, event.stream)

    async with app, connected(database_url) as look:
        await app.append("a", [Arrival(1, "Ohio"), Arrival(1, "Nowhere"), Arrival(2, "Nowhere")])
        await app.append("b", [Arrival(1, "Ohio")])
        await app.catch_up()

        assert await documents(app, FragilePlace) == {
            "Ohio": PlaceState(2, "b"),
            "anywhere": PlaceState(4, "b"),
        }
        found = [(one["key"], one["position"], one["category"]) for one in await letters(look)]
        assert found == [("Nowhere", 2, "apply"), ("Nowhere", 3, None)]


async def test_a_statement_that_fails_for_one_stream_parks_that_stream(database_url: str) -> None:
    """The event projection: the server refuses a row."""
    app = trip_app(database_url, models={"routes": Route}, **QUICK)
    async with app, connected(database_url) as look:
        journeys = trips(6, seed=55)
        await publish(app, journeys)
        await app.catch_up()
        taken = await look.fetchval("SELECT max(position) FROM strandline.events")
        (version,) = await look.fetchrow(
            "SELECT version FROM strandline.streams WHERE id = 'trip-1'"
        )
        await look.execute("INSERT INTO routes VALUES ('default', 'trip-1', $1, 0, 0)", version + 1)
        travel = next(one for one in journeys["trip-1"] if type(one).__name__ == "Travel")
        await app.append("trip-1", [travel, travel])
        await app.append("trip-2", travel)
        await app.catch_up()

        found = await letters(look)
        assert [(one["stream"], one["position"], one["category"]) for one in found] == [
            ("trip-1", taken + 1, "apply"),
            ("trip-1", taken + 2, None),
        ]
        newest = await look.fetchval("SELECT count(*) FROM routes WHERE stream = 'trip-2'")
        assert newest == sum(type(one).__name__ == "Travel" for one in journeys["trip-2"]) + 1


@pytest.mark.parametrize("takes_transaction", [True, False], ids=["tx", "alone"])
async def test_a_subscription_that_raises_parks_the_stream_and_goes_on_with_the_others(
    database_url: str, takes_transaction: bool
) -> None:
    """Others pause a subscription for good, whatever is said about skipping."""
    app = trip_app(database_url, models={}, **QUICK)
    told: list[tuple[str, int]] = []
    fails = True

    def handle(batch: EventBatch) -> None:
        if fails and any(one.data == POISON for one in batch):
            raise ValueError("poison")
        told.extend((one.stream, one.version) for one in batch)

    if takes_transaction:

        @app.subscription("teller", on_error=sl.ErrorPolicy(apply="park"))
        async def with_tx(batch: EventBatch, tx: Transaction) -> None:
            handle(batch)

    else:

        @app.subscription("teller", on_error=sl.ErrorPolicy(apply="park"))
        async def alone(batch: EventBatch) -> None:
            handle(batch)

    async with app, connected(database_url) as look:
        await app.append("a", [TripStarted(1), POISON, Arrival(1, "Ohio")])
        await app.append("b", [TripStarted(1), Arrival(1, "Ohio")])
        await app.catch_up(timeout=30)
        assert set(told) == {("a", 1), ("b", 1), ("b", 2)}
        assert [one["position"] for one in await letters(look)] == [2, 3]

        fails = False
        await app.start()
        await app.letters.retry(all=True)
        await holds(lambda: none_open(app))
        firsts = list(dict.fromkeys(one for one in told if one[0] == "a"))
        assert firsts == [("a", 1), ("a", 2), ("a", 3)]


async def test_letters_of_a_new_version_are_its_own(database_url: str) -> None:
    async with fragile(database_url) as app:
        await app.append("a", [TripStarted(1), POISON])
        await app.catch_up()
    fixed = trip_app(database_url, models={"trips": Trip}, declared={"version": 2}, **QUICK)
    async with fixed as app:
        await app.catch_up()

        assert [one.label for one in await app.letters.list()] == ["trips:v1"]
        assert await documents(app, "trips") == {"a": TripState(1)}
