"""Rebuilds in the shadow of what serves: complete state against the oracle, before, while and after."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from tally import connected, holds
from trip.checks import assert_documents, documents, log_of
from trip.domain import MODELS, Arrival, Day, Trip, TripStarted, TripState, trip_app
from trip.generator import publish, trips
from trip.oracle import expected_documents
from trip.poison import POISON, FragileTrip, before_poison, poisoned
from trip.tables import TABLES, Route, Tour, expected_routes, expected_tours, routes, tours

from strandline.errors import ApplyFailed, InvalidDefinition

QUICK: dict[str, Any] = {
    "failure_pause": 0.2,
    "poll_interval": 0.05,
    "pulse_interval": 0.1,
    "node_ttl": 2.0,
    "leader_ttl": 1.6,
    "leader_margin": 0.4,
}


async def tamper(connection: Any, table: str, *, spare: str = "") -> None:
    """Make a read model wrong: one document is missing, one differs, one is too many."""
    ids = await connection.fetch(
        f"SELECT id FROM strandline.{table} WHERE id <> $1 ORDER BY id LIMIT 3", spare
    )
    missing, differing, _ = (row["id"] for row in ids)
    await connection.execute(f"DELETE FROM strandline.{table} WHERE id = $1", missing)
    await connection.execute(
        f"UPDATE strandline.{table} SET data = jsonb_set(data::jsonb, '{{started_on}}', '777')"
        " WHERE id = $1",
        differing,
    )
    await connection.execute(
        f"""INSERT INTO strandline.{table} SELECT tenant, 'stray', data, version, position
              FROM strandline.{table} WHERE id = $1""",
        differing,
    )


async def leftovers(connection: Any) -> list[str]:
    """What builds have left behind: schemas, shards, cuts, work."""
    found = await connection.fetch(
        """SELECT nspname::text FROM pg_namespace WHERE nspname LIKE '%~%'
           UNION ALL SELECT name FROM strandline.shards WHERE name LIKE '%~%'
           UNION ALL SELECT label FROM strandline.slicings WHERE label LIKE '%~%'
           UNION ALL SELECT name FROM strandline.work WHERE name LIKE '%~%'"""
    )
    return [row[0] for row in found]


async def test_a_rebuild_removes_what_is_wrong_and_changes_nothing_else(database_url: str) -> None:
    async with trip_app(database_url, **QUICK) as app, connected(database_url) as look:
        await publish(app, trips(20, seed=61), writers=4)
        await app.catch_up()
        await tamper(look, "doc_trips_v1")
        others = {name: await documents(app, name) for name in MODELS if name != "trips"}

        await app.rebuild(Trip, timeout=60)

        await assert_documents(app)
        assert {name: await documents(app, name) for name in others} == others
        assert await leftovers(look) == []


async def test_readers_see_the_old_model_or_the_new_one_and_never_an_empty_or_mixed_one(
    database_url: str,
) -> None:
    app = trip_app(database_url, models={"trips": Trip}, **QUICK)
    async with app, connected(database_url) as look:
        await publish(app, trips(40, seed=62), writers=4)
        await app.catch_up()
        await tamper(look, "doc_trips_v1")
        old = await documents(app, "trips")
        new = expected_documents(await log_of(app))["trips"]
        rebuilding = asyncio.create_task(app.rebuild(Trip, timeout=60))
        seen: list[bool] = []
        while not rebuilding.done():
            found = await documents(app, "trips")
            assert found in (old, new)
            seen.append(found == new)
        await rebuilding

        assert seen == sorted(seen), "and once it is the new one it stays so"
        assert len(seen) > 3 and not seen[0]
        await assert_documents(app, "trips")


async def test_what_happens_while_a_projection_is_rebuilt_is_in_it_as_well(
    database_url: str,
) -> None:
    async with trip_app(database_url, page_events=50, **QUICK) as app:
        await publish(app, trips(20, seed=63), writers=4)
        await app.start()
        rebuilding = asyncio.create_task(app.rebuild("trips", timeout=60))
        await publish(app, {f"late {k}": v for k, v in trips(20, seed=64).items()}, writers=4)
        await rebuilding
        await app.append("afterwards", TripStarted(1))
        await app.catch_up()

        await assert_documents(app)


async def test_rebuilding_twice_by_class_and_by_name_is_the_same(database_url: str) -> None:
    async with trip_app(database_url, models={"trips": Trip}, **QUICK) as app:
        await publish(app, trips(10, seed=65))
        await app.catch_up()

        for reference in (Trip, "trips", "trips:v1"):
            await app.rebuild(reference, timeout=60)
            await assert_documents(app, "trips")


async def test_a_projection_without_events_is_rebuilt_without_an_error(database_url: str) -> None:
    async with trip_app(database_url, models={"trips": Trip}, **QUICK) as app:
        await app.rebuild(Trip, timeout=30)
        assert await documents(app, "trips") == {}
        await app.append("a", TripStarted(1))
        await app.catch_up()

        await assert_documents(app, "trips")


async def test_gaps_from_the_first_position_on_are_no_obstacle(database_url: str) -> None:
    async with trip_app(database_url, models={"trips": Trip}, **QUICK) as app:
        for number in range(3):
            with contextlib.suppress(LookupError):
                async with app.transaction() as tx:
                    await tx.append(f"gone-{number}", TripStarted(1))
                    raise LookupError
            await app.append(f"trip-{number}", TripStarted(number))
        assert await app.highest_position() == 6
        await app.rebuild(Trip, timeout=30)  # it has never run, and has everything now

        await assert_documents(app, "trips")


async def test_tables_of_both_kinds_are_rebuilt_in_the_shadow_as_well(database_url: str) -> None:
    app = trip_app(database_url, models=TABLES, **QUICK)
    async with app, connected(database_url) as look:
        await publish(app, trips(15, seed=66), writers=4)
        await app.catch_up()
        await look.execute("DELETE FROM routes WHERE stream = 'trip-2'")
        await look.execute("UPDATE strandline.table_tours_v1 SET travels = 99")

        for model in (Tour, Route):
            await app.rebuild(model, timeout=60)
        await app.append("afterwards", TripStarted(1))
        await app.catch_up()

        log = await log_of(app)
        assert await tours(app) == expected_tours(log)
        assert await routes(app) == expected_routes(log)
        assert await leftovers(look) == []


async def test_a_rebuild_is_cut_into_parts_that_nodes_share(database_url: str) -> None:
    """The fast way, for every kind of projection and not for one special case."""
    async with trip_app(database_url, models={"trips": Trip, "days": Day}, **QUICK) as app:
        await publish(app, trips(25, seed=67), writers=4)
        await app.catch_up()

        for model in (Trip, Day):
            await app.rebuild(model, parts=4, timeout=60)

        await assert_documents(app, "trips", "days")
        assert {one.name for one in await app.progress()} == {"trips:v1:all", "days:v1:all"}


async def test_a_rebuild_goes_on_after_a_restart_from_where_it_was(database_url: str) -> None:
    settings = {**QUICK, "page_events": 20, "rebuild_page_events": 20}
    floors: list[int] = []

    def hear(notice: Any) -> None:
        if notice.name == "batch_committed" and "~" in notice.facts["shard"]:
            floors.append(notice.facts["floor"])

    async with trip_app(database_url, models={"trips": Trip}, **settings) as app:
        await publish(app, trips(40, seed=75), writers=4)
        await app.catch_up()
        app.signals.listen(hear)
        await app.start()
        await app.rebuild(Trip, wait=False)
        await holds(lambda: len(floors) >= 3)
    before = floors[-1]
    assert before > 0
    floors.clear()

    async with (
        trip_app(database_url, models={"trips": Trip}, **settings) as app,
        connected(database_url) as look,
    ):
        await tamper(look, "doc_trips_v1")
        app.signals.listen(hear)
        await app.start()
        await holds(lambda: nothing_is_left(look), timeout=30)
        assert floors[0] >= before
        await assert_documents(app, "trips")


async def test_one_stream_or_one_tenant_is_rebuilt_and_nothing_else_is_touched(
    database_url: str,
) -> None:
    app = trip_app(database_url, models={"trips": Trip}, **QUICK)
    async with app, connected(database_url) as look:
        for seed, tenant in ((68, "north"), (69, "south")):
            await publish(app, {f"t{n}": [TripStarted(n)] for n in (1, 2, 3)}, tenant=tenant)
            del seed
        await app.catch_up()
        await look.execute(
            "UPDATE strandline.doc_trips_v1 SET data = jsonb_set(data::jsonb, '{started_on}', '9')"
        )

        await app.rebuild(Trip, tenant="north", streams=["t2"], timeout=60)
        found = {tenant: await documents(app, "trips", tenant) for tenant in ("north", "south")}
        wrong = {f"t{n}": TripState(9) for n in (1, 2, 3)}
        assert found == {"north": wrong | {"t2": TripState(2)}, "south": wrong}

        await app.rebuild(Trip, tenant="south", timeout=60)
        await assert_documents(app, "trips", tenant="south")
        assert await documents(app, "trips", "north") == found["north"]


# ---- errors


async def test_poison_stops_a_rebuild_and_not_what_serves(database_url: str) -> None:
    FragileTrip.is_mended = False
    app = trip_app(database_url, models={"trips": FragileTrip}, **QUICK)
    async with app, connected(database_url) as look:
        await publish(app, poisoned(trips(10, seed=70), ["trip-4"]))
        await app.start()
        await app.catch_up()
        parked = len(await app.letters.list())
        with pytest.raises(ApplyFailed, match="Poisoned"):
            await app.rebuild(FragileTrip, timeout=30)

        (build,) = await app.rebuilds()
        assert build.state == "building" and "Poisoned" in str(build)
        await app.append("afterwards", TripStarted(1))
        await app.wait_for(await app.highest_position(), FragileTrip)
        await assert_documents(app, "trips", events=before_poison(await log_of(app)))
        assert len(await app.letters.list()) == parked

        await app.cancel_rebuild(FragileTrip)
        await holds(lambda: nothing_is_left(look), timeout=30)
        await app.append("at last", TripStarted(1))
        await app.catch_up()
        await assert_documents(app, "trips", events=before_poison(await log_of(app)))


async def nothing_is_left(connection: Any) -> bool:
    return not await leftovers(connection)


async def test_a_rebuild_by_mended_code_leaves_no_letter_open(database_url: str) -> None:
    app = trip_app(database_url, models={"trips": FragileTrip}, **QUICK)
    async with app, connected(database_url) as look:
        await publish(app, poisoned(trips(10, seed=71), ["trip-4", "trip-5"]))
        await app.catch_up()
        assert await app.letters.list()
        FragileTrip.is_mended = True
        try:
            await app.rebuild(FragileTrip, timeout=60)
        finally:
            FragileTrip.is_mended = False

        await assert_documents(app, "trips")
        assert await app.letters.list() == []
        states = await look.fetch("SELECT DISTINCT status FROM strandline.dead_letters")
        assert [row[0] for row in states] == ["superseded"]


async def test_a_rebuild_that_may_park_brings_letters_of_its_own(database_url: str) -> None:
    async with trip_app(database_url, models={"trips": FragileTrip}, **QUICK) as app:
        await app.append("a", [TripStarted(1), POISON, Arrival(1, "Ohio")])
        await app.catch_up()
        before = await app.letters.list()
        await app.rebuild(FragileTrip, on_error="park", timeout=60)

        await assert_documents(app, "trips", events=before_poison(await log_of(app)))
        after = await app.letters.list()
        assert [one.position for one in after] == [one.position for one in before]
        assert {one.label for one in after} == {"trips:v1"}
        assert {one.id for one in after}.isdisjoint(one.id for one in before)


async def test_what_is_wrong_is_found_without_changing_anything_and_mended_on_request(
    database_url: str,
) -> None:
    app = trip_app(database_url, models={"trips": Trip}, **QUICK)
    async with app, connected(database_url) as look:
        await publish(app, trips(20, seed=72), writers=4)
        await app.catch_up()
        clean = await app.verify(Trip)
        assert clean.differing == 0 and clean.checked == await app.count(Trip)
        await tamper(look, "doc_trips_v1")
        wrong = await documents(app, "trips")

        found = await app.verify(Trip)
        assert {one.kind for one in found.differences} == {"missing", "extra", "differs"}
        assert found.differing == 3
        assert await documents(app, "trips") == wrong

        await app.verify(Trip, repair=True)
        await assert_documents(app, "trips")
        assert (await app.verify(Trip)).differing == 0


async def test_no_more_rebuilds_run_at_once_than_are_allowed(database_url: str) -> None:
    settings = {**QUICK, "rebuilds_at_once": 1}
    async with trip_app(database_url, **settings) as app, connected(database_url) as look:
        await publish(app, trips(20, seed=73), writers=4)
        await app.catch_up()
        await app.start()
        most = 0
        for name in MODELS:
            await app.rebuild(name, wait=False)
        while open_ones := await look.fetch(
            "SELECT state FROM strandline.rebuilds WHERE state IN ('queued', 'building', 'sealed')"
        ):
            most = max(most, sum(row["state"] != "queued" for row in open_ones))
            await asyncio.sleep(0.01)

        done = await look.fetch("SELECT state FROM strandline.rebuilds")
        assert [row["state"] for row in done] == ["done"] * len(MODELS)
        assert most == 1
        await assert_documents(app)


async def test_what_is_not_run_by_nodes_cannot_be_rebuilt(database_url: str) -> None:
    app = trip_app(database_url, models={"trips": Trip}, lifecycle="inline", **QUICK)
    async with app:
        with pytest.raises(InvalidDefinition):
            await app.rebuild(Trip)


async def test_a_rebuild_can_be_tried_dry(database_url: str) -> None:
    async with trip_app(database_url, models={"trips": Trip}, **QUICK) as app:
        await publish(app, trips(10, seed=74))
        await app.catch_up()
        before = await documents(app, "trips")
        plan = await app.plan_rebuild(Trip)

        assert plan.documents == len(before)
        assert await app.rebuilds() == []
        assert await documents(app, "trips") == before
