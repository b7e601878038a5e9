"""How far shards are, and waiting until they are far enough."""

from __future__ import annotations

import asyncio
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
    """Waits for shards to pass a position: woken by notices, polling as well."""

    def __init__(self, pool: Pool, listener: Listener) -> None:
        self._pool = pool
        self._moved = asyncio.Event()
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
        try:
            async with asyncio.timeout(timeout):
                while True:
                    moved = self._moved
                    try:
                        known = await self._pool.run(positions(list(shards)))
                        unanswered = None
                    except Unavailable as error:  # the wait has a limit of its own
                        unanswered = error
                    if all(known.get(name, -1) >= position for name in shards):
                        return
                    await _soon(moved)
        except TimeoutError:
            raise AnswerTimedOut(behind(position, shards, known, timeout)) from unanswered


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
