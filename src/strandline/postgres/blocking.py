"""A pool of blocking connections, for callers without an event loop. Needs the extra ``sync``.

There is no loop here to watch for leaked transactions: they are looked for whenever somebody takes
a connection. Nobody waits for them before that, and ``idle_transaction_timeout`` bounds the rest.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from strandline.errors import (
    DatabaseUnavailable,
    MissingExtra,
    NotOpen,
    PoolExhausted,
    StrandlineError,
    TransactionFailed,
    Unavailable,
)
from strandline.postgres.checkouts import Checkout, checkout, cut_words, leak_words, told
from strandline.postgres.faults import OVER, commit_failed, driver_errors, translated
from strandline.postgres.leak_watch import end_backend
from strandline.postgres.operations import Answer, BlockingSession, Op
from strandline.postgres.pool import FAILED_INSIDE, transaction_limits, unreachable
from strandline.postgres.pool_statistics import PoolStatistics
from strandline.settings import Settings
from strandline.telemetry.journal import Journal
from strandline.telemetry.signals import Signals

if TYPE_CHECKING:
    import psycopg
    from psycopg_pool import ConnectionPool

log = Journal("strandline.pools")

NAME = "sync"


class BlockingPool:
    """psycopg's pool, with our errors. Safe to use from many threads."""

    def __init__(self, url: str, settings: Settings, signals: Signals | None = None) -> None:
        self._url = url
        self._signals = signals or Signals()
        self._longest_wait = 0.0
        self._leaked = self._rolled_back = 0
        self._settings = settings
        self._is_pooled = settings.pooler == "transaction" and url != settings.direct_url
        self._pool: ConnectionPool[psycopg.Connection[Any]] | None = None
        self._checkouts: dict[int, Checkout] = {}

    def open(self) -> None:
        """Open the first connection.

        Raises:
            MissingExtra: psycopg is not installed.
            DatabaseUnavailable: The server cannot be reached.
            InvalidSetting: It is a pooler that the settings do not know of.
        """
        try:
            import psycopg_pool
        except ImportError as error:
            raise MissingExtra("strandline.sync", "sync") from error
        settings = self._settings
        self._connected().close()  # the pool would only say that it got none in time
        pool: ConnectionPool[psycopg.Connection[Any]] = psycopg_pool.ConnectionPool(
            self._url,
            min_size=1,
            max_size=settings.work_connections,
            timeout=settings.acquire_timeout,
            kwargs=self._options(),
            open=False,
        )
        try:
            pool.open(wait=True, timeout=settings.connect_timeout)
        except psycopg_pool.PoolTimeout as error:
            pool.close()
            raise DatabaseUnavailable(f"connect: no connection to the server: {error}") from error
        self._pool = pool

    def close(self) -> None:
        """Close every connection."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def statistics(self) -> PoolStatistics:
        """A picture of now."""
        pool = self._pool
        told = pool.get_stats() if pool is not None else {}
        size = told.get("pool_size", 0)
        idle = told.get("pool_available", 0)
        begun = [one.began for one in list(self._checkouts.values()) if one.began is not None]
        return PoolStatistics(
            name=NAME,
            size=size,
            in_use=size - idle,
            idle=idle,
            waiting=told.get("requests_waiting", 0),
            most=self._settings.work_connections,
            longest_wait=self._longest_wait,
            waited=told.get("requests_wait_ms", 0) / 1000,
            taken=told.get("requests_num", 0) - told.get("requests_errors", 0),
            exhausted=told.get("requests_errors", 0),
            oldest_transaction=time.monotonic() - min(begun) if begun else 0.0,
            leaked=self._leaked,
            rolled_back=self._rolled_back,
        )

    @contextmanager
    def session(self) -> Iterator[BlockingSession]:
        """A connection for the length of the block.

        Raises:
            PoolExhausted: None came free within ``acquire_timeout``.
        """
        with self._taken() as held:
            yield _NotingSession(held, self._settings.schema)

    def run(self, op: Op[Answer]) -> Answer:
        """Run one operation, without a transaction around it."""
        with self.session() as session:
            return session.run(op)

    @contextmanager
    def transaction(self) -> Iterator[BlockingSession]:
        """A connection inside a transaction: commits at the end of the block, or rolls back.

        Raises:
            TransactionFailed: A failed statement's error was caught inside the block, or the block
                took longer than ``leak_rollback_after``. All was rolled back.
        """
        with self._taken() as held:
            try:
                yield from self._transaction(held)
            except Unavailable as error:
                if held.cut and not held.ending:
                    raise TransactionFailed(held.cut) from error
                raise

    def _transaction(self, held: Checkout) -> Iterator[BlockingSession]:
        from psycopg.pq import TransactionStatus

        connection = held.connection
        try:
            with connection.transaction():
                held.began = time.monotonic()
                if self._is_pooled:
                    connection.execute(transaction_limits(self._settings))
                yield _NotingSession(held, self._settings.schema)
                if connection.info.transaction_status is TransactionStatus.INERROR:
                    raise TransactionFailed(FAILED_INSIDE)
                held.ending = True  # before the look at cut: who cuts looks the other way round
                if held.cut:
                    raise TransactionFailed(held.cut)
        except driver_errors() as error:
            if held.ending:
                raise commit_failed(error) from error
            raise translated(error, "transaction") from error

    @contextmanager
    def _taken(self) -> Iterator[Checkout]:
        from psycopg_pool import PoolTimeout

        pool = self._pool
        if pool is None:
            raise DatabaseUnavailable("the pool is closed")
        self._look_for_leaks()
        begun = time.monotonic()
        try:
            connection = pool.getconn()
        except PoolTimeout as error:
            self._look_for_leaks()
            raise self._none_in_time(time.monotonic() - begun) from error
        self._longest_wait = max(self._longest_wait, time.monotonic() - begun)
        held = checkout(NAME, connection)
        self._checkouts[id(held)] = held
        try:
            yield held
        finally:
            held.over = True
            self._checkouts.pop(id(held), None)
            pool.putconn(connection)

    def _none_in_time(self, seconds: float) -> StrandlineError:
        held = list(self._checkouts.values())
        most = self._settings.work_connections
        condition = f"{len(held)} of {most} in use{told(held)}"
        if len(held) < most:
            return DatabaseUnavailable(
                f"the server gave no new connection within {seconds:.1f} s ({condition});"
                " wait and try again"
            )
        return PoolExhausted(
            f"no connection came free within {seconds:.1f} s ({condition}):"
            " close transactions sooner, or raise work_connections"
        )

    def _look_for_leaks(self) -> None:
        settings = self._settings
        now = time.monotonic()
        for held in list(self._checkouts.values()):
            age = 0.0 if held.began is None or held.ending else now - held.began
            if age >= settings.leak_after and not held.reported:
                held.reported = True
                holder = held.holder()
                self._leaked += 1
                self._signals.tell("transaction_leaked", pool=NAME, age=age)
                log.tell(
                    "transaction_leaked",
                    summary=leak_words(holder, settings.leak_after),
                    pool=NAME,
                    seconds=age,
                    place=holder.place,
                    query=holder.query,
                )
            if 0 < settings.leak_rollback_after <= age and not held.cut and not self._is_pooled:
                self._end(held, age)

    def _end(self, held: Checkout, age: float) -> None:
        """End its backend: another thread's connection may not be touched from this one."""
        holder = held.holder()
        held.cut = cut_words(holder, self._settings.leak_rollback_after)
        if held.ending:
            held.cut = ""
            return
        log.tell("transaction_rolled_back", pool=NAME, holder=holder)
        self._rolled_back += 1
        self._signals.tell("transaction_rolled_back", pool=NAME, age=age)
        try:
            with self._connected() as aside:
                op = end_backend(held.connection.info.backend_pid, f"strandline {NAME}", age / 2)
                BlockingSession(aside, self._settings.schema).run(op)
        except Unavailable as error:
            held.cut = ""  # the next look tries again
            log.tell("rollback_failed", pool=NAME, error=error)

    def _connected(self) -> psycopg.Connection[Any]:
        import psycopg

        try:
            return psycopg.connect(self._url, **self._options())
        except driver_errors() as error:
            raise unreachable(error) from error

    def _options(self) -> dict[str, Any]:
        """What every connection is opened with. PgBouncer refuses ``options``."""
        settings = self._settings
        prepares = settings.prepared_statements and not self._is_pooled
        options = {
            "autocommit": True,
            "connect_timeout": max(2, int(settings.connect_timeout)),
            "application_name": f"strandline {NAME}",
            "prepare_threshold": 2 if prepares else None,
        }
        if not self._is_pooled:
            milliseconds = int(settings.idle_transaction_timeout * 1000)
            options["options"] = f"-c idle_in_transaction_session_timeout={milliseconds}"
        return options


class _NotingSession(BlockingSession):
    """A session whose last query is known to whoever waits for its connection."""

    __slots__ = ("_held",)

    def __init__(self, held: Checkout, schema: str) -> None:
        super().__init__(held.connection, schema)
        self._held = held

    def run(self, op: Op[Answer]) -> Answer:
        """See ``BlockingSession``."""
        if self._held.over:
            raise NotOpen(OVER)
        return super().run(_noted(op, self._held, self.schema))


def _noted(op: Op[Answer], held: Checkout, schema: str) -> Op[Answer]:
    """*op*, whose statements are noted before each is run."""
    try:
        call = next(op)
        while True:
            held.query = call.statement.sql(schema)
            try:
                rows = yield call
            except BaseException as error:  # the operation may clean up
                call = op.throw(error)
            else:
                call = op.send(rows)
    except StopIteration as stop:
        answer: Answer = stop.value
        return answer
