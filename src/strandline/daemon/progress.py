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
    """A shard as the database knows it. Fields are None for one that never ran.

    Attributes:
        label: Of its projection or subscription.
        wanted: Into how many shards that is to be cut; what it is cut into, when it stays so.
        seal: Where the shard must stop until all the others have come there too.
        reason: What a paused shard fails with; empty otherwise.
        failure: Its facts as JSON: class, message, cause, handler, position, stream, version, type.
        category: ``apply``, ``undecodable``, ``unknown_type``, ``database``, ``ownership``, ``other``.
        phase: What failed: ``start``, ``fetch``, ``apply``, ``commit`` or ``stop``.
        attempts: Tries that failed before the pause.
        pauses: Pauses since the last batch that was committed.
        next_at: When a paused shard is tried again.
    """

    label: str
    name: str
    wanted: int
    position: int | None
    epoch: int | None
    owner: UUID | None
    seal: int | None
    state: str | None
    node: str | None
    reason: str | None
    failure: str | None
    rate: float
    changed_at: datetime | None
    waiting_since: datetime | None
    category: str | None = None
    phase: str | None = None
    attempts: int = 0
    pauses: int = 0
    next_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ShardRow:
    """A row of shards."""

    name: str
    position: int
    epoch: int
    owner: UUID | None
    claimed_at: datetime | None


@dataclass(frozen=True, slots=True)
class ShardPosition:
    """Where a shard of a label stands; None without a checkpoint."""

    label: str
    name: str
    position: int | None


Known = dict[str, list[ShardPosition]]
"""Label → where its shards stand."""

_sql = SqlFile(__name__)
PROGRESS = _sql.many("shard_progress", ShardProgress)
POSITIONS = _sql.many("positions_of_labels", ShardPosition)
ALL = _sql.many("all_shards", ShardRow)


def progress(labels: Sequence[str]) -> Op[list[ShardProgress]]:
    """How far the shards of *labels* are, one row each, by label and number."""
    return (yield from many(PROGRESS, list(labels)))


def positions_of(labels: Sequence[str]) -> Op[Known]:
    """Where the shards of *labels* stand."""
    found: Known = {label: [] for label in labels}
    for row in (yield from many(POSITIONS, list(labels))):
        found[row.label].append(row)
    return found


def positions_as_before(before: Known) -> Op[Known | None]:
    """Where the shards in *before* stand now; None if they are not all there any more.

    All shards of a label come and go together, so while they are there it is cut into these.
    """
    names = [one.name for shards in before.values() for one in shards]
    found = yield from positions(names)
    if len(found) < len(names):
        return None
    return {
        label: [ShardPosition(label, one.name, found[one.name]) for one in shards]
        for label, shards in before.items()
    }


def are_beyond(position: int, labels: Sequence[str], known: Known) -> bool:
    """Whether all shards of *labels* have applied everything up to *position*."""
    return all(
        one.position is not None and one.position >= position
        for label in labels
        for one in known[label]
    )


def all_shards() -> Op[list[ShardRow]]:
    """Every shard that ever ran, by name."""
    return (yield from many(ALL))


class Waiting:
    """Waits for labels to pass a position: woken by notices, polling as well.

    However many wait, one look at a time is under way, and it looks for all of them: the
    connections are those that the high-water mark needs.
    """

    def __init__(self, pool: Pool, listener: Listener) -> None:
        self._pool = pool
        self._moved = asyncio.Event()
        self._wanted: Counter[str] = Counter()
        self._looking: asyncio.Task[Known] | None = None
        self._known: Known = {}
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

    async def until(self, position: int, labels: Sequence[str], *, timeout: float) -> None:
        """Wait until every shard of *labels* has passed *position*, into however many they are cut.

        Raises:
            AnswerTimedOut: One had not within *timeout* seconds; the message says where each is.
        """
        known: Known = {label: [] for label in labels}
        unanswered: Unavailable | None = None
        self._wanted.update(labels)
        try:
            async with asyncio.timeout(timeout):
                while True:
                    moved = self._moved
                    try:
                        known = await self._positions(labels)
                        if are_beyond(position, labels, known):
                            return
                        unanswered = None
                    except Unavailable as error:  # the wait has a limit of its own
                        unanswered = error
                    await _soon(moved)
        except TimeoutError:
            raise AnswerTimedOut(behind(position, labels, known, timeout)) from unanswered
        finally:
            self._wanted.subtract(labels)

    async def _positions(self, labels: Sequence[str]) -> Known:
        """Where *labels* are, from a look that began after the latest wake-up."""
        while self._looking is not None and not self._looking.done():
            is_fresh = self._seen is self._moved
            known = await asyncio.shield(self._looking)
            if is_fresh and all(label in known for label in labels):
                return known
        is_recent = time.monotonic() - self._looked_at < POLL and self._seen is self._moved
        if is_recent and all(label in self._known for label in labels):
            return self._known
        self._looking = asyncio.create_task(self._look(), name="strandline:positions")
        self._looking.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(self._looking)

    async def _look(self) -> Known:
        self._seen = self._moved
        wanted = [label for label, count in self._wanted.items() if count > 0]
        known: Known | None = None
        if all(label in self._known for label in wanted):  # a third of the time, and mostly so
            before = {label: self._known[label] for label in wanted}
            known = await self._pool.run(positions_as_before(before))
        if known is None:
            known = await self._pool.run(positions_of(wanted))
        self._known = known
        self._looked_at = time.monotonic()
        return known


def behind(position: int, labels: Sequence[str], known: Known, timeout: float) -> str:
    """Who has not reached *position* in time, in words."""
    late = []
    for label in labels:
        for one in known.get(label, ()):
            if one.position is None:
                late.append(f"{one.name} is at no checkpoint: it never ran")
            elif one.position < position:
                late.append(f"{one.name} is at {one.position}")
        if not known.get(label):
            late.append(f"{label} could not be asked for")
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
