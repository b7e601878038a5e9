"""A line: one connection of its own, whose deadlines really fire.

A proxy that acknowledges and forwards nothing defeats ``statement_timeout``, ``tcp_user_timeout``
and keepalives alike: only the client's own clock helps. So every statement of a line has a
deadline here, and whoever misses it loses the connection, which is opened anew for the next
statement. The connection is ended, and the statement not cancelled: a cancel request would go
through the same hole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from strandline.errors import AnswerTimedOut, DatabaseUnavailable, StrandlineError
from strandline.postgres.faults import driver_errors, translated
from strandline.postgres.operations import Answer, AsyncpgSession, Op
from strandline.postgres.statements import Statement
from strandline.telemetry.journal import Journal

log = Journal("strandline.line")

Outcome = TypeVar("Outcome")

# Behind a pooler these are refused. A statement that nobody waits for any more must not stay on,
# and what a lease's row says must not be lost by a crash.
# For statements that join many rows of a table whose size changes all the time: a plan that is kept from
# when it was empty compares each row with each, until the table is analysed. Planning costs 0.2 ms.
FRESH_PLANS = {"plan_cache_mode": "force_custom_plan"}
SERVER_SETTINGS = {"TimeZone": "UTC", "jit": "off", "synchronous_commit": "on"}


class Line:
    """Runs one operation at a time, each within a deadline; connects when it has to.

    Args:
        url: The database; only a server that takes writes is good enough. Of several hosts one is
            asked at a time, the next one after a failure: each has the whole time for itself, so
            that a host in a black hole does not hide the others.
        schema: Where our tables are.
        application: Its name in ``pg_stat_activity``.
        connect_timeout: Seconds to open a connection.
        deadline: Seconds for one statement.
        prepared: Keep statements prepared, and session settings; not behind a pooler.
        parameters: Further session settings, where it keeps such.
        on_notice: Called with the payload of notices, by channel; with ``""`` after a reconnect,
            since some may have been missed.
        on_lost: Called when the connection is found to be gone between two statements.
    """

    def __init__(
        self,
        url: str,
        schema: str,
        *,
        application: str,
        connect_timeout: float,
        deadline: float,
        prepared: bool = True,
        parameters: Mapping[str, str] | None = None,
        on_notice: Mapping[str, Callable[[str], None]] | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        self.connects = 0
        self._urls = apart(url)
        self._schema = schema
        self._application = application
        self._connect_timeout = connect_timeout
        self._deadline = deadline
        self._prepared = prepared
        self._parameters = dict(parameters or {})
        self._on_notice = dict(on_notice or {})
        self._on_lost = on_lost
        self._turn = asyncio.Lock()
        self._connection: Any = None
        self._cut = False

    async def run(self, op: Op[Answer]) -> Answer:
        """Run one operation, on a new connection where the last one was lost.

        Raises:
            Unavailable: No answer in time, no connection, or the server refused. What was asked
                for may have been done.
            StrandlineError: The server answered that something of ours is wrong, e.g.
                ``SchemaOutOfDate``.
        """
        async with self._turn:
            connection = await self._ready()
            session = AsyncpgSession(connection, self._schema)
            return await self._in_time(connection, session.run(op), self._deadline)

    async def transact(self, op: Op[Answer]) -> Answer:
        """Run one operation in one transaction, all of it within the deadline. Raises what ``run`` raises."""

        async def work(session: AsyncpgSession) -> Answer:
            async with session.connection.transaction():
                return await session.run(op)

        async with self._turn:
            connection = await self._ready()
            session = AsyncpgSession(connection, self._schema)
            return await self._in_time(connection, work(session), self._deadline)

    async def affected(self, statement: Statement[Any], /, *arguments: Any) -> int:
        """Run one statement that writes; to how many rows it did. Raises what ``run`` raises."""
        async with self._turn:
            connection = await self._ready()
            session = AsyncpgSession(connection, self._schema)
            return await self._in_time(
                connection, session.affected(statement, *arguments), self._deadline
            )

    def cut(self) -> None:
        """End the connection now: what is under way on it fails at once."""
        self._cut = True
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def close(self) -> None:
        """End the connection. The next operation would open a new one."""
        self.cut()
        await asyncio.sleep(0)  # lets what was under way find out

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection that is not known to be lost."""
        return self._connection is not None and not self._connection.is_closed()

    async def _ready(self) -> Any:
        self._cut = False
        connection = self._connection
        if connection is None or connection.is_closed():
            connection = await self._open()
        return connection

    async def _open(self) -> Any:
        try:
            connection: Any = await asyncpg.connect(
                self._urls[0],
                timeout=self._connect_timeout,
                statement_cache_size=50 if self._prepared else 0,
                target_session_attrs="read-write",
                server_settings={
                    "application_name": self._application[:63],
                    **(self._session_settings() if self._prepared else {}),
                },
            )
        except driver_errors() as error:
            self._urls.append(self._urls.pop(0))
            raise _unreachable(error) from error
        if self._cut:
            connection.terminate()
            raise DatabaseUnavailable("connect: the line was cut meanwhile")
        self._connection = connection
        for channel, call in self._on_notice.items():
            listening = connection.add_listener(channel, partial(_heard, call))
            await self._in_time(connection, listening, self._deadline)
        connection.add_termination_listener(self._lost)
        self.connects += 1
        if self.connects > 1:
            for call in self._on_notice.values():
                call("")
        return connection

    def _session_settings(self) -> dict[str, str]:
        limit = str(max(1, int(self._deadline * 1000)))
        return {**SERVER_SETTINGS, "statement_timeout": limit, **self._parameters}

    async def _in_time(
        self, connection: Any, work: Coroutine[Any, Any, Outcome], seconds: float
    ) -> Outcome:
        task = asyncio.create_task(work, name="strandline:line")
        try:
            done, _ = await asyncio.wait({task}, timeout=seconds)
            if done:
                return task.result()
        except BaseException as error:
            self._drop(connection, task)
            if isinstance(error, StrandlineError) or not isinstance(error, Exception):
                raise
            raise _unreachable(error) from error
        self._drop(connection, task)
        raise AnswerTimedOut(f"no answer within {seconds} s; the connection was ended")

    def _drop(self, connection: Any, task: asyncio.Task[Any]) -> None:
        """End *connection* first: to cancel the task before would send a cancel request."""
        if self._connection is connection:
            self._connection = None
        connection.terminate()
        task.add_done_callback(_ended)

    def _lost(self, connection: Any) -> None:
        if self._connection is connection:
            self._connection = None
            if self._on_lost is not None:
                self._on_lost()


def calm(loop: asyncio.AbstractEventLoop) -> None:
    """Let *loop*, which runs nothing but lines, be quiet about what asyncpg leaves behind.

    A TLS negotiation that is cut leaves a future with an error that nobody reads (asyncpg 0.32);
    it would be logged as an error, once for each try to connect through a black hole.
    """

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not (isinstance(error, ConnectionError) and "connection_lost" in str(error)):
            loop.default_exception_handler(context)

    loop.set_exception_handler(handle)


def apart(url: str) -> list[str]:
    """*url* once for each of its hosts."""
    parts = urlsplit(url)
    who, at, hosts = parts.netloc.rpartition("@")
    return [urlunsplit(parts._replace(netloc=f"{who}{at}{host}")) for host in hosts.split(",")]


def _heard(call: Callable[[str], None], _: Any, __: int, ___: str, payload: str) -> None:
    call(payload)


def _ended(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.tell("dropped_work_ended", error=error)


def _unreachable(error: Exception) -> Exception:
    found = translated(error, "line")
    if found is error:  # e.g. a wrong password: the server answered, and the text says what
        return DatabaseUnavailable(f"line: {error or type(error).__name__}")
    return found
