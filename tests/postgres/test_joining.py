"""The same operations inside the caller's own transaction, whatever the driver; and plain SQL."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from uuid import uuid4

import asyncpg
import psycopg
import pytest
from stores import Bench, Deposited, amounts, deposits, opened

from strandline.errors import DuplicateEvent, StreamArchived, WrongVersion
from strandline.events.append import append, append_together
from strandline.events.event import NO_STREAM
from strandline.events.read import archive, read_page, read_stream, stream_state
from strandline.postgres.operations import AsyncpgSession, BlockingSession, PsycopgSession

Run = Callable[[Any], Any]
Execute = Callable[[str], Any]


class Caller:
    """The caller's connection: how it runs operations and its own SQL, and how it ends."""

    def __init__(self, run: Run, execute: Execute, autocommits: bool) -> None:
        self.run = run
        self.execute = execute
        self.autocommits = autocommits

    async def begin(self) -> None:
        if self.autocommits:
            await self.execute("BEGIN")


@asynccontextmanager
async def by_asyncpg(url: str) -> Any:
    connection = await asyncpg.connect(url)
    try:
        yield Caller(AsyncpgSession(connection, "strandline").run, connection.execute, True)
    finally:
        await connection.close()


def by_psycopg(autocommit: bool) -> Callable[[str], AbstractAsyncContextManager[Caller]]:
    @asynccontextmanager
    async def connect(url: str) -> Any:
        connection = await psycopg.AsyncConnection.connect(url, autocommit=autocommit)
        try:
            run = PsycopgSession(connection, "strandline").run
            yield Caller(run, connection.execute, autocommit)
        finally:
            await connection.close()

    return connect


def by_blocking(autocommit: bool) -> Callable[[str], AbstractAsyncContextManager[Caller]]:
    @asynccontextmanager
    async def connect(url: str) -> Any:
        connection = psycopg.connect(url, autocommit=autocommit)
        session = BlockingSession(connection, "strandline")

        async def run(op: Any) -> Any:
            return await asyncio.to_thread(session.run, op)

        async def execute(sql: str) -> Any:
            return await asyncio.to_thread(connection.execute, sql)

        try:
            yield Caller(run, execute, autocommit)
        finally:
            connection.close()

    return connect


DRIVERS = {
    "asyncpg": by_asyncpg,
    "psycopg": by_psycopg(autocommit=False),
    "psycopg autocommit": by_psycopg(autocommit=True),
    "blocking psycopg": by_blocking(autocommit=False),
    "blocking psycopg autocommit": by_blocking(autocommit=True),
}
every_driver = pytest.mark.parametrize("driver", DRIVERS)


async def prepared(bench: Bench) -> None:
    await bench.rows("CREATE TABLE orders (id int)")


@every_driver
async def test_events_and_the_callers_rows_commit_together(database_url: str, driver: str) -> None:
    async with opened(database_url) as bench, DRIVERS[driver](database_url) as caller:
        await prepared(bench)
        await caller.begin()
        await caller.execute("INSERT INTO orders VALUES (1)")
        done = await caller.run(append(bench.prepare("a", deposits(1, 2), expected=NO_STREAM)))
        more = await caller.run(append(bench.prepare("a", Deposited(3), expected=2)))
        own = await caller.run(read_stream("a", types=bench.types))
        assert await bench.counts() == (0, 0)

        await caller.execute("COMMIT")

        assert (done.version, more.version) == (2, 3)
        assert amounts(own) == [1, 2, 3]
        assert await bench.stored("a") == [(1, 1), (2, 2), (3, 3)]
        assert await bench.rows("SELECT id FROM orders") == [(1,)]


@every_driver
async def test_a_rollback_leaves_nothing(database_url: str, driver: str) -> None:
    async with opened(database_url) as bench, DRIVERS[driver](database_url) as caller:
        await prepared(bench)
        await caller.begin()
        await caller.execute("INSERT INTO orders VALUES (1)")
        items = [bench.prepare("a", Deposited(1)), bench.prepare("b", Deposited(2))]
        await caller.run(append_together(items))
        await caller.execute("ROLLBACK")

        assert await bench.counts() == (0, 0)
        assert await bench.rows("SELECT id FROM orders") == []
        assert (await bench.append("a", Deposited(1), expected=NO_STREAM)).version == 1


@every_driver
async def test_a_conflict_leaves_the_transaction_usable(database_url: str, driver: str) -> None:
    async with opened(database_url) as bench, DRIVERS[driver](database_url) as caller:
        await prepared(bench)
        await bench.append("a", deposits(1, 2))
        taken = await bench.append("c", Deposited(1), ids=[uuid4()])
        await caller.begin()
        await caller.execute("INSERT INTO orders VALUES (1)")
        with pytest.raises(WrongVersion, match="version 2, expected 1"):
            await caller.run(append(bench.prepare("a", Deposited(3), expected=1)))
        with pytest.raises(WrongVersion):
            await caller.run(
                append_together(
                    [bench.prepare("b", Deposited(0)), bench.prepare("a", Deposited(3), expected=9)]
                )
            )
        with pytest.raises(DuplicateEvent):
            await caller.run(append(bench.prepare("b", Deposited(1), ids=taken.ids)))
        assert (await caller.run(archive("c"))).is_archived
        with pytest.raises(StreamArchived):
            await caller.run(append(bench.prepare("c", Deposited(3))))

        done = await caller.run(append(bench.prepare("a", Deposited(3), expected=2)))
        await caller.execute("COMMIT")

        assert done.version == 3
        assert await bench.rows("SELECT id FROM orders") == [(1,)]
        assert await bench.stored("a") == [(1, 1), (2, 2), (3, 3)]
        assert await bench.store.stream_state("b") is None


@every_driver
async def test_every_operation_answers_the_same(database_url: str, driver: str) -> None:
    async with opened(database_url) as bench, DRIVERS[driver](database_url) as caller:
        name = uuid4()
        await bench.append(
            "a", [Deposited(1), Deposited(2)], metadata={"user": "ada"}, stream_type="account"
        )
        await bench.append("b", Deposited(3), ids=[name])

        events = await caller.run(read_stream("a", types=bench.types, backwards=True, limit=1))
        page = await caller.run(
            read_page(
                types=bench.types,
                after=1,
                names=["deposited"],
                tenant="default",
                stream_type="account",
            )
        )
        state = await caller.run(stream_state("a"))
        again = await caller.run(append(bench.prepare("b", Deposited(3), ids=[name])))

        assert events == (await bench.store.read_stream("a"))[1:]
        assert page == events
        assert events[0].metadata.user == "ada"
        assert state == await bench.store.stream_state("a")
        assert again.stored_before


@every_driver
async def test_a_savepoint_undoes_only_its_part(database_url: str, driver: str) -> None:
    async with opened(database_url) as bench, DRIVERS[driver](database_url) as caller:
        await caller.begin()
        await caller.run(append(bench.prepare("a", Deposited(1))))
        await caller.execute("SAVEPOINT part")
        await caller.run(append(bench.prepare("a", Deposited(2), expected=1)))
        await caller.execute("ROLLBACK TO SAVEPOINT part")
        await caller.run(append(bench.prepare("a", Deposited(3), expected=1)))
        await caller.execute("COMMIT")

        assert await bench.stored("a") == [(1, 1), (2, 3)]


@every_driver
async def test_without_a_transaction_every_append_is_its_own(
    database_url: str, driver: str
) -> None:
    async with opened(database_url) as bench, DRIVERS[driver](database_url) as caller:
        await caller.run(append(bench.prepare("a", Deposited(1))))
        if not caller.autocommits:  # psycopg has begun one
            assert await bench.stored("a") == []
            await caller.execute("COMMIT")

        assert await bench.stored("a") == [(1, 1)]


# ---- plain SQL


def appended(connection: Any, *arguments: Any, named: str = "") -> Any:
    places = ", ".join(["%s"] * len(arguments))
    return connection.execute(
        f"SELECT version, position FROM strandline.append({places}{named})", arguments
    ).fetchone()


def body(*amounts: float, **more: Any) -> str:
    return json.dumps([{"type": "deposited", "data": {"amount": one}, **more} for one in amounts])


async def test_sql_appends_and_the_store_reads(database_url: str) -> None:
    name = str(uuid4())
    async with opened(database_url) as bench:
        with psycopg.connect(database_url) as connection:
            assert appended(connection, "a", body(1, 2)) == (2, 2)
            assert appended(connection, "a", body(3, id=name, metadata={"user": "ada"}), 2) == (
                3,
                3,
            )
            typed = ", tenant => 'two', stream_type => 'account'"
            assert appended(connection, "a", body(4), 0, named=typed) == (1, 4)

        events = await bench.store.read_stream("a")
        assert amounts(events) == [1, 2, 3]
        assert str(events[2].id) == name
        assert events[2].metadata.user == "ada"
        state = await bench.store.stream_state("a", tenant="two")
        assert state is not None
        assert state.type == "account"
        assert (await bench.append("a", Deposited(4), expected=3)).version == 4


@pytest.mark.parametrize(
    ("state", "arguments"),
    [
        ("SL001", ("a", body(1), 5)),
        ("SL001", ("a", body(1), 0)),
        ("SL001", ("b", body(1), -2)),
        ("SL002", ("closed", body(1))),
        ("SL004", ("", body(1))),
        ("SL004", (None, body(1))),
        ("SL004", ("x" * 501, body(1))),
        ("SL004", ("a", "[]")),
        ("SL004", ("a", "{}")),
        ("SL004", ("a", None)),
        ("SL004", ("a", '[{"data": {}}]')),
        ("SL004", ("a", '[{"type": "deposited"}]')),
        ("SL004", ("a", "[7]")),
        ("SL004", ("a", body(1), -3)),
        ("SL004", ("a", body(1), None)),
        ("SL004", ("a", body(1), -1, "")),
        ("SL004", ("a", body(1), -1, "default", "")),
        ("SL004", ("a", body(1), -1, "default", "x" * 201)),
        ("SL004", ("a", json.dumps([{"type": "x" * 201, "data": {}}]))),
    ],
)
async def test_sql_refuses_with_a_state_of_its_own(
    database_url: str, state: str, arguments: tuple[Any, ...]
) -> None:
    async with opened(database_url) as bench:
        await bench.append("a", Deposited(1))
        await bench.append("closed", Deposited(1))
        await bench.store.archive("closed")
        before = await bench.counts()
        with psycopg.connect(database_url) as connection:
            with pytest.raises(psycopg.Error) as caught:
                appended(connection, *arguments)

        assert caught.value.sqlstate == state
        if state != "SL004":
            assert json.loads(caught.value.diag.message_detail or "")["stream"] == arguments[0]
        assert await bench.counts() == before
