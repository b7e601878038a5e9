"""Each kind of read model on the Trip domain: complete state against the oracle, absence included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from tally import committed, connected, end_backends
from trip import domain
from trip.checks import assert_documents, documents, log_of
from trip.domain import MODELS, Day, PlaceState, Trip, TripState, trip_app
from trip.generator import publish, trips
from trip.oracle import expected_documents
from trip.tables import TABLES, Tour, expected_routes, expected_tours, routes, tours

import strandline as sl
from strandline.app import App, Transaction
from strandline.errors import ApplyFailed, InvalidDefinition
from strandline.events.event import RecordedEvent
from strandline.projections.handlers import apply, create, key
from strandline.projections.multi_stream import MultiStream
from strandline.projections.single_stream import SingleStream
from strandline.projections.subscription import EventBatch


async def test_the_same_rules_make_the_same_documents_live_inline_and_asynchronously(
    database_url: str,
) -> None:
    app = trip_app(database_url, models={"trips": Trip})
    twins = {way: type(f"{way.title()}Trip", (Trip,), {}) for way in ("inline", "live")}
    for way, cls in twins.items():
        app.projection(f"{way}_trips", lifecycle=way)(cls)
    async with app:
        journeys = trips(25, seed=11)
        await publish(app, journeys, writers=4)
        inline = await documents(app, "inline_trips")
        await app.catch_up()

        expected = expected_documents(await log_of(app))["trips"]
        assert await documents(app, "trips") == expected
        assert inline == expected, "inline ones were there without any node"
        live = {stream: await app.live("live_trips", stream) for stream in journeys}
        assert {stream: one for stream, one in live.items() if one is not None} == expected
        assert 0 < len(expected) < len(journeys), "some journeys have ended without a trace"


async def test_a_document_is_created_changed_in_place_or_replaced_and_deleted(
    database_url: str,
) -> None:
    """Create, apply, delete by event, by event and state, and by state alone."""
    start, far = domain.TripStarted(3), domain.Travel(3, [domain.Movement("north", 1001.0)])
    histories: dict[str, list[Any]] = {
        "begun": [start],
        "moved": [start, far, domain.Arrival(4, "Ohio")],
        "ended": [start, domain.TripEnded(5, "Iowa")],
        "aborted": [start, domain.TripAborted()],
        "critical": [start, domain.Breakdown(is_critical=True)],
        "harmless": [start, domain.Breakdown(is_critical=False)],
        "too far": [start, far, domain.VacationOver()],
        "near": [start, domain.VacationOver()],
        "limbo": [start, domain.Arrival(4, "Limbo")],
        "begun again": [start, domain.TripAborted(), domain.TripStarted(9)],
        "never begun": [far, domain.Arrival(4, "Ohio")],
    }
    async with trip_app(database_url, models={"trips": Trip}) as app:
        for stream, events in histories.items():
            await app.append(stream, events)

        await app.catch_up()

        assert await documents(app, "trips") == {
            "begun": TripState(3),
            "moved": TripState(3, "Ohio", 1001.0),
            "ended": TripState(3, "Iowa", active=False, ended_on=5),
            "harmless": TripState(3),
            "near": TripState(3),
            "begun again": TripState(9),
        }


async def test_a_document_knows_version_and_position_of_its_last_event(database_url: str) -> None:
    async with (
        trip_app(database_url, models={"trips": Trip}) as app,
        connected(database_url) as look,
    ):
        await publish(app, trips(10, seed=12))
        await app.catch_up()

        stored = await look.fetch("SELECT id, version, position FROM strandline.doc_trips_v1")
        for row in stored:
            state = await app.stream_state(row["id"])
            assert state is not None and row["version"] <= state.version
            event = (await app.read_stream(row["id"], from_version=row["version"], limit=1))[0]
            assert event.position == row["position"]
        assert len(stored) == await app.count(Trip)


async def test_documents_of_many_streams_are_made_by_keys_and_parts_and_are_bounded_by_tenants(
    database_url: str,
) -> None:
    async with trip_app(database_url, models={"days": Day, "places": domain.Place}) as app:
        for seed, tenant in ((13, "north"), (14, "south")):
            await publish(app, trips(12, seed=seed), tenant=tenant, writers=3)

        await app.catch_up()

        for tenant in ("north", "south", "default"):
            await assert_documents(app, "days", "places", tenant=tenant)
        assert await documents(app, "days", "north") != await documents(app, "days", "south")


async def test_a_key_made_of_a_name_and_a_bucket_of_time_gathers_by_both(
    database_url: str,
) -> None:
    app = trip_app(database_url, models={})

    @app.projection("weeks")
    class Weeks(MultiStream[PlaceState]):
        @key
        def of(self, event: domain.Arrival) -> str:
            return f"{event.state}/week-{event.day // 7}"

        @apply
        def visited(self, place: PlaceState, event: RecordedEvent[domain.Arrival]) -> None:
            place.visits += 1
            place.last = event.stream

    async with app:
        await publish(app, trips(15, seed=15))
        await app.catch_up()

        expected: dict[str, PlaceState] = {}
        for stream, _, event in await log_of(app):
            if isinstance(event, domain.Arrival):
                place = expected.setdefault(f"{event.state}/week-{event.day // 7}", PlaceState())
                place.visits, place.last = place.visits + 1, stream
        assert await documents(app, Weeks) == expected


async def test_what_a_batch_itself_has_made_is_seen_by_the_events_after_it(
    database_url: str,
) -> None:
    """The group of a page is made before it is folded; a key that needs the document would miss it.

    So a key is a function of the event alone, and whatever depends on the state is an apply.
    """

    @dataclass
    class Seat:
        holder: str = ""
        refused: int = 0

    app = trip_app(database_url, models={})

    @app.projection("seats")
    class Seats(MultiStream[Seat]):
        @key
        def of(self, event: domain.Arrival) -> str:
            return event.state

        @apply
        def taken(self, seat: Seat, event: RecordedEvent[domain.Arrival]) -> None:
            if seat.holder:
                seat.refused += 1
            seat.holder = seat.holder or event.stream

    async with app:
        await app.append("first", [domain.Arrival(1, "Ohio")])
        await app.append("second", [domain.Arrival(1, "Ohio"), domain.Arrival(1, "Ohio")])
        await app.catch_up()

        assert await documents(app, Seats) == {"Ohio": Seat("first", 2)}
        with pytest.raises(InvalidDefinition):

            @app.projection("peeking")
            class Peeking(MultiStream[Seat]):
                @key
                def of(self, seat: Seat, event: domain.Arrival) -> str:
                    return seat.holder

                @apply
                def taken(self, seat: Seat, event: domain.Arrival) -> None: ...


async def test_statements_per_event_write_tables_of_the_users_own_exactly_once(
    database_url: str,
) -> None:
    """The event projection: the key of the table breaks at a second time."""
    app = trip_app(database_url, models={"routes": TABLES["routes"]}, page_events=20)
    async with app, connected(database_url) as operator:
        await publish(app, trips(25, seed=16), writers=4)
        batches = committed(app, "routes")
        await app.start()
        for number in range(1, 4):
            await batches(number)
            await end_backends(operator, "strandline work")
        await app.catch_up()

        assert await routes(app) == expected_routes(await log_of(app))


async def test_a_flat_table_holds_what_its_rules_say_row_by_row(database_url: str) -> None:
    async with trip_app(database_url, models={"tours": Tour}, table_page_events=50) as app:
        for seed, tenant in ((17, "default"), (18, "other")):
            await publish(app, trips(25, seed=seed), tenant=tenant, writers=4)

        await app.catch_up()

        for tenant in ("default", "other"):
            expected = expected_tours(await log_of(app, tenant))
            assert await tours(app, tenant) == expected
            assert 0 < len(expected) <= 25


async def test_a_function_over_batches_does_anything_in_one_transaction_with_its_checkpoint(
    database_url: str,
) -> None:
    """The custom projection, and what an object-relational mapper would be used for."""
    app = trip_app(database_url, models={}, page_events=20)

    @app.subscription("visits", types=[domain.Arrival])
    async def visits(batch: EventBatch, tx: Transaction) -> None:
        events = batch.of(domain.Arrival)
        await tx.execute(
            """INSERT INTO visits SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[])""",
            [one.stream for one in events],
            [one.version for one in events],
            [one.data.state for one in events],
        )

    async with app, connected(database_url) as operator:
        await operator.execute(
            "CREATE TABLE visits (stream text, version bigint, state text,"
            " PRIMARY KEY (stream, version))"
        )
        await publish(app, trips(25, seed=19), writers=4)
        batches = committed(app, "visits")
        await app.start()
        await batches(1)
        await end_backends(operator, "strandline work")
        await app.catch_up()

        found = {tuple(row) for row in await operator.fetch("SELECT * FROM visits")}
        log = await log_of(app)
        assert found == {
            (stream, version, event.state)
            for stream, version, event in log
            if isinstance(event, domain.Arrival)
        }


async def test_a_projection_cut_into_shards_holds_what_one_shard_would(database_url: str) -> None:
    """Of one kind each; every shard has a checkpoint of its own."""
    models = {**MODELS, **TABLES}
    async with trip_app(database_url, models=models, declared={"shards": 4}) as app:
        await publish(app, trips(25, seed=20), writers=4)

        await app.catch_up()

        await assert_documents(app)
        log = await log_of(app)
        assert await tours(app) == expected_tours(log)
        assert await routes(app) == expected_routes(log)
        shards = {one.name for one in await app.progress()}
        assert {f"trips:v1:{part}/4" for part in (1, 2, 3, 4)} <= shards
        assert len(shards) == 4 * len(models)


async def test_the_cache_of_documents_never_makes_an_event_count_twice(database_url: str) -> None:
    """A batch is committed, cut off or fails at its commit; the cache builds on none of the lost."""
    app = trip_app(database_url, page_events=10, cached_documents=20_000, failure_pause=0.05)
    async with app, connected(database_url) as operator:
        await publish(app, trips(40, seed=21), writers=4)
        batches = committed(app)
        await app.start()
        for number in range(1, 8):
            await batches(3 * number)
            await end_backends(operator, "strandline work")
        await app.catch_up()

        await assert_documents(app)


async def test_a_document_that_fails_later_in_a_batch_leaves_no_half_changed_one_in_the_cache(
    database_url: str,
) -> None:
    """The state is changed in place before the event after it fails: what is kept must be dropped."""
    fails = True

    @dataclass
    class Count:
        events: int = 0

    app = trip_app(database_url, models={}, failure_pause=0.05)

    @app.projection("counts", on_error=sl.ErrorPolicy(apply="pause"))
    class Counts(SingleStream[Count]):
        @create
        def started(self, event: domain.TripStarted) -> Count:
            return Count(1)

        @apply
        def arrived(self, one: Count, event: domain.Arrival) -> None:
            one.events += 1
            if fails and event.state == "Nowhere":
                raise ConnectionResetError("looked up elsewhere")

    async with app:
        await app.start()  # one agent, with one cache, for all of it
        await app.append("a", [domain.TripStarted(1), domain.Arrival(1, "Ohio")])
        await app.catch_up()
        await app.append_many(
            [
                ("a", [domain.Arrival(2, "Ohio"), domain.Arrival(3, "Ohio")]),
                ("b", [domain.TripStarted(1), domain.Arrival(3, "Nowhere")]),
            ]
        )
        with pytest.raises(ApplyFailed):
            await app.catch_up(timeout=15)
        fails = False
        await app.catch_up()

        assert await documents(app, Counts) == {"a": Count(4), "b": Count(2)}


async def test_two_apps_in_two_schemas_of_one_database_never_meet(database_url: str) -> None:
    """What others call ancillary stores."""
    first = trip_app(database_url, models={"trips": Trip}, schema="east")
    second = trip_app(database_url, models={"trips": Trip}, schema="west")
    async with first, second:
        await publish(first, trips(8, seed=22))
        await publish(second, trips(8, seed=23))

        await first.catch_up()
        await second.catch_up()

        for app in (first, second):
            await assert_documents(app, "trips")
        assert await documents(first, "trips") != await documents(second, "trips")
        assert await labels(first) == ["trips:v1:all"]


async def labels(app: App) -> list[str]:
    return [one.name for one in await app.progress()]
