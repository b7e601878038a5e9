"""Work and control pools: the mark and the checks never queue behind work.

Both are asyncpg pools. ``work`` carries appends, reads and batches; ``control`` carries the
high-water mark, checks and commands. LISTEN has a connection of its own (``listener``).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg

from strandline.errors import (
    DatabaseUnavailable,
    PoolExhausted,
    TransactionFailed,
)
from strandline.postgres.faults import commit_failed, driver_errors, translated
from strandline.postgres.operations import Answer, AsyncpgSession, Op
from strandline.settings import Settings

log = logging.getLogger("strandline.pools")

FAILED_INSIDE = (
    "a statement failed inside the transaction and its error was caught there, so all of it"
    " was rolled back: let the error leave the block, or use a savepoint"
)


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """How full a pool is."""

    name: str
    size: int
    in_use: int
    idle: int
    waiting: int
    most: int
    longest_wait: float


class Pool:
    """A named pool of connections with a bounded wait and an explanation when it is empty."""

    def __init__(self, name: str, url: str, most: int, settings: Settings) -> None:
        self.name = name
        self.schema = settings.schema
        self._url = url
        self._most = most
        self._settings = settings
        self._pool: asyncpg.Pool[Any] | None = None
        self._waiting = 0
        self._longest_wait = 0.0
        self._taken: dict[int, float] = {}

    async def open(self) -> None:
        """Open the first connection.

        Raises:
            DatabaseUnavailable: The server cannot be reached; the message says what it answered.
        """
        settings = self._settings
        try:
            self._pool = await asyncpg.create_pool(
                self._url,
                min_size=1,
                max_size=self._most,
                timeout=settings.connect_timeout,
                command_timeout=settings.statement_timeout,
                statement_cache_size=200 if settings.prepared_statements else 0,
                max_inactive_connection_lifetime=300.0,
                reset=_keep,
                server_settings={
                    "application_name": f"strandline {self.name}",
                    "idle_in_transaction_session_timeout": str(
                        int(settings.idle_transaction_timeout * 1000)
                    ),
                    "TimeZone": "UTC",
                    "jit": "off",  # our statements are short; compiling one takes longer
                },
            )
        except driver_errors() as error:
            raise _unreachable(error) from error

    async def close(self, *, timeout: float = 5.0) -> None:
        """Close every connection; those still in use after *timeout* seconds are cut."""
        if self._pool is None:
            return
        pool, self._pool = self._pool, None
        try:
            async with asyncio.timeout(timeout):
                await pool.close()
        except TimeoutError:
            pool.terminate()

    @asynccontextmanager
    async def session(self, *, timeout: float | None = None) -> AsyncIterator[AsyncpgSession]:
        """A connection for the length of the block.

        Raises:
            PoolExhausted: None came free in *timeout* seconds (default: ``acquire_timeout``).
            DatabaseUnavailable: A new one was needed and could not be opened.
        """
        pool = self._pool
        if pool is None:
            raise DatabaseUnavailable(f"pool {self.name!r} is closed")
        timeout = self._settings.acquire_timeout if timeout is None else timeout
        connection = await self._acquire(pool, timeout)
        self._taken[id(connection)] = time.monotonic()
        try:
            yield AsyncpgSession(connection, self.schema)
        finally:
            self._taken.pop(id(connection), None)
            try:
                await pool.release(connection, timeout=5.0)
            except driver_errors() as error:  # asyncpg has closed it; what the block did stands
                log.debug("a connection of pool %s was dropped: %r", self.name, error)

    async def run(self, op: Op[Answer]) -> Answer:
        """Run one operation on a connection of this pool, without a transaction around it."""
        async with self.session() as session:
            return await session.run(op)

    @asynccontextmanager
    async def transaction(self, *, timeout: float | None = None) -> AsyncIterator[AsyncpgSession]:
        """A connection inside a transaction: commits at the end of the block, or rolls back."""
        async with self.session(timeout=timeout) as session:
            try:
                transaction = session.connection.transaction()
                await transaction.start()
            except driver_errors() as error:
                raise translated(error, "begin") from error
            try:
                yield session
            except BaseException:
                await _rolled_back(transaction)
                raise
            try:
                if session.doubtful:
                    await _refuse_failed(session)
            except driver_errors() as error:
                raise translated(error, "commit") from error
            try:
                await transaction.commit()
            except driver_errors() as error:
                raise commit_failed(error) from error

    def statistics(self) -> PoolStatistics:
        """A picture of now."""
        size = self._pool.get_size() if self._pool else 0
        idle = self._pool.get_idle_size() if self._pool else 0
        return PoolStatistics(
            name=self.name,
            size=size,
            in_use=size - idle,
            idle=idle,
            waiting=self._waiting,
            most=self._most,
            longest_wait=self._longest_wait,
        )

    async def _acquire(self, pool: asyncpg.Pool[Any], timeout: float) -> Any:
        begun = time.monotonic()
        self._waiting += 1
        try:
            return await pool.acquire(timeout=timeout)
        except TimeoutError as error:
            oldest = max((begun - since for since in self._taken.values()), default=0.0)
            raise PoolExhausted(
                f"pool {self.name!r} gave no connection within {timeout} s"
                f" ({len(self._taken)} of {self._most} in use, {self._waiting} waiting,"
                f" the oldest for {oldest:.1f} s): close transactions sooner, or raise"
                f" {self.name}_connections"
            ) from error
        except driver_errors() as error:
            raise _unreachable(error) from error
        finally:
            self._waiting -= 1
            self._longest_wait = max(self._longest_wait, time.monotonic() - begun)


@dataclass(slots=True)
class Pools:
    """The pools of one app on one database."""

    work: Pool
    control: Pool

    @classmethod
    def to(cls, url: str, settings: Settings) -> Pools:
        """Pools for the database at *url*, not yet open."""
        return cls(
            work=Pool("work", url, settings.work_connections, settings),
            control=Pool("control", url, settings.control_connections, settings),
        )

    async def open(self) -> None:
        """Open both; neither stays open when one cannot be."""
        await self.control.open()
        try:
            await self.work.open()
        except BaseException:
            await self.control.close()
            raise

    async def close(self, *, timeout: float = 5.0) -> None:
        """Close both."""
        await self.work.close(timeout=timeout)
        await self.control.close(timeout=timeout)


async def _keep(_: Any) -> None:
    """Replaces asyncpg's reset query: one round trip saved, since we leave no session state."""


async def _refuse_failed(session: AsyncpgSession) -> None:
    """PostgreSQL answers COMMIT of a failed transaction with ROLLBACK, and no error: ask before."""
    try:
        await session.connection.execute("SELECT")
    except asyncpg.InFailedSQLTransactionError as error:
        raise TransactionFailed(FAILED_INSIDE) from error


async def _rolled_back(transaction: Any) -> None:
    try:
        await transaction.rollback()
    except driver_errors():
        pass  # the connection is gone, and the transaction with it


def _unreachable(error: Exception) -> Exception:
    found = translated(error, "connect")
    if found is error:  # e.g. a wrong password: the server answered, and the text says what
        return DatabaseUnavailable(f"connect: {error}")
    return found
