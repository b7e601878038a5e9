"""A workbench for the high-water tests: a detector, and transactions to trouble it with."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import pytest

from strandline.clock import Clock
from strandline.events.high_water import HighWater
from strandline.postgres.pools import Pool
from strandline.settings import Settings
from strandline.telemetry.signals import Notice, Signals

APPEND = "SELECT position FROM strandline.append($1, $2)"


@dataclass
class Lab:
    """One database, one control pool, any number of detectors and writers."""

    url: str
    settings: Settings
    control: Pool
    signals: Signals = field(default_factory=Signals)
    notices: list[Notice] = field(default_factory=list)
    moves: list[int] = field(default_factory=list)
    opened: list[Any] = field(default_factory=list)

    def detector(self, clock: Clock | None = None) -> HighWater:
        """A new detector, as after a restart."""
        return HighWater(
            self.control, self.settings, self.signals, on_moved=self.moves.append, clock=clock
        )

    async def connect(self, name: str = "a writer", **options: str) -> Any:
        """A connection; cut at the end of the test."""
        connection = await asyncpg.connect(
            self.url, server_settings={"application_name": name, **options}
        )
        self.opened.append(connection)
        return connection

    async def writing(self, name: str = "a writer", stream: str | None = None) -> tuple[Any, int]:
        """A connection inside a transaction that has drawn a position."""
        connection = await self.connect(name)
        await connection.execute("BEGIN")
        return connection, await append(connection, stream or f"{name} {len(self.opened)}")

    async def committed(self, events: int = 1) -> int:
        """Append and commit; the last position."""
        connection = await self.connect()
        position = await append(connection, f"done {len(self.opened)}", events)
        await connection.close()
        return position

    async def rolled_back(self, events: int = 1) -> int:
        """Burn positions; the last one."""
        connection, position = await self.writing()
        if events > 1:
            position = await append(connection, "more", events - 1)
        await connection.execute("ROLLBACK")
        return position

    async def gaps(self) -> list[tuple[int, int, str]]:
        """The ledger."""
        connection = await self.connect()
        rows = await connection.fetch("SELECT first, last, kind FROM strandline.gaps ORDER BY 1")
        await connection.close()
        return [tuple(row) for row in rows]

    async def published(self) -> int:
        """The mark in the table."""
        connection = await self.connect()
        mark = await connection.fetchval("SELECT position FROM strandline.high_water")
        await connection.close()
        return int(mark)

    def told(self, name: str) -> list[dict[str, Any]]:
        """Facts of the notices of that name."""
        return [one.facts for one in self.notices if one.name == name]

    async def until(self, what: Callable[[], Awaitable[Any]], timeout: float = 10.0) -> Any:
        """Call *what* until it answers something true."""
        async with asyncio.timeout(timeout):
            while not (answer := await what()):
                await asyncio.sleep(0.005)
            return answer

    async def gone(self, pid: int) -> None:
        """Wait until the backend *pid* has ended."""
        watcher = await self.connect()
        query = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)"
        await self.until(lambda: watcher.fetchval(query, pid))
        await watcher.close()


async def append(connection: Any, stream: str, events: int = 1) -> int:
    """Append through the SQL function; the last position."""
    body = json.dumps([{"type": "t", "data": {}}] * events)
    return int(await connection.fetchval(APPEND, stream, body))


@asynccontextmanager
async def _open_lab(url: str, **options: Any) -> AsyncIterator[Lab]:
    settings = Settings(database_url=url, **{"probe_interval": 0.01, **options})
    control = Pool("control", url, 2, settings)
    await control.open()
    lab = Lab(url, settings, control)
    lab.signals.listen(lab.notices.append)
    try:
        yield lab
    finally:
        await control.close()
        for connection in lab.opened:
            if not connection.is_closed():
                connection.terminate()
        admin = await asyncpg.connect(url)
        for gid in await admin.fetch(
            "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
        ):
            await admin.execute(f"ROLLBACK PREPARED '{gid[0]}'")
        await admin.close()


@pytest.fixture
def open_lab() -> Callable[..., AbstractAsyncContextManager[Lab]]:
    """``async with open_lab(database_url, stale_after=0.2) as lab``."""
    return _open_lab
