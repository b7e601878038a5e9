"""Events that turn up in a gap after it was skipped by force, and what had passed it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tally import (
    Positions,
    Ticked,
    Versions,
    assert_applied_exactly_once,
    connected,
    fill,
    holds,
    tally_app,
)

from strandline.app import App
from strandline.app.transaction import Transaction
from strandline.errors import DocumentNotFound
from strandline.events.event import RecordedEvent
from strandline.projections.sql_projection import Sql, Statements, execute
from strandline.projections.subscription import EventBatch
from strandline.projections.table_declaration import Table
from strandline.projections.table_rules import column, count, on

ONE_EVENT = """SELECT strandline.append('slow', '[{"type": "ticked", "data": {}}]')"""
QUICK = {"force_after": 0.2, "poll_interval": 0.02, "probe_interval": 0.01, "mode": "solo"}


def app_for(url: str, **settings: Any) -> App:
    return tally_app(url, **{**QUICK, **settings})


@asynccontextmanager
async def late(
    app: App, url: str, *streams: str, tenant: str = "default", passed: int = 12
) -> AsyncIterator[list[int]]:
    """Events that are committed at the end of the block, in gaps that were skipped by then."""
    async with connected(url) as slow:
        await slow.execute("BEGIN")
        positions = [
            int(
                await slow.fetchval(
                    "SELECT position FROM strandline.append($1, $2, tenant => $3)",
                    stream,
                    '[{"type": "ticked", "data": {}}]',
                    tenant,
                )
            )
            for stream in streams
        ]
        last = await fill(app, passed)
        await app.wait_for(last, timeout=10)  # the mark waits for force_after
        yield positions
        await slow.execute("COMMIT")
    await holds(lambda: noted(url, len(positions)))


async def noted(url: str, events: int) -> bool:
    """Whether the detector has seen so many events in forced gaps."""
    async with connected(url) as connection:
        seen = await connection.fetchval(
            "SELECT sum((proof->'late'->>'events')::int) FROM strandline.gaps WHERE kind = 'forced'"
        )
    return bool(seen == events)


class Counts(Table):
    """How often each number was ticked."""

    number = column(int, key="number")
    times = column(int, default=0)
    rules = (on(Ticked, times=count()),)


def keeping_tables(app: App) -> None:
    """Two projections by SQL: one says which table is its own, the other does not."""

    @app.projection("told")
    class Told(Sql):
        setup = "CREATE TABLE IF NOT EXISTS told (position bigint PRIMARY KEY)"
        reset = "TRUNCATE told"
        tables = ("told",)

        @execute
        def ticked(self, event: RecordedEvent[Ticked], sql: Statements) -> None:
            sql("INSERT INTO told VALUES ($1)", event.position)

    @app.projection("untold")
    class Untold(Sql):
        setup = "CREATE TABLE IF NOT EXISTS untold (position bigint PRIMARY KEY)"
        reset = "TRUNCATE untold"

        @execute
        def ticked(self, event: RecordedEvent[Ticked], sql: Statements) -> None:
            sql("INSERT INTO untold VALUES ($1)", event.position)


async def test_documents_that_lack_a_late_event_are_mended_and_others_left_alone(
    database_url: str,
) -> None:
    async with app_for(database_url) as app:
        await app.start()
        await fill(app, 20)
        async with late(app, database_url, "slow", "slow", "also") as positions:
            with pytest.raises(DocumentNotFound):
                await app.get(Versions, "slow")
        before = await stamps(database_url)
        assert [one.events for one in await app.unhealed()] == [3]

        healed = await app.heal()

        assert [(one.label, one.how, one.positions) for one in healed] == [
            ("positions:v1", "rebuilt", tuple(positions)),
            ("versions:v1", "rebuilt", tuple(positions)),
        ]
        assert healed[1].scopes == ("streams slow, also",)
        await assert_applied_exactly_once(app)
        after = await stamps(database_url)
        assert {key for key in after if after[key] != before.get(key)} == {"slow", "also"}
        assert await app.unhealed() == []
        assert await app.heal() == []
        assert await stamps(database_url) == after, "the second time nothing is done"
        await fill(app, 20)
        await app.catch_up()
        await assert_applied_exactly_once(app)


async def stamps(url: str) -> dict[str, int]:
    """Which transaction wrote each document of single streams."""
    async with connected(url) as connection:
        found = await connection.fetch("SELECT id, xmin::text FROM strandline.doc_versions_v1")
    return dict(map(tuple, found))


async def test_only_the_keys_of_a_late_event_are_built_again(database_url: str) -> None:
    async with app_for(database_url) as app:
        await app.start()
        await fill(app, 20)
        async with late(app, database_url, "slow", tenant="b") as positions:
            pass

        (healed,) = await app.heal(Positions)

        assert healed.scopes == (f"key {positions[0] % 3} of tenant b",)
        assert (await app.get(Positions, str(positions[0] % 3), tenant="b")).versions == positions
        assert [one.label for one in await app.heal()] == ["versions:v1"]


async def test_tables_are_built_again_and_a_projection_that_cannot_be_is_told(
    database_url: str,
) -> None:
    app = app_for(database_url)
    app.projection("counts")(Counts)
    keeping_tables(app)
    async with app, connected(database_url) as other:
        await app.start()
        await fill(app, 20)
        async with late(app, database_url, "slow") as positions:
            pass

        healed = {one.label: one for one in await app.heal()}

        assert healed["counts:v1"].how == healed["told:v1"].how == "rebuilt"
        assert (healed["untold:v1"].how, healed["untold:v1"].positions) == ("none", (21,))
        assert "tables" in healed["untold:v1"].reason
        assert sum(row.times for row in await app.rows(Counts)) == 33
        told = [row[0] for row in await other.fetch("SELECT position FROM told ORDER BY 1")]
        assert told == list(range(1, 34))
        assert [one.how for one in await app.heal()] == ["none"], "it is still not healed"

        await app.rebuild("untold", in_place=True)
        await app.catch_up("untold")
        untold = [row[0] for row in await other.fetch("SELECT position FROM untold")]
        assert set(positions) <= set(untold)


async def test_what_has_not_passed_a_late_event_reads_it_once_by_itself(database_url: str) -> None:
    """It holds a page that was read before the event was there, and nodes share such pages."""
    app = app_for(database_url)
    called: list[int] = []
    holding, go_on = asyncio.Event(), asyncio.Event()

    @app.subscription("calls")
    async def calls(batch: EventBatch) -> None:
        positions = [event.position for event in batch]
        if 1 not in positions and not holding.is_set():
            holding.set()
            await go_on.wait()
        called.extend(positions)

    async with app:
        async with connected(database_url) as slow:
            await slow.execute("BEGIN")
            await slow.execute(ONE_EVENT)
            await app.start()
            await fill(app, 12)
            async with asyncio.timeout(10):
                await holding.wait()
            await slow.execute("COMMIT")
        await holds(lambda: noted(database_url, 1))

        (healed,) = await app.heal("calls")
        go_on.set()
        await app.catch_up("calls")

        assert (healed.how, healed.positions) == ("read", (1,))
        again = called.index(1)
        assert called[:again] == list(range(2, 2 + again)), "the batch it held, which was refused"
        assert called[again:] == list(range(1, 14))


async def test_a_batch_that_is_about_to_pass_a_late_event_is_waited_for(database_url: str) -> None:
    app = app_for(database_url)
    called: list[int] = []
    holding, go_on = asyncio.Event(), asyncio.Event()

    @app.subscription("calls")
    async def calls(batch: EventBatch, tx: Transaction) -> None:
        if len(batch) > 1:
            holding.set()
            await go_on.wait()
        called.extend(event.position for event in batch)

    async with app:
        async with connected(database_url) as slow:
            await slow.execute("BEGIN")
            await slow.execute(ONE_EVENT)
            await fill(app, 12)
            await app.start()
            async with asyncio.timeout(10):
                await holding.wait()
            await slow.execute("COMMIT")
        await holds(lambda: noted(database_url, 1))
        healing = asyncio.create_task(app.heal("calls"))
        await holds(lambda: is_waiting(database_url))
        go_on.set()

        (healed,) = await healing
        await holds(lambda: 1 in called)
        assert (healed.how, called) == ("called", [*range(2, 14), 1])


async def is_waiting(url: str) -> bool:
    async with connected(url) as connection:
        return bool(
            await connection.fetchval(
                """SELECT EXISTS (SELECT FROM pg_stat_activity
                    WHERE datname = current_database() AND wait_event_type = 'Lock')"""
            )
        )


async def test_a_subscription_is_called_once_for_an_event_that_came_late(database_url: str) -> None:
    app = app_for(database_url)
    called: list[int] = []

    @app.subscription("calls")
    async def calls(batch: EventBatch) -> None:
        called.extend(event.position for event in batch)

    async with app:
        await app.start()
        async with late(app, database_url, "slow") as positions:
            pass
        assert not set(positions) & set(called)

        first, second = await asyncio.gather(app.heal("calls"), app.heal("calls"))
        await holds(lambda: set(positions) <= set(called))

        assert await app.heal("calls") == []
        assert [one.how for one in first + second] == ["called"]
        assert (first + second)[0].positions == tuple(positions)
        assert sorted(called) == list(range(1, 14))


async def test_a_subscription_that_began_after_the_event_had_come_is_left_alone(
    database_url: str,
) -> None:
    async with app_for(database_url) as app:
        await app.start()
        async with late(app, database_url, "slow"):
            pass

    later = app_for(database_url)
    called: list[int] = []

    @later.subscription("calls")
    async def calls(batch: EventBatch) -> None:
        called.extend(event.position for event in batch)

    async with later:
        await later.start()
        await later.catch_up()

        assert {one.label for one in await later.heal()} == {"positions:v1", "versions:v1"}
        assert called == list(range(1, 14))


async def test_calls_at_the_same_time_heal_once(database_url: str) -> None:
    async with app_for(database_url) as app, app_for(database_url) as other:
        await app.start()
        async with late(app, database_url, "slow"):
            pass

        healed = await asyncio.gather(*(one.heal() for one in (app, other, app)))

        assert {one.label for some in healed for one in some} == {"positions:v1", "versions:v1"}
        assert await other.heal() == []
        await assert_applied_exactly_once(app)
