"""Read models that fail on events named by the test, and what their dead letters should have left."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from tally import Dropped, Seen, Ticked, connected

from strandline.app import App
from strandline.daemon import letters, slicing
from strandline.daemon.batch import Batch
from strandline.daemon.checkpoint import Checkpoint, claim
from strandline.daemon.feed import SHARED, Page, _rows
from strandline.daemon.replay import Replay
from strandline.errors import EventFailure
from strandline.projections.failure_policy import Action
from strandline.projections.handlers import apply, delete, fan_out, key
from strandline.projections.multi_stream import MultiStream
from strandline.projections.single_stream import SingleStream
from strandline.projections.slice import WHOLE, Slice

POISON: set[int] = set()
"""Numbers of ``Ticked`` that handlers fail on; the test takes out what it has "fixed"."""


class Burst(Exception):
    """What a handler raises on poison."""


@dataclass(frozen=True)
class Spread:
    """An event for several documents; it fails for those in ``bad`` while its number is poison."""

    number: int
    to: tuple[str, ...]
    bad: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """What an event is for one document."""

    number: int
    to: str
    bad: bool


def check(number: int) -> None:
    if number in POISON:
        raise Burst(f"cannot apply number {number} of 'it'")


class Fragile(SingleStream[Seen]):
    """Of each stream the numbers applied, in order."""

    @apply
    def ticked(self, seen: Seen, event: Ticked) -> None:
        check(event.number)
        seen.versions.append(event.number)

    @delete
    def dropped(self, event: Dropped) -> None: ...


class Shared(MultiStream[Seen]):
    """Of each document the numbers applied, in order."""

    @fan_out
    def parts(self, event: Spread) -> list[Part]:
        return [Part(event.number, name, name in event.bad) for name in event.to]

    @key
    def of(self, part: Part) -> str:
        return part.to

    @apply
    def arrived(self, seen: Seen, part: Part) -> None:
        seen.versions.append(part.number)
        if part.bad:
            check(part.number)


def fragile_app(url: str, **settings: Any) -> App:
    """An app with ``Fragile``; poison is parked."""
    app = App("fragile", url, **{"failure_pause": 0.1, "mode": "solo", **settings})
    app.event("ticked")(Ticked)
    app.event("dropped")(Dropped)
    app.event("spread")(Spread)
    return app


async def numbers_of(app: App, projection: Any) -> dict[str, list[int]]:
    """Of each document the numbers applied."""
    return {name: seen.versions for name, seen in await app.query(projection)}


async def folded(app: App, without: Collection[int] = ()) -> dict[str, list[int]]:
    """What ``Fragile`` must hold: a clean fold of the log without some numbers."""
    found: dict[str, list[int]] = defaultdict(list)
    async for event in app.read_all(settled=False):
        if isinstance(event.data, Dropped):
            found.pop(event.stream, None)
        elif isinstance(event.data, Ticked) and event.data.number not in without:
            found[event.stream].append(event.data.number)
    return dict(found)


async def shared_fold(app: App) -> dict[str, list[int]]:
    """What ``Shared`` must hold."""
    found: dict[str, list[int]] = defaultdict(list)
    async for event in app.read_all(settled=False):
        if isinstance(event.data, Spread):
            for name in event.data.to:
                found[name].append(event.data.number)
    return dict(found)


async def no_letter_is_open(app: App) -> bool:
    return not await app.letters.list(limit=1)


async def nothing_is_asked(url: str) -> bool:
    """Whether every letter asked for was tried."""
    return not [row for row in await letter_rows(url, "retry_at") if row["retry_at"]]


async def letter_rows(url: str, columns: str = "*") -> list[Any]:
    """All dead letters, by key and position."""
    async with connected(url) as other:
        return await other.fetch(
            f"SELECT {columns} FROM strandline.dead_letters ORDER BY label, tenant, key, position, id"
        )


@asynccontextmanager
async def by_hand(app: App, definition: Any, part: Slice = WHOLE) -> AsyncIterator[Hand]:
    """The processor of one shard, claimed, and nobody else running it."""
    runtime = app.opened_runtime
    label = app.registry.label(definition)
    made = next(one for one in runtime.definitions(app._begin) if one.label == label)
    await app.pools.work.run(slicing.declare(label, part.parts))
    checkpoint = await app.pools.work.run(claim(part.shard(label), uuid4()))
    hand = Hand(app, made.make(part), checkpoint)
    hand.processor.parking.replace(await app.pools.work.run(letters.parked_keys(label)))
    yield hand


class Hand:
    """One shard, run by hand."""

    def __init__(self, app: App, processor: Any, checkpoint: Checkpoint) -> None:
        self.app = app
        self.processor = processor
        self.checkpoint = checkpoint

    async def page(self, ceiling: int) -> Page:
        """The events from the checkpoint to *ceiling*."""
        rows = await self.app.pools.work.run(
            _rows(SHARED, self.checkpoint.position, ceiling, 10_000)
        )
        return Page(self.checkpoint.position, ceiling, rows)

    async def through(self, ceiling: int, action: Action = Action.PARK) -> None:
        """Process them, all at once if that goes well; what fails alone is put aside."""
        try:
            await self.commit(await self.processor.prepare(await self.page(ceiling)))
        except EventFailure:
            self.processor.forget()
            for position in range(self.checkpoint.position + 1, ceiling + 1):
                await self.one(position, action)

    async def one(self, position: int, action: Action = Action.PARK) -> None:
        """Process the next event."""
        page = await self.page(position)
        try:
            await self.commit(await self.processor.prepare(page))
        except EventFailure as error:
            self.processor.forget()
            await self.commit(await self.processor.aside(page, error, lambda _: action))

    async def commit(self, batch: Batch) -> None:
        await self.processor.commit(batch, self.checkpoint)
        self.checkpoint = self.checkpoint.at(batch.page.ceiling)

    async def replay(self) -> None:
        """Replay until nothing is due."""
        replay = Replay(
            self.checkpoint.shard,
            self.processor,
            self.app.pools.work,
            self.app.signals,
            is_over=lambda: False,
            on_progress=lambda: None,
        )
        while await replay.run(self.checkpoint):
            pass


async def somebody_waits_for_a_lock(url: str) -> bool:
    async with connected(url) as other:
        count: int = await other.fetchval(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
    return count > 0
