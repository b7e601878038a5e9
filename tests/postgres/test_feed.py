"""Pages of events: bounded, shared at the head, never beyond the mark."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from tally import (
    Dropped,
    Ticked,
    Versions,
    connected,
    fill,
    tally_app,
)

from strandline.app import App
from strandline.daemon.feed import Appetite, Feed, Page
from strandline.projections.fold import DATA
from strandline.projections.handlers import apply
from strandline.projections.single_stream import SingleStream
from strandline.projections.subscription import EventBatch


async def test_gaps_and_events_of_other_types_move_the_checkpoint_too(database_url: str) -> None:
    async with tally_app(database_url) as app:
        await app.append("s", Ticked())
        async with connected(database_url) as other:
            await other.execute("BEGIN")
            await other.execute(
                """SELECT strandline.append('t', '[{"type": "alien", "data": {}}]')"""
            )
            await other.execute("ROLLBACK")
            await other.execute(
                """SELECT strandline.append('t', '[{"type": "alien", "data": {}}]')"""
            )
        await app.append("s", Ticked())

        last = await app.catch_up()

        assert last == 4
        assert {row.position for row in await app.progress()} == {4}
        assert (await app.get(Versions, "s")).versions == [1, 2]


async def test_a_page_may_be_large(database_url: str) -> None:
    async with tally_app(database_url, page_events=100_000) as app:
        for _ in range(4):
            await app.append("big", [Ticked(number) for number in range(5000)])

        await app.catch_up()

        assert (await app.get(Versions, "big")).versions == list(range(1, 20_001))


async def test_pages_are_bounded_by_bytes(database_url: str) -> None:
    app = tally_app(database_url, page_bytes=65_536, page_events=10_000)
    app.event("heavy")(Heavy)
    sizes: list[int] = []

    @app.subscription("weigh")
    async def weigh(batch: EventBatch) -> None:
        sizes.append(sum(len(event.data.load) for event in batch.of(Heavy)))

    async with app:
        for _ in range(30):
            await app.append("heavy", [Heavy("x" * 10_000)] * 20)

        await app.catch_up("weigh")

        assert sum(sizes) == 600 * 10_000
        assert max(sizes[1:]) <= 100_000, "after the first page the size of events is known"


@dataclass(frozen=True)
class Heavy:
    load: str


async def test_agents_at_the_head_share_one_page(database_url: str) -> None:
    async with tally_app(database_url) as app:
        last = await fill(app, 20)
        feed = Feed(app.pools.work, app.registry.types, app.settings)
        feed.agents = 2
        feed.move(last)
        lean = Appetite(("ticked",), full=False, most=1000)
        full = Appetite(None, full=True, most=1000)

        one, other = await asyncio.gather(feed.page(0, lean), feed.page(0, full))

        assert one is other
        assert isinstance(one.rows[0][DATA], Ticked), "decoded once, for all"
        assert (one.floor, one.ceiling, len(one.rows)) == (0, last, 20)


async def test_an_agent_far_behind_gets_a_page_of_its_own_with_its_types_only(
    database_url: str,
) -> None:
    async with tally_app(database_url, page_events=10) as app:
        await fill(app, 20)
        last = (await app.append("s", Dropped())).position
        feed = Feed(app.pools.work, app.registry.types, app.settings)
        feed.agents = 2
        feed.move(last)

        page = await feed.page(0, Appetite(("dropped",), full=False, most=10))

        assert (len(page.rows), page.ceiling) == (1, last)
        assert len(page.rows[0]) == DATA + 1, "without what only envelopes need"


async def test_a_page_never_reaches_beyond_the_mark(database_url: str) -> None:
    async with tally_app(database_url) as app:
        await fill(app, 20)
        feed = Feed(app.pools.work, app.registry.types, app.settings)
        feed.move(15)
        every = Appetite(None, full=True, most=1000)

        page = await feed.page(0, every)

        assert (page.ceiling, page.rows[-1][0]) == (15, 15)
        assert await feed.page(15, every) == Page(15, 15, ())


async def test_read_models_do_not_share_what_an_event_holds(database_url: str) -> None:
    """At the head an event is decoded once; a model that keeps its list must not show in others."""
    app = App("bags", database_url)
    app.event("packed")(Packed)

    class Bags(SingleStream[Bag]):
        @apply
        def packed(self, bag: Bag, event: Packed) -> None:
            bag.things = event.things
            bag.things.append(self.name)

    app.projection("first")(Bags)
    app.projection("second")(type("Bags2", (Bags,), {}))
    async with app:
        await app.append("s", Packed(["pen"]))

        await app.catch_up()

        assert await app.get("first", "s") == Bag(["pen", "first"])
        assert await app.get("second", "s") == Bag(["pen", "second"])


@dataclass(frozen=True)
class Packed:
    things: list[str]


@dataclass
class Bag:
    things: list[str] = field(default_factory=list)
