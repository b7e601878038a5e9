"""Read models that show every event applied twice, left out, or out of order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from strandline.app import App
from strandline.events.event import RecordedEvent
from strandline.projections.handlers import apply, delete, key
from strandline.projections.multi_stream import MultiStream
from strandline.projections.single_stream import SingleStream
from strandline.telemetry.signals import Notice


@dataclass(frozen=True)
class Ticked:
    number: int = 0


@dataclass(frozen=True)
class Dropped:
    pass


@dataclass
class Seen:
    versions: list[int] = field(default_factory=list)


class Versions(SingleStream[Seen]):
    """Of each stream the versions applied, since it was dropped the last time."""

    @apply
    def ticked(self, seen: Seen, event: RecordedEvent[Ticked]) -> None:
        seen.versions.append(event.version)

    @delete
    def dropped(self, event: Dropped) -> None: ...


class Positions(MultiStream[Seen]):
    """Of every third position each, in one of three documents."""

    @key
    def third(self, event: RecordedEvent[Ticked | Dropped]) -> int:
        return event.position % 3

    @apply
    def happened(self, seen: Seen, event: RecordedEvent[Ticked | Dropped]) -> None:
        seen.versions.append(event.position)


def tally_app(url: str, *, lifecycle: str = "async", **settings: Any) -> App:
    """An app with both read models, which rests only a moment after failures."""
    app = App("tally", url, **{"failure_pause": 0.1, **settings})
    app.event("ticked")(Ticked)
    app.event("dropped")(Dropped)
    app.projection("versions", lifecycle=lifecycle)(Versions)
    app.projection("positions", lifecycle=lifecycle)(Positions)
    return app


async def fill(app: App, events: int, *, streams: int = 7) -> int:
    """Append *events*, ten at a time, one stream after the other; the last position."""
    last = 0
    for begun in range(0, events, 10):
        batch = [Ticked(number) for number in range(begun, min(begun + 10, events))]
        last = (await app.append(f"s{begun // 10 % streams}", batch)).position
    return last


async def assert_applied_exactly_once(app: App) -> None:
    """Both read models hold every event once and in order."""
    versions: dict[str, Seen] = {}
    positions: dict[str, Seen] = {}
    async for event in app.read_all(settled=False):
        if isinstance(event.data, Ticked):
            versions.setdefault(event.stream, Seen()).versions.append(event.version)
        else:
            versions.pop(event.stream, None)
        positions.setdefault(str(event.position % 3), Seen()).versions.append(event.position)

    assert dict(await app.query(Versions)) == versions
    assert dict(await app.query(Positions)) == positions


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    """A connection that is not the app's."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def end_backends(connection: Any, application: str = "strandline") -> int:
    """End the app's backends of this database, as an operator or a crash would; how many."""
    ended: int = await connection.fetchval(
        """SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid()
              AND application_name LIKE $1 || '%'""",
        application,
    )
    return ended


def committed(app: App, shard: str = "") -> Callable[[int], Awaitable[None]]:
    """A function that waits until so many batches (of *shard*) are committed from now on."""
    count = 0
    moved = asyncio.Event()

    def hear(notice: Notice) -> None:
        nonlocal count
        if notice.name == "batch_committed" and notice.facts["shard"].startswith(shard):
            count += 1
            moved.set()

    app.signals.listen(hear)

    async def until(wanted: int) -> None:
        async with asyncio.timeout(20):
            while count < wanted:
                moved.clear()
                await moved.wait()

    return until


async def holds(what: Callable[[], Any], timeout: float = 10.0) -> Any:
    """Call *what* until it (or what it awaits) is true; that."""
    async with asyncio.timeout(timeout):
        while True:
            found = what()
            if isinstance(found, Awaitable):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.005)
