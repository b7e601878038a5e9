"""One pool of connections: waits are bounded, and whoever waits in vain is told who holds what."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg

from strandline.errors import (
    AnswerTimedOut,
    DatabaseUnavailable,
    PoolExhausted,
    StrandlineError,
    TransactionFailed,
    Unavailable,
)
from strandline.postgres.checkouts import Checkout, Holder, checkout, told
from strandline.postgres.connections import PooledConnection, only_primary
from strandline.postgres.faults import (
    READ_ONLY,
    commit_failed,
    driver_errors,
    sqlstate,
    translated,
)
from strandline.postgres.operations import Answer, AsyncpgSession, Op
from strandline.postgres.pool_statistics import PoolStatistics
from strandline.postgres.statements import SqlFile
from strandline.settings import Settings
from strandline.telemetry.journal import Journal

log = Journal("strandline.pools")

FAILED_INSIDE = (
    "a statement failed inside the transaction and its error was caught there, so all of it"
    " was rolled back: let the error leave the block, or use a savepoint"
)

# What tells of a closed connection; a TimeoutError or OSError in a block may be the block's own.
_OF_THE_CONNECTION = (Unavailable, asyncpg.PostgresError, asyncpg.InterfaceError)

_sql = SqlFile(__name__)
TRANSACTION_LIMITS = _sql.none("transaction_limits")


class Pool:
    """A named pool of connections with a bounded wait and an explanation when it is empty.

    Args:
        name: What it is for: ``work``, ``control``, ``cli``.
        url: Where its connections lead.
        most: Connections at the most.
        settings: Limits, and whether *url* leads to a pooler.
        application: What stands behind the pool's name in ``application_name``.
    """

    def __init__(
        self, name: str, url: str, most: int, settings: Settings, *, application: str = ""
    ) -> None:
        self.name = name
        self.schema = settings.schema
        self.url = url
        self.application = f"strandline {name} {application}".rstrip()
        self.is_pooled = settings.pooler == "transaction" and url != settings.direct_url
        self.leaked = self.rolled_back = 0
        self._most = most
        self._settings = settings
        self._pool: asyncpg.Pool[Any] | None = None
        self._closing = False
        self._checkouts: dict[int, Checkout] = {}
        self._waiting = self._acquired = self._exhausted = 0
        self._longest_wait = self._waited = 0.0

    async def open(self) -> None:
        """Open the first connection.

        Raises:
            DatabaseUnavailable: The server cannot be reached; the message says what it answered.
            InvalidSetting: It is a pooler that the settings do not know of.
        """
        settings = self._settings
        prepares = settings.prepared_statements and not self.is_pooled
        try:
            self._pool = await asyncpg.create_pool(
                self.url,
                min_size=1,
                max_size=self._most,
                timeout=settings.connect_timeout,
                command_timeout=settings.statement_timeout,
                statement_cache_size=200 if prepares else 0,
                max_inactive_connection_lifetime=300.0,
                connection_class=PooledConnection,
                init=self._initialized if self.is_pooled else None,
                reset=_keep,
                server_settings=self._parameters(),
                **only_primary(self.url),
            )
        except driver_errors() as error:
            raise unreachable(error) from error
        self._closing = False

    async def close(self, *, timeout: float = 5.0) -> None:
        """Close every connection; those still in use after *timeout* seconds are cut."""
        if self._pool is None or self._closing:
            return
        self._closing = True
        try:
            async with asyncio.timeout(timeout):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()
        self._pool = None

    @asynccontextmanager
    async def session(self, *, timeout: float | None = None) -> AsyncIterator[AsyncpgSession]:
        """A connection for the length of the block.

        Raises:
            PoolExhausted: None came free in *timeout* seconds (default: ``acquire_timeout``).
            DatabaseUnavailable: A new one was needed and could not be opened.
        """
        held = await self._taken(timeout)
        try:
            yield AsyncpgSession(held.connection, self.schema)
        except Unavailable as error:
            await self._left_behind(error)
            raise
        finally:
            await self._returned(held)

    async def run(self, op: Op[Answer]) -> Answer:
        """Run one operation on a connection of this pool, without a transaction around it."""
        held = await self._taken(None)
        try:
            return await AsyncpgSession(held.connection, self.schema).run(op)
        except Unavailable as error:
            await self._left_behind(error)
            raise
        finally:
            await self._returned(held)

    @asynccontextmanager
    async def transaction(
        self, *, timeout: float | None = None, watched: bool = True
    ) -> AsyncIterator[AsyncpgSession]:
        """A connection inside a transaction: commits at the end of the block, or rolls back.

        Args:
            timeout: Seconds to wait for the connection, and again for the begin.
            watched: Whether it is a leak when it lasts. A migration may last.

        Raises:
            PoolExhausted: As ``session``.
            AnswerTimedOut: The server did not begin the transaction in *timeout* seconds.
            TransactionFailed: A failed statement's error was caught inside the block, or the block
                took longer than ``leak_rollback_after``. All was rolled back.
            OutcomeUnknown: The connection broke during the commit.
        """
        held = await self._taken(timeout)
        session = AsyncpgSession(held.connection, self.schema)
        try:
            transaction = await self._begun(held, timeout)
            held.watched = watched
            try:
                yield session
            except BaseException as error:
                held.ending = True
                await self._rolled_back(held, transaction)
                if held.cut and isinstance(error, _OF_THE_CONNECTION):
                    raise TransactionFailed(held.cut) from error
                raise
            await self._committed(held, session, transaction)
        except Unavailable as error:
            await self._left_behind(error)
            raise
        finally:
            session.over = True
            await self._returned(held)

    async def transact(self, op: Op[Answer]) -> Answer:
        """Run one operation in one transaction. Raises what ``transaction`` raises."""
        async with self.transaction() as session:
            return await session.run(op)

    def statistics(self) -> PoolStatistics:
        """A picture of now."""
        size = self._pool.get_size() if self._pool else 0
        idle = self._pool.get_idle_size() if self._pool else 0
        begun = [one.began for one in self._checkouts.values() if one.began is not None]
        return PoolStatistics(
            name=self.name,
            size=size,
            in_use=size - idle,
            idle=idle,
            waiting=self._waiting,
            most=self._most,
            longest_wait=self._longest_wait,
            waited=self._waited,
            taken=self._acquired,
            exhausted=self._exhausted,
            oldest_transaction=time.monotonic() - min(begun) if begun else 0.0,
            leaked=self.leaked,
            rolled_back=self.rolled_back,
        )

    def holders(self) -> list[Holder]:
        """Who holds connections now, the oldest first."""
        oldest = sorted(self._checkouts.values(), key=lambda one: one.since)
        return [one.holder() for one in oldest]

    def checkouts(self) -> list[Checkout]:
        """The connections in use."""
        return list(self._checkouts.values())

    def cut(self, held: Checkout, reason: str) -> None:
        """Close the connection of *held* under its holder, who is told *reason*."""
        held.cut = reason
        self._checkouts.pop(id(held), None)
        _closed(held.connection)

    def condition(self) -> str:
        """How full it is and who holds it, in words, for the end of a message."""
        return (
            f"{len(self._checkouts)} of {self._most} in use, {self._waiting} waiting"
            f"{told(self._checkouts.values())}"
        )

    def _parameters(self) -> dict[str, str]:
        """Startup parameters. PgBouncer refuses those that it cannot keep per client."""
        tracked = {"application_name": self.application, "TimeZone": "UTC"}
        if self.is_pooled:
            return tracked
        return tracked | {
            "idle_in_transaction_session_timeout": str(
                int(self._settings.idle_transaction_timeout * 1000)
            ),
            "jit": "off",  # our statements are short; compiling one takes longer
        }

    async def _initialized(self, connection: Any) -> None:
        connection.with_begin = transaction_limits(self._settings)

    async def _taken(self, timeout: float | None) -> Checkout:
        pool = self._pool
        if pool is None or self._closing:
            raise DatabaseUnavailable(f"pool {self.name!r} is closed")
        connection = await self._acquire(pool, self._limit(timeout))
        held = checkout(self.name, connection)
        self._checkouts[id(held)] = held
        return held

    async def _returned(self, held: Checkout) -> None:
        self._checkouts.pop(id(held), None)
        pool = self._pool
        if pool is None:  # closed meanwhile, and the connection with it
            return
        try:
            await pool.release(held.connection, timeout=5.0)
        except driver_errors() as error:  # asyncpg has closed it; what the block did stands
            log.tell("connection_dropped", pool=self.name, error=error)

    async def _acquire(self, pool: asyncpg.Pool[Any], timeout: float) -> Any:
        begun = time.monotonic()
        self._waiting += 1
        try:
            connection = await pool.acquire(timeout=timeout)
        except TimeoutError as error:
            raise self._none_in_time(time.monotonic() - begun) from error
        except driver_errors() as error:
            raise unreachable(error) from error
        finally:
            self._waiting -= 1
            waited = time.monotonic() - begun
            self._waited += waited
            self._longest_wait = max(self._longest_wait, waited)
        self._acquired += 1
        return connection

    def _none_in_time(self, seconds: float) -> StrandlineError:
        if len(self._checkouts) < self._most:  # one was to be opened
            return DatabaseUnavailable(
                f"pool {self.name!r}: the server gave no new connection within {seconds:.1f} s"
                f" ({self.condition()}); wait and try again"
            )
        self._exhausted += 1
        return PoolExhausted(
            f"pool {self.name!r} gave no connection within {seconds:.1f} s"
            f" ({self.condition()}): close transactions sooner, or raise {self.name}_connections"
        )

    async def _begun(self, held: Checkout, timeout: float | None) -> Any:
        transaction = held.connection.transaction()
        begun = time.monotonic()
        try:
            async with asyncio.timeout(self._limit(timeout)):
                await transaction.start()
        except TimeoutError as error:
            _closed(held.connection)  # in an unknown state; its release would wait for it
            raise AnswerTimedOut(
                f"begin: no answer within {time.monotonic() - begun:.1f} s"
                f" (pool {self.name!r}: {self.condition()}){self._why_no_begin()}"
            ) from error
        except driver_errors() as error:
            raise translated(error, "begin") from error
        held.began = begun
        return transaction

    def _why_no_begin(self) -> str:
        if self.is_pooled:
            return "; has the pooler a server connection free (default_pool_size)?"
        return "; is the server overloaded, or cut off?"

    async def _committed(self, held: Checkout, session: AsyncpgSession, transaction: Any) -> None:
        if held.cut:
            raise TransactionFailed(held.cut)
        held.ending = True
        try:
            if session.doubtful:
                await _refuse_failed(session)
        except driver_errors() as error:
            raise translated(error, "commit") from error
        try:
            await transaction.commit()
        except driver_errors() as error:
            raise commit_failed(error) from error

    async def _rolled_back(self, held: Checkout, transaction: Any) -> None:
        try:
            async with asyncio.timeout(self._settings.acquire_timeout):
                await transaction.rollback()
        except driver_errors():  # closing the connection rolls back as well
            _closed(held.connection)

    async def _left_behind(self, error: Unavailable) -> None:
        """After a fail-over: leave a server that takes no writes any more, with all connections."""
        if self._pool is not None and sqlstate(error.__cause__) == READ_ONLY:
            await self._pool.expire_connections()

    def _limit(self, timeout: float | None) -> float:
        return self._settings.acquire_timeout if timeout is None else timeout


def _closed(connection: Any) -> None:
    """Close at once what may be closed and back in the pool already."""
    with suppress(asyncpg.InterfaceError):
        connection.terminate()


async def _keep(_: Any) -> None:
    """Replaces asyncpg's reset query: one round trip saved, since we leave no session state."""


async def _refuse_failed(session: AsyncpgSession) -> None:
    """PostgreSQL answers COMMIT of a failed transaction with ROLLBACK, and no error: ask before."""
    try:
        await session.connection.execute("SELECT")
    except asyncpg.InFailedSQLTransactionError as error:
        raise TransactionFailed(FAILED_INSIDE) from error


def transaction_limits(settings: Settings) -> str:
    """SQL for the begin of a transaction where a pooler takes no startup parameters."""
    milliseconds = str(int(settings.idle_transaction_timeout * 1000))
    return TRANSACTION_LIMITS.about(milliseconds=milliseconds).sql(settings.schema)


def unreachable(error: Exception) -> Exception:
    """The strandline error for a connection that could not be opened."""
    found = translated(error, "connect")
    if found is error:  # e.g. a wrong password: the server answered, and the text says what
        return DatabaseUnavailable(f"connect: {error}")
    return found
