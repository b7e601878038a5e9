"""SQL projections: statements queued by event handlers, run in order."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
import psycopg
import pytest

from strandline.errors import (
    ApplyFailed,
    DatabaseUnavailable,
    InvalidDefinition,
    UndecodableEvent,
)
from strandline.events.codec import EventTypes
from strandline.events.event import RecordedEvent
from strandline.postgres.operations import AsyncpgSession, BlockingSession
from strandline.projections.handlers import apply
from strandline.projections.sql_projection import OwnTables, Queued, Sql, Statements, execute

AT = datetime(2030, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Placed:
    id: str
    total: int


@dataclass(frozen=True)
class Raised:
    id: str
    by: int


@dataclass(frozen=True)
class Cancelled:
    id: str


INSERT = "INSERT INTO orders VALUES ($1, $2)"
RAISE = "UPDATE orders SET total = total + $2 WHERE id = $1"
LOG = "INSERT INTO log (line) VALUES ($1)"


class Orders(Sql):
    setup = (
        "CREATE TABLE IF NOT EXISTS orders (id text PRIMARY KEY, total bigint CHECK (total < 1000))",
        "CREATE TABLE IF NOT EXISTS log (n serial, line text)",
    )
    reset = "TRUNCATE orders; TRUNCATE log"
    teardown = "DROP TABLE IF EXISTS orders, log"

    @execute
    def placed(self, event: Placed, sql: Statements) -> None:
        sql(INSERT, event.id, event.total)

    @execute
    def raised(self, event: Raised, sql: Statements) -> None:
        if event.by < 0:
            raise ValueError("by less than nothing")
        sql(RAISE, event.id, event.by)

    @execute
    def noted(self, event: RecordedEvent[Placed | Cancelled], sql: Statements) -> None:
        sql(LOG, f"{event.stream} {event.data.id}")


def types() -> EventTypes:
    made = EventTypes()
    made.register(Placed, "placed", aliases=["ordered"])
    made.register(Raised, "raised")
    made.register(Cancelled, "cancelled")
    return made


def bound(projection: type[Sql], lifecycle: str = "async") -> OwnTables:
    known = types()
    definition = projection()
    definition.named("orders", 1, lifecycle)
    definition.bind(known, globals())
    return OwnTables(definition, known)


def rows_of(*events: Any) -> list[tuple[Any, ...]]:
    known = types()
    made = []
    for number, event in enumerate(events, 1):
        name, data = known.encode(event)
        made.append(
            (number, "t", f"s{number}", number, name, data.decode(), AT, UUID(int=number), None)
        )
    return made


class Desk:
    """A connection, and what the tables hold."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.session = AsyncpgSession(connection, "strandline")

    async def orders(self) -> dict[str, int]:
        return dict(await self.connection.fetch("SELECT id, total FROM orders ORDER BY id"))

    async def log(self) -> list[str]:
        return [row[0] for row in await self.connection.fetch("SELECT line FROM log ORDER BY n")]


async def opened(url: str, tables: OwnTables) -> Desk:
    desk = Desk(await asyncpg.connect(url))
    await desk.session.run(tables.create())
    return desk


# ---- without a database


def test_handlers_queue_in_the_order_of_events_and_of_the_class() -> None:
    tables = bound(Orders)

    queued = tables.collect(rows_of(Placed("a", 1), Cancelled("b"), Raised("a", 2)))

    assert queued == [
        Queued(INSERT, ("a", 1), 1, "placed"),
        Queued(LOG, ("s1 a",), 1, "noted"),
        Queued(LOG, ("s2 b",), 2, "noted"),
        Queued(RAISE, ("a", 2), 3, "raised"),
    ]


def test_it_wants_every_name_of_its_events_and_the_envelope() -> None:
    tables = bound(Orders)

    assert tables.names == ("placed", "ordered", "raised", "cancelled")
    assert tables.wants_envelope
    assert tables.wants(["x", "ordered"])
    assert not tables.wants(["x"])
    assert tables.projection.event_classes == (Placed, Raised, Cancelled)


def test_an_event_decoded_already_is_not_decoded_again_and_others_are_passed_over() -> None:
    tables = bound(Orders)
    row = list(rows_of(Raised("a", 2))[0])
    row[5] = Raised("b", 3)

    queued = tables.collect([row, (2, "t", "s", 1, "other", "{}", AT, UUID(int=1), None)])

    assert [one.arguments for one in queued] == [("b", 3)]


def test_a_handler_that_raises_is_told_with_its_event() -> None:
    with pytest.raises(ApplyFailed, match=r"orders:v1 at position 2: raised: ValueError") as failed:
        bound(Orders).collect(rows_of(Placed("a", 1), Raised("a", -1)))

    assert failed.value.position == 2


def test_an_event_that_cannot_be_decoded_is_told_with_its_position() -> None:
    row = list(rows_of(Raised("a", 2))[0])
    row[5] = '{"id": 1}'

    with pytest.raises(UndecodableEvent, match="'raised' at position 1"):
        bound(Orders).collect([row])


def test_something_else_than_a_statement_is_refused() -> None:
    class Odd(Sql):
        @execute
        def placed(self, event: Placed, sql: Statements) -> None:
            sql(" ")

    with pytest.raises(ApplyFailed, match="placed: InvalidInput.*is not an SQL statement"):
        bound(Odd).collect(rows_of(Placed("a", 1)))


def test_definitions_that_cannot_work_are_refused() -> None:
    class Nothing(Sql):
        pass

    class Shape(Sql):
        @execute
        def placed(self, event: Placed) -> None: ...

    class Silent(Sql):
        @execute
        def placed(self, event, sql): ...  # type: ignore[no-untyped-def]

    class Document(Sql):
        @apply
        def placed(self, document: object, event: Placed) -> None: ...

    refusals = {
        Nothing: "handles no event: write @sl.execute methods",
        Shape: r"placed: an execute handler is \(self, event, sql\)",
        Silent: "placed: annotate event",
        Document: "placed: methods of an sl.Sql projection are @sl.execute",
    }
    for projection, message in refusals.items():
        with pytest.raises(InvalidDefinition, match=message):
            bound(projection)
    with pytest.raises(InvalidDefinition, match="it is inline or async, not live"):
        bound(Orders, "live")


# ---- on PostgreSQL


@pytest.mark.parametrize("in_runs", [True, False])
async def test_statements_run_in_the_order_they_were_queued(
    database_url: str, in_runs: bool
) -> None:
    tables = bound(Orders)
    desk = await opened(database_url, tables)
    happened = [
        *(Placed(f"o{n}", n) for n in range(5)),
        *(Raised("o1", n) for n in range(5)),
        *(Cancelled(f"o{n}") for n in range(9)),
        Placed("o9", 9),
        Raised("o9", 1),
    ]
    queued = tables.collect(rows_of(*happened))

    async with desk.connection.transaction():
        if in_runs:
            await tables.apply_in_runs(desk.session, queued)
        else:
            await desk.session.run(tables.apply(queued))

    assert await desk.orders() == {"o0": 0, "o1": 11, "o2": 2, "o3": 3, "o4": 4, "o9": 10}
    expected = [f"s{n} {e.id}" for n, e in enumerate(happened, 1) if not isinstance(e, Raised)]
    assert await desk.log() == expected
    await desk.connection.close()


def test_a_blocking_session_runs_it_too(database_url: str) -> None:
    tables = bound(Orders)
    with psycopg.connect(database_url) as connection:
        session = BlockingSession(connection, "strandline")
        session.run(tables.create())

        session.run(tables.follow(rows_of(Placed("a", 1), Raised("a", 4))))

        assert connection.execute("SELECT id, total FROM orders").fetchall() == [("a", 5)]


@pytest.mark.parametrize("in_runs", [True, False])
async def test_a_statement_that_fails_is_told_with_handler_and_text(
    database_url: str, in_runs: bool
) -> None:
    tables = bound(Orders)
    desk = await opened(database_url, tables)
    queued = tables.collect(rows_of(Placed("a", 1), Placed("a", 2)))

    with pytest.raises(
        ApplyFailed, match=r"placed: duplicate key .*\(INSERT INTO orders"
    ) as failed:
        if in_runs:
            await tables.apply_in_runs(desk.session, queued)
        else:
            await desk.session.run(tables.apply(queued))

    assert failed.value.position == 2
    await desk.connection.close()


async def test_a_run_that_fails_is_told_without_a_position(database_url: str) -> None:
    tables = bound(Orders)
    desk = await opened(database_url, tables)
    queued = [Queued(RAISE, ("a", n), n, "raised") for n in (1, 2)]
    queued += [Queued(INSERT, ("a", n), n, "placed") for n in (7, 8)]

    with pytest.raises(ApplyFailed, match="placed: duplicate key") as failed:
        await tables.apply_in_runs(desk.session, queued)

    assert failed.value.position == 0
    await desk.connection.close()


async def test_a_missing_table_and_a_bad_argument_are_the_projections_fault(
    database_url: str,
) -> None:
    tables = bound(Orders)
    desk = Desk(await asyncpg.connect(database_url))

    with pytest.raises(ApplyFailed, match='placed: relation "orders" does not exist'):
        await desk.session.run(tables.apply([Queued(INSERT, ("a", 1), 1, "placed")]))
    await desk.session.run(tables.create())
    with pytest.raises(ApplyFailed, match="placed: invalid input for query argument"):
        await desk.session.run(tables.apply([Queued(INSERT, ("a", "x"), 1, "placed")]))
    await desk.connection.close()


@pytest.mark.parametrize("in_runs", [True, False])
async def test_a_lost_connection_is_not_the_projections_fault(
    database_url: str, in_runs: bool
) -> None:
    tables = bound(Orders)
    desk = await opened(database_url, tables)
    queued = [Queued(INSERT, (str(n), n), n, "placed") for n in range(2)]
    await desk.connection.close()

    with pytest.raises(DatabaseUnavailable):
        if in_runs:
            await tables.apply_in_runs(desk.session, queued)
        else:
            await desk.session.run(tables.apply(queued))


async def test_tables_are_set_up_emptied_and_torn_down(database_url: str) -> None:
    tables = bound(Orders)
    desk = await opened(database_url, tables)
    await desk.session.run(tables.create())
    await desk.session.run(tables.follow(rows_of(Placed("a", 1))))

    await desk.session.run(tables.empty())

    assert await desk.orders() == {}
    await desk.session.run(tables.drop())
    assert await desk.connection.fetchval("SELECT to_regclass('orders')") is None
    await desk.connection.close()


async def test_without_a_reset_tables_are_made_anew(database_url: str) -> None:
    class Anew(Orders):
        reset = ()

    class Stuck(Orders):
        reset = ()
        teardown = ()

    tables = bound(Anew)
    desk = await opened(database_url, tables)
    await desk.session.run(tables.follow(rows_of(Placed("a", 1))))

    await desk.session.run(tables.empty())

    assert await desk.orders() == {}
    with pytest.raises(InvalidDefinition, match="say how its tables are emptied"):
        await desk.session.run(bound(Stuck).empty())
    await desk.connection.close()


async def test_a_setup_that_fails_is_a_fault_of_the_definition(database_url: str) -> None:
    class Broken(Orders):
        setup = "CREATE TABEL orders (id text)"

    desk = Desk(await asyncpg.connect(database_url))

    with pytest.raises(
        InvalidDefinition, match='orders:v1: setup failed: syntax error at .* "TABEL"'
    ):
        await desk.session.run(bound(Broken).create())
    await desk.connection.close()
