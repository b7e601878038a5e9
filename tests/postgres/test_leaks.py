"""The leak watch: a transaction that stays open is reported once, with its place, and ended on wish."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import asyncpg
import psycopg
import pytest

from strandline import sync
from strandline.app import App
from strandline.errors import PoolExhausted, TransactionFailed
from strandline.telemetry.signals import Notice
from strandline.testing.leaks import no_leaks
from tests.tally import Ticked, connected, holds, tally_app

LEAKED, ENDED = "transaction_leaked", "transaction_rolled_back"


@asynccontextmanager
async def watched(url: str, **settings: Any) -> AsyncIterator[tuple[App, list[Notice]]]:
    """An open app, and what its watch told."""
    app = tally_app(url, **{"leak_after": 0.1, "migrate_at_start": False, **settings})
    notices: list[Notice] = []
    app.signals.listen(lambda one: notices.append(one) if one.name in (LEAKED, ENDED) else None)
    async with no_leaks(app), app:
        yield app, notices


async def careless_work(app: App) -> None:
    async with app.transaction() as tx:
        await tx.append("s", Ticked())
        await app.signals.wait_for(LEAKED, timeout=5)
        await asyncio.sleep(0.3)  # it is not reported again


async def test_a_transaction_that_stays_open_is_reported_once_with_place_and_query(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with watched(database_url) as (app, notices):
        await careless_work(app)
        statistics = app.pools.work.statistics()

    (told,) = notices
    assert told.facts["pool"] == "work"
    assert told.facts["age"] >= 0.1
    assert "test_leaks.py:" in told.facts["place"] and "careless_work" in told.facts["place"]
    assert "append" in told.facts["query"]
    assert told.facts["task"].startswith("task ")
    (line,) = [one.getMessage() for one in caplog.records if "leak_after" in one.getMessage()]
    assert "careless_work < " in line  # and who called it
    assert "reported_once_with_place_and_query" in line
    assert statistics.leaked == 1 and statistics.rolled_back == 0


async def test_a_reported_transaction_can_still_commit(database_url: str) -> None:
    async with watched(database_url) as (app, _):
        await careless_work(app)
        assert await app.highest_position() == 1


async def test_short_transactions_are_not_reported(database_url: str) -> None:
    async with watched(database_url, leak_after=0.6) as (app, notices):
        for _ in range(60):
            async with app.transaction() as tx:
                await tx.fetch("SELECT pg_sleep(0.02)")

    assert notices == []


async def test_a_forced_rollback_ends_that_transaction_alone_and_says_why(
    database_url: str,
) -> None:
    ended = asyncio.Event()

    async def leaking(app: App) -> None:
        async with app.transaction() as tx:
            await tx.append("leaked", Ticked())
            await ended.wait()
            await tx.append("leaked", Ticked())

    async with watched(database_url, leak_rollback_after=0.3, work_connections=2) as (app, notices):
        leak = asyncio.create_task(leaking(app))
        told = await app.signals.wait_for(ENDED, timeout=5)
        async with app.transaction() as tx:  # the other connection, and
            async with app.transaction() as another:  # the place that has come free
                await another.append("fine", Ticked())
                ended.set()
                with pytest.raises(TransactionFailed) as caught:
                    await leak
                await tx.append("fine too", Ticked())
        stored = [event.stream async for event in app.read_all(settled=False)]
        assert app.pools.work.statistics().rolled_back == 1

    text = str(caught.value)
    assert "leak_rollback_after is 0.3 s: it was rolled back" in text
    assert "test_leaks.py:" in text and "leaking" in text
    assert told.facts["age"] >= 0.3
    assert [one.name for one in notices if "leaking" in one.facts["place"]] == [LEAKED, ENDED]
    assert [one.name for one in notices].count(ENDED) == 1
    assert sorted(stored) == ["fine", "fine too"]


async def test_a_block_that_does_nothing_more_is_told_at_its_end(database_url: str) -> None:
    async with watched(database_url, leak_rollback_after=0.2) as (app, _):
        with pytest.raises(TransactionFailed, match="rolled back and its connection closed"):
            async with app.transaction() as tx:
                await tx.append("s", Ticked())
                await app.signals.wait_for(ENDED, timeout=5)

        assert await app.highest_position() == 0


async def test_an_error_of_the_block_itself_is_not_replaced(database_url: str) -> None:
    async with watched(database_url, leak_rollback_after=0.2) as (app, _):
        for error in (ZeroDivisionError, TimeoutError):
            with pytest.raises(error):
                async with app.transaction():
                    await app.signals.wait_for(ENDED, timeout=5)
                    raise error


async def test_a_forced_rollback_ends_the_backend_in_the_middle_of_a_statement(
    database_url: str,
) -> None:
    async with (
        watched(database_url, leak_rollback_after=0.3) as (app, _),
        connected(database_url) as looking,
    ):
        with pytest.raises(TransactionFailed):
            async with app.transaction() as tx:
                pid = (await tx.fetch("SELECT pg_backend_pid()"))[0][0]
                await tx.fetch("SELECT pg_sleep(60)")

        async def is_gone() -> bool:
            query = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)"
            return bool(await looking.fetchval(query, pid))

        await holds(is_gone, timeout=2)


async def test_a_commit_under_way_is_left_alone(database_url: str) -> None:
    async with connected(database_url) as admin:
        await admin.execute(
            """CREATE TABLE slow (one int);
               CREATE FUNCTION sleep() RETURNS trigger LANGUAGE plpgsql AS
                   $$ BEGIN PERFORM pg_sleep(0.8); RETURN NULL; END $$;
               CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED
                   FOR EACH ROW EXECUTE FUNCTION sleep();"""
        )
        async with watched(database_url, leak_rollback_after=0.4) as (app, notices):
            async with app.transaction() as tx:
                await tx.execute("INSERT INTO slow VALUES (1)")

        assert await admin.fetchval("SELECT count(*) FROM slow") == 1
    assert ENDED not in [one.name for one in notices]


async def test_the_transactions_of_control_are_watched_as_well(database_url: str) -> None:
    async with watched(database_url) as (app, notices):
        async with app.pools.control.transaction():
            await app.signals.wait_for(LEAKED, timeout=5)

    assert [one.facts["pool"] for one in notices] == ["control"]


async def test_what_may_last_is_neither_reported_nor_ended(database_url: str) -> None:
    async with watched(database_url, leak_after=0.05, leak_rollback_after=0.1) as (app, notices):
        async with app.pools.control.transaction(watched=False) as session:
            await session.connection.execute("SELECT pg_sleep(0.4)")

    assert notices == []


async def test_a_pool_full_of_leaks_costs_no_lease_and_names_the_holders(database_url: str) -> None:
    quick = {"pulse_interval": 0.1, "node_ttl": 1.0, "leader_ttl": 1.0, "leader_margin": 0.2}
    settings = {"mode": "cluster", "pulse": "thread", "work_connections": 2, "acquire_timeout": 0.2}
    leader = "SELECT epoch, renewals FROM strandline.leases WHERE name = 'leader'"
    async with (
        watched(database_url, **quick, **settings, migrate_at_start=True) as (app, notices),
        connected(database_url) as looking,
    ):
        await app.start()

        async def renewals() -> int:
            return int((await looking.fetchrow(leader))["renewals"])

        await holds(renewals)
        async with app.transaction(), app.transaction():
            before = await looking.fetchrow(leader)
            await holds(lambda: _is_at_least(renewals(), before["renewals"] + 25))  # 2.5 ttl
            after = await looking.fetchrow(leader)
            with pytest.raises(PoolExhausted, match="names_the_holders"):
                await app.append("s", Ticked())
        await app.stop()

    assert after["epoch"] == before["epoch"]
    ours = [one for one in notices if "names_the_holders" in one.facts["place"]]
    assert [one.name for one in ours] == [LEAKED, LEAKED]


async def _is_at_least(number: Any, least: int) -> bool:
    return bool(await number >= least)


# ---- the caller's own connection


async def test_a_joined_transaction_that_stays_open_is_reported(database_url: str) -> None:
    async with watched(database_url) as (app, notices), connected(database_url) as mine:
        async with mine.transaction():
            tx = app.join(mine)
            app.pools.joined(mine)
            await tx.append("s", Ticked())
            await app.signals.wait_for(LEAKED, timeout=5)

    (told,) = notices
    assert told.facts["pool"] == "joined"
    assert "test_leaks.py:" in told.facts["place"]
    assert "append" in told.facts["query"]


async def test_a_joined_psycopg_transaction_that_stays_open_is_reported(database_url: str) -> None:
    async with (
        watched(database_url) as (app, notices),
        await psycopg.AsyncConnection.connect(database_url) as mine,
    ):
        await app.join(mine).append("s", Ticked())
        app.pools.joined(mine)
        await app.signals.wait_for(LEAKED, timeout=5)
        await mine.commit()

    assert [one.facts["pool"] for one in notices] == ["joined"]


async def test_a_joined_connection_with_one_short_transaction_after_the_other_is_not_reported(
    database_url: str,
) -> None:
    async with (
        watched(database_url, leak_after=0.6) as (app, notices),
        connected(database_url) as mine,
    ):
        app.pools.joined(mine)
        for _ in range(6):
            async with mine.transaction():
                await mine.fetch("SELECT pg_sleep(0.25)")

    assert notices == []


async def test_joined_connections_are_forgotten(database_url: str) -> None:
    async with watched(database_url) as (app, _):
        for _ in range(3):
            mine = await asyncpg.connect(database_url)
            app.pools.joined(mine)
            await mine.close()

        await holds(lambda: app.pools._watch._joined == {})


# ---- blocking


@contextmanager
def holding(
    app: sync.App, failed: list[TransactionFailed], stream: str = "leaked"
) -> Iterator[None]:
    """A thread inside a transaction that it does not end before the block does."""
    inside, end = threading.Event(), threading.Event()

    def leaking_thread() -> None:
        try:
            with app.transaction() as tx:
                tx.append(stream, Ticked())
                inside.set()
                end.wait(10)
        except TransactionFailed as error:
            failed.append(error)

    thread = threading.Thread(target=leaking_thread, name="the leaker")
    thread.start()
    assert inside.wait(10)
    try:
        yield
    finally:
        end.set()
        thread.join(10)


def blocking_app(url: str, **settings: Any) -> sync.App:
    app = sync.App("tally", url, **settings)
    app.event("ticked")(Ticked)
    return app


def test_a_blocking_pool_names_who_holds_it(database_url: str) -> None:
    with (
        blocking_app(database_url, work_connections=2, acquire_timeout=0.3) as app,
        holding(app, []),
        holding(app, [], "another"),
        pytest.raises(PoolExhausted) as caught,
        app.transaction(),
    ):
        pass

    text = str(caught.value)
    assert "no connection came free within 0.3 s (2 of 2 in use; held longest: " in text
    assert "leaking_thread (thread 'the leaker'), last query" in text
    assert "append" in text


def test_a_blocking_transaction_that_stays_open_is_reported_by_the_next_one(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with blocking_app(database_url, leak_after=0.05) as app, holding(app, []):
        with caplog.at_level(logging.WARNING, "strandline.pools"):
            threading.Event().wait(0.1)
            for _ in range(2):
                with app.transaction():
                    pass

    (line,) = [one.getMessage() for one in caplog.records if "leak_after" in one.getMessage()]
    assert "pool sync: leak_after is 0.05 s: a transaction for" in line
    assert "leaking_thread" in line


def test_a_blocking_transaction_is_rolled_back_on_wish(database_url: str) -> None:
    failed: list[TransactionFailed] = []
    with blocking_app(database_url, leak_after=0.05, leak_rollback_after=0.1) as app:
        with holding(app, failed):
            threading.Event().wait(0.2)
            with app.transaction() as tx:
                tx.append("fine", Ticked())
        stored = [app.stream_state(name) is not None for name in ("fine", "leaked")]

    assert stored == [True, False]
    (error,) = failed
    assert "leak_rollback_after is 0.1 s: it was rolled back" in str(error)
