"""A pool of blocking connections, for callers without an event loop. Needs the extra ``sync``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from strandline.errors import (
    DatabaseUnavailable,
    MissingExtra,
    PoolExhausted,
    TransactionFailed,
)
from strandline.postgres.faults import commit_failed, driver_errors, translated
from strandline.postgres.operations import Answer, BlockingSession, Op
from strandline.postgres.pools import FAILED_INSIDE
from strandline.settings import Settings

if TYPE_CHECKING:
    import psycopg
    from psycopg_pool import ConnectionPool


class BlockingPool:
    """psycopg's pool, with our errors. Safe to use from many threads."""

    def __init__(self, url: str, settings: Settings) -> None:
        self._url = url
        self._settings = settings
        self._pool: ConnectionPool[psycopg.Connection[Any]] | None = None

    def open(self) -> None:
        """Open the first connection.

        Raises:
            MissingExtra: psycopg is not installed.
            DatabaseUnavailable: The server cannot be reached.
        """
        try:
            import psycopg_pool
        except ImportError as error:
            raise MissingExtra("strandline.sync", "sync") from error
        settings = self._settings
        milliseconds = int(settings.idle_transaction_timeout * 1000)
        pool: ConnectionPool[psycopg.Connection[Any]] = psycopg_pool.ConnectionPool(
            self._url,
            min_size=1,
            max_size=settings.work_connections,
            timeout=settings.acquire_timeout,
            kwargs={
                "autocommit": True,
                "connect_timeout": max(2, int(settings.connect_timeout)),
                "application_name": "strandline sync",
                "options": f"-c idle_in_transaction_session_timeout={milliseconds}",
                "prepare_threshold": 2 if settings.prepared_statements else None,
            },
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

    @contextmanager
    def session(self) -> Iterator[BlockingSession]:
        """A connection for the length of the block.

        Raises:
            PoolExhausted: None came free within ``acquire_timeout``.
        """
        from psycopg_pool import PoolTimeout

        if self._pool is None:
            raise DatabaseUnavailable("the pool is closed")
        try:
            connection = self._pool.getconn()
        except PoolTimeout as error:
            raise PoolExhausted(
                f"no connection came free within {self._settings.acquire_timeout} s:"
                " close transactions sooner, or raise work_connections"
            ) from error
        try:
            yield BlockingSession(connection, self._settings.schema)
        finally:
            self._pool.putconn(connection)

    def run(self, op: Op[Answer]) -> Answer:
        """Run one operation, without a transaction around it."""
        with self.session() as session:
            return session.run(op)

    @contextmanager
    def transaction(self) -> Iterator[BlockingSession]:
        """A connection inside a transaction: commits at the end of the block, or rolls back."""
        from psycopg.pq import TransactionStatus

        with self.session() as session:
            committing = False
            try:
                with session.connection.transaction():
                    yield session
                    if session.connection.info.transaction_status is TransactionStatus.INERROR:
                        raise TransactionFailed(FAILED_INSIDE)
                    committing = True
            except driver_errors() as error:
                if committing:
                    raise commit_failed(error) from error
                raise translated(error, "transaction") from error
