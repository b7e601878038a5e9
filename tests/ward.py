"""One real agent on a real database, on a clock that moves when told, with a processor that fails as told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from tally import holds

from strandline.app import App
from strandline.backoff import Backoff
from strandline.daemon.agent import Agent
from strandline.daemon.agent_parts import Surroundings
from strandline.daemon.batch import Batch, Processor
from strandline.daemon.checkpoint import Checkpoint, move
from strandline.daemon.feed import Appetite, Feed, Page
from strandline.daemon.parking import Parking
from strandline.errors import ApplyFailed, EventFailure
from strandline.events.gaps import read_mark
from strandline.events.high_water import HighWater
from strandline.postgres.pools import Pool
from strandline.projections.failure_policy import CONTINUOUS, Decide, ErrorPolicy
from strandline.projections.fold import POSITION
from strandline.projections.slice import WHOLE, Slice
from strandline.telemetry.signals import Notice
from strandline.testing.clock import ManualClock

SCHEDULE = Backoff(jitter=0.0)
TABLE = "CREATE TABLE public.handled (n bigserial, position bigint, how text)"


class Scripted:
    """Writes the position of every event to a table, behind the fence; fails as told.

    Attributes:
        poison: Position → what is raised for its event.
        blames: Whether the failure says which event it was.
        fails_in: ``prepare`` or ``commit``.
        script: For a phase (``prepare``, ``commit``, ``aside``) what its next calls raise; None for
            one that goes well.
        blames_first: Whether it says it was the first one, whichever it was.
        prepared, committed: Floor and ceiling of each call that went well.
        tries, events: Calls of ``prepare``, and the events in them.
        hang: Commits wait for it; ``hanging`` once one does; ``after_hang`` is raised then.
        raw: Position → what is raised for its event as it is.
    """

    label = "scripted"
    reads_pages = True

    def __init__(self, pool: Pool, *, most: int = 100, is_pure: bool = True) -> None:
        self.appetite = Appetite(None, True, most)
        self.is_pure = is_pure
        self.parking = Parking()
        self.poison: dict[int, BaseException] = {}
        self.blames = True
        self.blames_first = False
        self.fails_in = "prepare"
        self.script: dict[str, list[BaseException | None]] = {}
        self.prepared: list[tuple[int, int]] = []
        self.committed: list[tuple[int, int]] = []
        self.tries = self.events = 0
        self.hang: asyncio.Event | None = None
        self.hanging = False
        self.after_hang: Exception | None = None
        self.raw: dict[int, Exception] = {}
        self._pool = pool

    async def prepare(self, page: Page, *, only: Any = None, within: Slice = WHOLE) -> Batch:
        self.tries += 1
        self.events += len(page.rows)
        self._act("prepare")
        if self.fails_in == "prepare":
            self._swallow(page)
        for row in page.rows:
            if row[POSITION] in self.raw:
                raise self.raw[row[POSITION]]
        self.prepared.append((page.floor, page.ceiling))
        return Batch(page, [(row[POSITION], "handled") for row in page.rows])

    async def aside(self, page: Page, error: EventFailure, decide: Decide) -> Batch:
        self._act("aside")
        (row,) = page.rows
        return Batch(page, [(row[POSITION], decide(error).value)])

    async def commit(self, batch: Batch, checkpoint: Checkpoint) -> None:
        self._act("commit")
        if self.fails_in == "commit" and all(how == "handled" for _, how in batch.work):
            self._swallow(batch.page)
        if self.hang is not None:
            self.hanging = True
            await self.hang.wait()
            if self.after_hang is not None:
                raise self.after_hang
        async with self._pool.transaction() as session:
            await session.run(move(checkpoint, batch.page.ceiling))
            await session.connection.executemany(
                "INSERT INTO public.handled (position, how) VALUES ($1, $2)", batch.work
            )
        self.committed.append((batch.page.floor, batch.page.ceiling))

    def forget(self) -> None: ...

    def _act(self, phase: str) -> None:
        waiting = self.script.get(phase)
        error = waiting.pop(0) if waiting else None
        if error is not None:
            raise error

    def _swallow(self, page: Page) -> None:
        for row in page.rows:
            cause = self.poison.get(row[POSITION])
            if cause is None:
                continue
            if not isinstance(cause, Exception) or isinstance(cause, EventFailure):
                raise cause
            position = row[POSITION] if self.blames else 0
            if self.blames_first:
                position = page.rows[0][POSITION]
            raise ApplyFailed(self.label, repr(cause), position=position) from cause


@dataclass
class Ward:
    """An agent under observation."""

    app: App
    agent: Agent
    clock: ManualClock
    feed: Feed
    notices: list[Notice] = field(default_factory=list)

    def told(self, name: str) -> list[dict[str, Any]]:
        """The facts of every notice of that name so far."""
        return [one.facts for one in self.notices if one.name == name]

    async def asleep(self, seconds: float) -> None:
        """Wait until the agent waits for exactly *seconds*."""
        await holds(lambda: abs(min(self.clock.sleeping, default=-1.0) - seconds) < 1e-6)

    async def tries(self, *seconds: float) -> None:
        """See the agent wait so many *seconds* between tries, one after the other."""
        for one in seconds:
            await self.asleep(one)
            self.clock.advance(one)

    async def reaches(self, position: int) -> None:
        """Wait until its checkpoint is at *position*."""
        await holds(lambda: self.agent.position >= position)

    async def goes_on_until(self, done: Callable[[], Any], *, timeout: float = 30.0) -> None:
        """Let time go by whenever the agent waits for it, until *done*."""

        async def look() -> bool:
            found = done()
            if await found if isinstance(found, Awaitable) else found:
                return True
            if self.clock.sleeping:
                self.clock.advance(min(self.clock.sleeping))
            return False

        await holds(look, timeout=timeout)

    async def status(self) -> dict[str, Any] | None:
        """Its row of the status table."""
        rows = await fetch(self.app, STATUS, self.agent.shard)
        return dict(rows[0]) if rows else None


STATUS = """SELECT *, failure::text AS facts,
                   extract(epoch FROM next_at - clock_timestamp())::float8 AS left
              FROM strandline.shard_status WHERE name = $1"""


async def fetch(app: App, query: str, *arguments: Any) -> Sequence[Any]:
    """Rows of *query*, on a connection of the control pool."""
    async with app.pools.control.session() as session:
        found: Sequence[Any] = await session.connection.fetch(query, *arguments)
        return found


async def handled(app: App) -> list[tuple[int, str]]:
    """What scripted processors have written, in order."""
    return [tuple(row) for row in await fetch(app, "SELECT position, how FROM handled ORDER BY n")]


async def scripted(app: App, **options: Any) -> Scripted:
    """A scripted processor on *app*, and its table."""
    async with app.pools.work.session() as session:
        await session.connection.execute(TABLE)
    return Scripted(app.pools.work, **options)


async def bring_up(feed: Feed, app: App) -> None:
    """Move the mark to the end of the log."""
    seen: list[int] = []
    detector = HighWater(app.pools.control, app.settings, app.signals, on_moved=seen.append)
    before = -1
    while (position := await detector.tick()) > before:
        before = position
    feed.move((await app.pools.control.run(read_mark())).position)


@asynccontextmanager
async def ward(
    app: App,
    processor: Processor,
    *,
    shard: str = "",
    policy: ErrorPolicy = CONTINUOUS,
    backoff: Backoff = SCHEDULE,
    owner: UUID | None = None,
    start: bool = True,
) -> AsyncIterator[Ward]:
    """An agent of *processor* on an open app that runs nothing."""
    clock = ManualClock()
    feed = Feed(app.pools.work, app.registry.types, app.settings)
    await bring_up(feed, app)
    around = Surroundings(
        feed=feed,
        pool=app.pools.work,
        control=app.pools.control,
        signals=app.signals,
        backoff=backoff,
        node="ward",
        on_progress=lambda: None,
        clock=clock,
    )
    agent = Agent(
        shard or f"{processor.label}:all", processor, around, owner=owner or uuid4(), policy=policy
    )
    found = Ward(app, agent, clock, feed)
    end = app.signals.listen(found.notices.append)
    if start:
        agent.start()
    try:
        yield found
    finally:
        end()
        await agent.stop(timeout=5.0)
