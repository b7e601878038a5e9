"""An event store on a database of the test's own, and the events that these tests append."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import msgspec

from strandline.events.append import Append, prepare
from strandline.events.codec import EventTypes
from strandline.events.event import Appended
from strandline.events.store import EventStore
from strandline.postgres.pools import Pools
from strandline.settings import Settings


@dataclass(frozen=True, slots=True)
class Opened:
    owner: str


@dataclass(frozen=True, slots=True)
class Deposited:
    amount: float


@dataclass(frozen=True, slots=True)
class Noted:
    """Holds JSON that nobody has checked."""

    json: msgspec.Raw


@dataclass(frozen=True, slots=True)
class Stranger:
    """Not registered."""

    amount: int


def account_types() -> EventTypes:
    types = EventTypes()
    types.register(Opened, "opened", aliases=["account-opened"])
    types.register(Deposited, "deposited")
    types.register(Noted, "noted")
    return types


def bad() -> Noted:
    """An event that only the server can refuse."""
    return Noted(msgspec.Raw(b'{"n": 1e999999}'))


def deposits(*amounts: float) -> list[Deposited]:
    return [Deposited(one) for one in amounts]


@dataclass
class Bench:
    """A store, and a look at what is really in the tables."""

    url: str
    settings: Settings
    pools: Pools
    store: EventStore
    types: EventTypes
    told: list[int] = field(default_factory=list)

    def prepare(self, stream: str, events: Any, **options: Any) -> Append:
        return prepare(stream, events, types=self.types, settings=self.settings, **options)

    async def append(self, stream: str, events: Any, **options: Any) -> Appended:
        return await self.store.append_prepared(self.prepare(stream, events, **options))

    async def rows(self, sql: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """Ask the database by a connection that goes through no proxy."""
        connection = await asyncpg.connect(self.url)
        try:
            return [tuple(row) for row in await connection.fetch(sql, *arguments)]
        finally:
            await connection.close()

    async def stored(self, stream: str) -> list[tuple[int, Any]]:
        """Version and amount of what *stream* really holds."""
        return await self.rows(
            "SELECT version, (data->>'amount')::float FROM strandline.events"
            " WHERE stream = $1 ORDER BY position",
            stream,
        )

    async def counts(self) -> tuple[int, int]:
        """Streams and events in the database."""
        ((streams, events),) = await self.rows(
            "SELECT (SELECT count(*) FROM strandline.streams),"
            " (SELECT count(*) FROM strandline.events)"
        )
        return streams, events


@asynccontextmanager
async def opened(url: str, *, through: str | None = None, **options: Any) -> AsyncIterator[Bench]:
    """A store on the database at *url*, reached *through* a proxy's URL if there is one."""
    settings = Settings(database_url=url, **options)
    pools = Pools.to(through or url, settings)
    await pools.open()
    types = account_types()
    told: list[int] = []
    store = EventStore(
        pools, types, settings, on_appended=lambda position, _: told.append(position)
    )
    try:
        yield Bench(url, settings, pools, store, types, told)
    finally:
        await store.close()
        await pools.close(timeout=1.0)


async def settle(bench: Bench) -> None:
    """Move the mark to the end, as the detector would."""
    await bench.rows(
        "UPDATE strandline.high_water SET position ="
        " (SELECT coalesce(max(position), 0) FROM strandline.events)"
    )


def amounts(events: Iterable[Any]) -> list[float]:
    return [one.data.amount for one in events]


async def until(what: Callable[[], Awaitable[Any] | Any], timeout: float = 10.0) -> Any:
    """Ask *what* until it answers something true."""
    async with asyncio.timeout(timeout):
        while True:
            answer = what()
            answer = await answer if asyncio.iscoroutine(answer) else answer
            if answer:
                return answer
            await asyncio.sleep(0.005)


async def waiting_backends(bench: Bench) -> int:
    """How many of the store's calls wait for a lock."""
    ((number,),) = await bench.rows(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'strandline work' AND wait_event_type = 'Lock'"
    )
    return int(number)


@asynccontextmanager
async def locked(bench: Bench, *streams: str) -> AsyncIterator[Any]:
    """Hold the rows of existing streams, so that appends to them wait at the server."""
    connection = await asyncpg.connect(bench.url)
    try:
        async with connection.transaction():
            await connection.execute(
                "SELECT FROM strandline.streams WHERE id = ANY ($1) FOR UPDATE", list(streams)
            )
            yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def both_senders_busy(bench: Bench) -> AsyncIterator[list[asyncio.Task[Appended]]]:
    """Two calls at the server that wait there until the block ends."""
    for stream in ("hold-1", "hold-2"):
        await bench.append(stream, Deposited(0))
    async with locked(bench, "hold-1", "hold-2"):
        held = []
        for number in (1, 2):
            held.append(asyncio.create_task(bench.append(f"hold-{number}", Deposited(1))))
            await until(lambda number=number: is_waiting(bench, number))
        yield held
    await asyncio.gather(*held)


async def is_waiting(bench: Bench, number: int) -> bool:
    return await waiting_backends(bench) == number


async def answers(tasks: list[asyncio.Task[Appended]]) -> list[Any]:
    async with asyncio.timeout(30):
        return list(await asyncio.gather(*tasks, return_exceptions=True))


def start(bench: Bench, stream: str, events: Any, **options: Any) -> asyncio.Task[Appended]:
    return asyncio.create_task(bench.append(stream, events, **options))
