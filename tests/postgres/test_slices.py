"""Slices: whatever their number, together they are what one shard would be."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kinds import (
    LABELS,
    TENANTS,
    TOLD,
    Accounts,
    Closed,
    Paid,
    assert_all_equal_the_fold,
    kinds_app,
)
from tally import Ticked, connected, fill, tally_app

from strandline.app import App
from strandline.daemon.batch import Processor
from strandline.daemon.checkpoint import Checkpoint, claim
from strandline.daemon.feed import HASH, Appetite, Feed, Page
from strandline.daemon.table_batch import TableProcessor
from strandline.errors import ApplyFailed
from strandline.events.gaps import highest_position
from strandline.projections.slice import WHOLE, Slice, slices
from strandline.projections.table import TableRows
from strandline.projections.table_declaration import Table
from strandline.projections.table_fold import in_slice
from strandline.projections.table_rules import add, column, on
from strandline.testing.database import fresh_database

PEOPLE = st.sampled_from(["ada", "bo", "cy", "dee"])
EVENTS = st.one_of(st.builds(Paid, PEOPLE, PEOPLE, st.integers(1, 9)), st.just(Closed()))
APPENDS = st.tuples(
    st.sampled_from(TENANTS), st.sampled_from("abcdef"), st.lists(EVENTS, min_size=1, max_size=4)
)


@dataclass
class Runner:
    """One shard, run by hand."""

    app: App
    feed: Feed
    processor: Processor
    checkpoint: Checkpoint

    async def batch(self) -> bool:
        """The next batch; whether there was one."""
        at, appetite = self.checkpoint.position, self.processor.appetite
        if self.processor.reads_pages:
            page = await self.feed.page(at, appetite)
        else:
            page = Page(at, min(self.feed.mark, at + appetite.most), ())
        if page.ceiling == at:
            return False
        await self.processor.commit(await self.processor.prepare(page), self.checkpoint)
        self.checkpoint = self.checkpoint.at(page.ceiling)
        return True


async def runners(app: App, feed: Feed, shards: int) -> list[Runner]:
    """Every shard of the app."""
    found = []
    for one in app.opened_runtime.definitions(app._begin):
        for part in slices(shards):
            checkpoint = await app.pools.work.run(claim(part.shard(one.label), uuid4()))
            found.append(Runner(app, feed, one.make(part), checkpoint))
    return found


@settings(
    max_examples=150 if os.environ.get("STRANDLINE_CHAOS") == "long" else 15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    shards=st.integers(1, 9),
    appends=st.lists(APPENDS, min_size=1, max_size=20),
    page=st.integers(1, 12),
    head=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_slices_together_equal_the_fold(
    server_url: str, shards: int, appends: list[Any], page: int, head: bool, order: Any
) -> None:
    """All kinds: documents by stream and by key with fan-out, tables, SQL, subscriptions."""

    async def run() -> None:
        async with fresh_database(server_url) as url, connected(url) as operator:
            await operator.execute(TOLD)
            async with kinds_app(url, shards, page_events=page, table_page_events=page) as app:
                feed = Feed(app.pools.work, app.registry.types, app.settings)
                feed.agents = 2 if head else 1
                running = await runners(app, feed, shards)
                for tenant, stream, events in appends:
                    feed.move((await app.append(stream, events, tenant=tenant)).position)
                    await order.choice(running).batch()
                while running:
                    one = order.choice(running)
                    if not await one.batch():
                        running.remove(one)
                await assert_all_equal_the_fold(app, operator)

    asyncio.run(run())


async def test_a_node_runs_every_slice_that_is_declared(database_url: str) -> None:
    async with connected(database_url) as operator:
        await operator.execute(TOLD)
        async with kinds_app(database_url, 3, page_events=50, mode="solo") as app:
            for number in range(200):
                payment = Paid(f"p{number % 7}", f"q{number % 5}", number)
                tenant = TENANTS[number % 2]
                last = await app.append(f"s{number % 13}", payment, tenant=tenant)

            await app.catch_up()

            names = [part.shard(label) for label in sorted(LABELS) for part in slices(3)]
            found = await app.progress()
            assert [one.name for one in found] == names
            assert {(one.position, one.wanted) for one in found} == {(last.position, 3)}
            await assert_all_equal_the_fold(app, operator)
            assert {shard for shard, _ in app.called} == {f"called:{n}/3" for n in (1, 2, 3)}  # type: ignore[attr-defined]


# ---- pages


@dataclass
class Counting:
    """A pool that counts what is asked of it."""

    pool: Any
    asked: list[str] = field(default_factory=list)

    async def run(self, op: Any) -> Any:
        call = next(op)
        self.asked.append(call.statement.name)
        try:
            op.send(await self.pool.run(_again(call)))
        except StopIteration as stop:
            return stop.value


def _again(call: Any) -> Any:
    return (yield call)


@pytest.mark.parametrize("full", [True, False])
async def test_slices_at_the_head_share_one_page(database_url: str, full: bool) -> None:
    async with tally_app(database_url) as app:
        last = await fill(app, 100, streams=20)
        pool = Counting(app.pools.work)
        feed = Feed(pool, app.registry.types, app.settings)  # type: ignore[arg-type]
        feed.agents = 5
        feed.move(last)

        pages = await asyncio.gather(
            *(feed.page(0, Appetite(("ticked",), full, 1000, part)) for part in slices(4)),
            feed.page(0, Appetite(None, full=True, most=1000)),
        )

        assert pool.asked == ["shared_page_to_cut"]
        *cut, whole = pages
        assert sorted(row[0] for page in cut for row in page.rows) == [row[0] for row in whole.rows]
        assert all(page.rows and page.ceiling == last for page in cut)
        assert all(isinstance(row[5], Ticked) for page in cut for row in page.rows)


async def test_a_page_that_was_shared_before_there_were_slices_is_fetched_again(
    database_url: str,
) -> None:
    async with tally_app(database_url) as app:
        last = await fill(app, 20)
        pool = Counting(app.pools.work)
        feed = Feed(pool, app.registry.types, app.settings)  # type: ignore[arg-type]
        feed.agents = 2
        feed.move(last)
        everything = Appetite(None, full=True, most=1000)

        whole = await feed.page(0, everything)
        part = await feed.page(0, Appetite(None, True, 1000, Slice(1, 2)))

        assert pool.asked == ["shared_page", "shared_page_to_cut"], "nothing is hashed for nobody"
        assert len(whole.rows[0]) == HASH
        assert {row[0] for row in part.rows} < {row[0] for row in whole.rows}


@pytest.mark.parametrize("names", [None, ("ticked",)])
@pytest.mark.parametrize("full", [True, False])
async def test_a_slice_far_behind_gets_the_same_streams_as_at_the_head(
    database_url: str, names: Any, full: bool
) -> None:
    async with tally_app(database_url) as app:
        last = await fill(app, 300, streams=30)
        feed = Feed(app.pools.work, app.registry.types, app.settings)
        feed.move(last)

        for part in slices(3):
            appetite = Appetite(names, full, 1000, part)
            feed.agents = 1
            alone = await feed.page(0, appetite)
            feed.agents = 2
            shared = await feed.page(0, appetite)

            assert [row[0] for row in alone.rows] == [row[0] for row in shared.rows]
            assert alone.ceiling == shared.ceiling == last


async def test_a_slice_that_has_no_events_gets_on_too(database_url: str) -> None:
    async with tally_app(database_url, page_events=10) as app:
        await app.append("only", [Ticked()] * 50)
        last = await app.pools.control.run(highest_position())
        feed = Feed(app.pools.work, app.registry.types, app.settings)
        feed.move(last)

        sizes = []
        for part in slices(4):
            page = await feed.page(0, Appetite(None, True, 100, part))
            sizes.append(len(page.rows))
            assert page.ceiling == last

        assert sorted(sizes) == [0, 0, 0, 50]


async def test_the_slice_of_a_stream_never_changes(database_url: str) -> None:
    """Checkpoints in databases depend on it."""
    async with tally_app(database_url) as app:
        for stream in ("a", "b", "c", "order-4711"):
            await app.append(stream, Ticked())
            await app.append(stream, Ticked(), tenant="other")
        feed = Feed(app.pools.work, app.registry.types, app.settings)
        feed.move(8)

        found = {}
        for part in slices(64):
            for row in (await feed.page(0, Appetite(None, True, 100, part))).rows:
                found[row[1], row[2]] = part.part

        assert found == {
            ("default", "a"): 12,
            ("default", "b"): 23,
            ("default", "c"): 28,
            ("default", "order-4711"): 36,
            ("other", "a"): 40,
            ("other", "b"): 10,
            ("other", "c"): 13,
            ("other", "order-4711"): 53,
        }


# ---- tables


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["'ada'::text"], 62),
        (["42::bigint"], 17),
        (["1.50::numeric"], 31),
        (["true"], 15),
        (["'2024-02-29'::date"], 34),
        (["'2024-02-29T12:00:00Z'::timestamptz"], 31),
        (["'00000000-0000-0000-0000-000000000007'::uuid"], 39),
        (["'nl'::text", "7::bigint"], 39),
    ],
)
async def test_the_slice_of_a_row_never_changes(
    database_url: str, keys: list[str], expected: int
) -> None:
    """Checkpoints in databases depend on it; versions of PostgreSQL must agree."""
    async with connected(database_url) as operator:
        found = []
        for part in slices(64):
            condition = in_slice(part, "ARRAY['t']", keys).replace("\n       AND ", "")
            event = "(SELECT 't' AS type, 'default'::text AS tenant) e"
            if await operator.fetchval(f"SELECT {condition} FROM {event}"):
                found.append(part.part)

    assert found == [expected + 1]


async def test_rows_are_told_apart_by_the_value_of_a_key_not_by_how_it_is_written(
    database_url: str,
) -> None:
    """1, 1.0 and 1.000 are one key: two slices that both wrote its row would lose a change."""
    app = App("prices", database_url, mode="solo")

    @app.event("sold")
    @dataclass(frozen=True)
    class Sold:
        price: Decimal

    class Sales(Table):
        price = column(Decimal, key="price")
        sales = column(int, default=0)
        rules = (on(Sold, sales=add(1)),)

    app.projection("sales", shards=4)(Sales)
    async with app:
        for number in range(20):
            for text in ("", ".0", ".000"):
                await app.append("s", Sold(Decimal(f"{number}{text}")))

        await app.catch_up()

        rows = await app.rows(Sales)
        assert [(row.price, row.sales) for row in rows] == [(number, 3) for number in range(20)]


async def test_a_value_that_cannot_be_stored_stops_its_own_slice_only(database_url: str) -> None:
    async with kinds_app(database_url, 1) as app:
        definition = Small()
        definition.named("small", 1, "async")
        definition.bind(app.registry.types, None)
        rows = TableRows(definition)
        await app.pools.work.run(rows.create())
        bad = (await app.append("s", Paid("ada", "x", 70_000))).position
        for person in ("bo", "cy", "dee", "eve", "flo", "gus"):
            last = (await app.append("s", Paid(person, "x", 7))).position

        failed = []
        for part in slices(4):
            processor = TableProcessor(rows, app.pools.work, app.settings, part)
            checkpoint = await app.pools.work.run(claim(part.shard("small:v1"), uuid4()))
            try:
                await processor.commit(await processor.prepare(Page(0, last, ())), checkpoint)
            except ApplyFailed as error:
                assert error.position == bad
                failed.append(part)

        assert len(failed) == 1
        stored = await app.pools.work.run(rows.query(None, (), tenant="default"))
        assert "ada" not in {row.person for row in stored}
        assert len(stored) >= 3


class Small(Table):
    person = column(str, key="payer")
    amount = column("smallint")
    rules = (on(Paid, amount="amount"),)


async def test_one_shard_folds_a_table_by_the_same_statement_as_ever(database_url: str) -> None:
    async with kinds_app(database_url, 1) as app:
        rows: Any = app.requests.table(Accounts)

        assert "hash" not in rows.fold_of(WHOLE).text
        assert rows.fold_of(WHOLE) is rows.fold
        assert "hash_record_extended" in rows.fold_of(Slice(2, 3)).text
