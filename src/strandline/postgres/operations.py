"""Op: steps of SQL written once, run on async or blocking connections.

An operation is a generator. It yields a ``Call`` and gets the rows back, so the logic between
two statements is the same code for ``await app.append(...)`` and for ``app.append(...)`` in a
Django view. Driving an operation this way adds about 1 µs.

A ``Session`` is a connection ready to run operations: ``AsyncpgSession`` (ours, or the caller's
asyncpg connection), ``PsycopgSession`` and ``BlockingSession`` (the caller's psycopg connections;
the blocking twin of the app has its own). All run inside whatever transaction the connection is in.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from strandline.errors import NotOpen
from strandline.postgres.faults import OVER, driver_errors, translated
from strandline.postgres.statements import Row, Statement

if TYPE_CHECKING:
    import asyncpg
    import psycopg

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Call:
    """A statement and its arguments, waiting to be run."""

    statement: Statement[Any]
    arguments: tuple[Any, ...]


Rows: TypeAlias = Sequence[Sequence[Any]]
Op: TypeAlias = Generator[Call, Rows, Answer]


def one(statement: Statement[Row], /, *arguments: Any) -> Op[Row | None]:
    """Run *statement*; answer its only row, or None."""
    rows = yield Call(statement, arguments)
    return statement.row(*rows[0]) if rows else None


def many(statement: Statement[Row], /, *arguments: Any) -> Op[list[Row]]:
    """Run *statement*; answer its rows."""
    rows = yield Call(statement, arguments)
    make = statement.row
    return [make(*row) for row in rows]


def none(statement: Statement[Any], /, *arguments: Any) -> Op[None]:
    """Run *statement*, which answers nothing."""
    yield Call(statement, arguments)


class Session(Protocol):
    """A connection that runs operations, and waits by ``await``."""

    schema: str
    connection: Any

    async def run(self, op: Op[Answer]) -> Answer:
        """Run *op* inside whatever transaction the connection is in."""
        ...


class AsyncpgSession:
    """Runs operations on an asyncpg connection.

    Attributes:
        doubtful: A statement failed on it, or somebody uses the connection itself: whether a
            transaction can still commit must be asked.
        over: Its connection is back in the pool.
    """

    __slots__ = ("connection", "doubtful", "over", "schema")

    def __init__(self, connection: asyncpg.Connection[Any], schema: str) -> None:
        self.connection = connection
        self.schema = schema
        self.doubtful = False
        self.over = False

    async def run(self, op: Op[Answer]) -> Answer:
        """See ``Session``.

        Raises:
            StrandlineError: The driver's error, translated (see ``faults``); it is chained.
        """
        try:
            call = next(op)
            while True:
                try:
                    sql = call.statement.sql(self.schema)
                    if call.statement.rows == "none" and not call.arguments:
                        await self.connection.execute(sql)
                        rows: Rows = ()
                    else:
                        rows = await self.connection.fetch(sql, *call.arguments)
                except driver_errors() as error:
                    call = op.throw(self._told(error, call.statement.name))
                except BaseException as error:  # the operation may clean up
                    self.doubtful = True  # a cancelled statement fails its transaction
                    call = op.throw(error)
                else:
                    call = op.send(rows)
        except StopIteration as stop:
            answer: Answer = stop.value
            return answer

    async def affected(self, statement: Statement[Any], /, *arguments: Any) -> int:
        """Run one statement that writes; to how many rows it did, as the server tells for nothing."""
        try:
            tag = await self.connection.execute(statement.sql(self.schema), *arguments)
        except driver_errors() as error:
            raise self._told(error, statement.name) from error
        return int(tag.rpartition(" ")[2])

    async def copy(
        self, table: str, records: Iterable[Sequence[Any]], columns: Sequence[str]
    ) -> None:
        """Write *records* to *table* by binary COPY, in order."""
        try:
            await self.connection.copy_records_to_table(
                table, schema_name=self.schema, records=records, columns=list(columns)
            )
        except driver_errors() as error:
            raise self._told(error, f"copy to {table}") from error

    def _told(self, error: Exception, what: str) -> Exception:
        """What the caller is told of *error*, which a statement met."""
        self.doubtful = True
        return NotOpen(f"{what}: {OVER}") if self.over else translated(error, what)


class PsycopgSession:
    """Runs operations on the caller's psycopg ``AsyncConnection``."""

    __slots__ = ("connection", "schema")

    def __init__(self, connection: psycopg.AsyncConnection[Any], schema: str) -> None:
        self.connection = connection
        self.schema = schema

    async def run(self, op: Op[Answer]) -> Answer:
        """See ``Session``."""
        from psycopg import AsyncRawCursor

        try:
            call = next(op)
            while True:
                try:
                    cursor = AsyncRawCursor(self.connection)
                    sql = call.statement.sql(self.schema).encode()
                    await cursor.execute(sql, call.arguments or None)
                    rows: Rows = await cursor.fetchall() if cursor.description else ()
                except driver_errors() as error:
                    call = op.throw(translated(error, call.statement.name))
                except BaseException as error:  # the operation may clean up
                    call = op.throw(error)
                else:
                    call = op.send(rows)
        except StopIteration as stop:
            answer: Answer = stop.value
            return answer


class BlockingSession:
    """Runs operations on a blocking psycopg connection. The twin of the two above."""

    __slots__ = ("connection", "schema")

    def __init__(self, connection: psycopg.Connection[Any], schema: str) -> None:
        self.connection = connection
        self.schema = schema

    def run(self, op: Op[Answer]) -> Answer:
        """See ``Session``; without ``await``."""
        from psycopg import RawCursor

        try:
            call = next(op)
            while True:
                try:
                    cursor = RawCursor(self.connection)
                    sql = call.statement.sql(self.schema).encode()
                    cursor.execute(sql, call.arguments or None)
                    rows: Rows = cursor.fetchall() if cursor.description else ()
                except driver_errors() as error:
                    call = op.throw(translated(error, call.statement.name))
                except BaseException as error:  # the operation may clean up
                    call = op.throw(error)
                else:
                    call = op.send(rows)
        except StopIteration as stop:
            answer: Answer = stop.value
            return answer
