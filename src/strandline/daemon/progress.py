"""How far shards are, and waiting until they are far enough."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from strandline.daemon.checkpoint import positions
from strandline.errors import AnswerTimedOut, Unavailable
from strandline.postgres.listener import Listener
from strandline.postgres.operations import Op, many
from strandline.postgres.pools import Pool
from strandline.postgres.statements import SqlFile

CHANNEL = "progress"
POLL = 0.05  # seconds between looks while somebody waits and no notice comes


@dataclass(frozen=True, slots=True)
class ShardProgress:
    """A shard as the database knows it. Fields are None for one that never ran."""

    name: str
    position: int | None
    epoch: int | None
    owner: UUID | None
    state: str | None
    node: str | None
    reason: str | None
    failure: str | None
    rate: float
    changed_at: datetime | None
    waiting_since: datetime | None


@dataclass(frozen=True, slots=True)
class ShardRow:
    """A row of shards."""

    name: str
    position: int
    epoch: int
    owner: UUID | None
    claimed_at: datetime | None


_sql = SqlFile(__name__)
PROGRESS = _sql.many("shard_progress", ShardProgress)
ALL = _sql.many("all_shards", ShardRow)


def progress(shards: Sequence[str]) -> Op[list[ShardProgress]]:
    """How far *shards* are, one row each, by name."""
    return (yield from many(PROGRESS, list(shards)))


def all_shards() -> Op[list[ShardRow]]:
    """Every shard that ever ran, by name."""
    return (yield from many(ALL))


class Waiting:
    """Waits for shards to pass a position: woken by notices, polling as well.

    However many wait, one look at a time is under way, and it looks for all of them: the
    connections are those that the high-water mark needs.
    """

    def __init__(self, pool: Pool, listener: Listener) -> None:
        self._pool = pool
        self._moved = asyncio.Event()
        self._wanted: Counter[str] = Counter()
        self._looking: asyncio.Task[dict[str, int]] | None = None
        self._known: dict[str, int] = {}
        self._seen: asyncio.Event | None = None  # the latest wake-up that the last look followed
        self._looked_at = 0.0
        self._stop_hearing = listener.on(CHANNEL, lambda _: self.wake())

    def wake(self) -> None:
        """Something moved: let those who wait look again."""
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    def close(self) -> None:
        """Hear no more notices."""
        self._stop_hearing()

    async def until(self, position: int, shards: Sequence[str], *, timeout: float) -> None:
        """Wait until every one of *shards* has passed *position*.

        Raises:
            AnswerTimedOut: One had not within *timeout* seconds; the message says where each is.
        """
        known: dict[str, int] = {}
        unanswered: Unavailable | None = None
        self._wanted.update(shards)
        try:
            async with asyncio.timeout(timeout):
                while True:
                    moved = self._moved
                    try:
                        known = await self._positions(shards)
                        unanswered = None
                    except Unavailable as error:  # the wait has a limit of its own
                        unanswered = error
                    if all(known.get(name, -1) >= position for name in shards):
                        return
                    await _soon(moved)
        except TimeoutError:
            raise AnswerTimedOut(behind(position, shards, known, timeout)) from unanswered
        finally:
            self._wanted.subtract(shards)

    async def _positions(self, shards: Sequence[str]) -> dict[str, int]:
        """Where *shards* are, from a look that began after the latest wake-up."""
        while self._looking is not None and not self._looking.done():
            is_fresh = self._seen is self._moved
            known = await asyncio.shield(self._looking)
            if is_fresh:
                return known
        is_recent = time.monotonic() - self._looked_at < POLL and self._seen is self._moved
        if is_recent and all(name in self._known for name in shards):
            return self._known
        self._looking = asyncio.create_task(self._look(), name="strandline:positions")
        self._looking.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(self._looking)

    async def _look(self) -> dict[str, int]:
        self._seen = self._moved
        wanted = [name for name, count in self._wanted.items() if count > 0]
        self._known = await self._pool.run(positions(wanted))
        self._looked_at = time.monotonic()
        return self._known


def behind(position: int, shards: Sequence[str], known: dict[str, int], timeout: float) -> str:
    """Who has not reached *position* in time, in words."""
    late = [
        f"{name} is at {known.get(name, 'no checkpoint: it never ran')}"
        for name in shards
        if known.get(name, -1) < position
    ]
    return (
        f"position {position} not reached within {timeout} s: {', '.join(late)};"
        " is a node running? `strandline projections list` shows state and reason"
    )


async def _soon(moved: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(POLL):
            await moved.wait()
    except TimeoutError:
        pass
