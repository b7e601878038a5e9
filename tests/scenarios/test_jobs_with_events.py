"""Jobs beside events: one commit, once for each event, and what led to what."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from tally import connected, end_backends, holds

import strandline as sl
from strandline.testing import jobs

QUICK: dict[str, Any] = {
    "pulse": "loop",
    "pulse_interval": 0.1,
    "poll_interval": 0.05,
    "job_poll_interval": 0.1,
    "failure_pause": 0.1,
}


@dataclass(frozen=True)
class Ordered:
    item: str


@dataclass(frozen=True)
class Shipped:
    item: str


@dataclass
class Order:
    item: str = ""
    shipped: bool = False


def shop(url: str, **settings: Any) -> sl.App:
    app = sl.App("shop", url, **{**QUICK, **settings})
    app.event("ordered")(Ordered)
    app.event("shipped")(Shipped)
    return app


async def test_an_event_a_row_and_a_job_are_there_together_or_not_at_all(
    database_url: str,
) -> None:
    app = shop(database_url)
    shipped: list[str] = []

    @app.job
    async def ship(item: str) -> None:
        shipped.append(item)

    async with app, connected(database_url) as other:
        await other.execute("CREATE TABLE orders (item text)")
        await app.start()
        with pytest.raises(ZeroDivisionError):
            async with app.transaction() as tx:
                await tx.append("order-1", Ordered("kettle"))
                await tx.execute("INSERT INTO orders VALUES ($1)", "kettle")
                await tx.enqueue(ship, "kettle")
                raise ZeroDivisionError
        async with app.transaction() as tx:
            await tx.enqueue(ship, "cup")
            await tx.execute("INSERT INTO orders VALUES ($1)", "cup")
            await tx.append("order-2", Ordered("cup"))
            assert await app.jobs.list() == []  # nobody else sees it before the commit
        await holds(lambda: shipped)

        assert shipped == ["cup"]
        assert await app.read_stream("order-1") == []
        assert [one.data for one in await app.read_stream("order-2")] == [Ordered("cup")]
        assert [one["item"] for one in await other.fetch("SELECT item FROM orders")] == ["cup"]


async def test_each_event_enqueues_one_job_whatever_happens_to_its_subscription(
    database_url: str,
) -> None:
    app = shop(database_url, page_events=5)
    failing = iter([True, False, True] + [False] * 1000)

    @app.job(keep="all")
    async def ship(item: str) -> None: ...

    @app.subscription("shipping", types=[Ordered])
    async def shipping(batch: sl.EventBatch, tx: sl.Transaction) -> None:
        for event in batch:
            await tx.enqueue(ship.call(event.data.item))
        if next(failing):
            raise ConnectionError("a service is away")

    items = [f"item {number}" for number in range(60)]
    async with app, connected(database_url) as operator:
        for number, item in enumerate(items):
            await app.append(f"order-{number % 7}", Ordered(item))
        await app.start()
        for _ in range(3):
            await end_backends(operator, "strandline work")
            await app.signals.wait_for("batch_committed", timeout=20)

        async def all_are_done() -> bool:
            return len(await app.jobs.list(kind=ship, state="completed")) >= len(items)

        await holds(all_are_done, timeout=30)
        await app.catch_up()
        made = [json.loads(one.args)["item"] for one in await app.jobs.list(limit=1000)]

    assert sorted(made) == sorted(items)


async def test_a_rebuild_enqueues_nothing_again(database_url: str) -> None:
    app = shop(database_url)

    @app.job(keep="all")
    async def ship(item: str) -> None: ...

    @app.projection("orders")
    class Orders(sl.SingleStream[Order]):
        @sl.create
        def ordered(self, event: Ordered) -> Order:
            return Order(event.item)

        @sl.effects
        async def placed(self, changes: sl.Changes[Order], tx: sl.Transaction) -> None:
            for change in changes:
                for event in change.of(Ordered):
                    await tx.enqueue(ship, event.data.item)

    async with app:
        await app.append("order-1", Ordered("kettle"))
        await app.append("order-2", Ordered("cup"))
        await app.start()
        await app.catch_up()
        before = {json.loads(one.args)["item"] for one in await app.jobs.list()}

        await app.rebuild(Orders, timeout=60)

        assert before == {"kettle", "cup"}
        assert len(await app.jobs.list()) == 2


async def test_what_led_to_what_can_be_followed_through_events_and_jobs(database_url: str) -> None:
    app = shop(database_url)

    @app.job(keep="all")
    async def tell(item: str) -> None: ...

    @app.job(keep="all")
    async def ship(item: str) -> None:
        async with sl.current().completing() as tx:
            await tx.append("parcels", Shipped(item))
            await tx.enqueue(tell, item)

    @app.subscription("shipping", types=[Ordered])
    async def shipping(batch: sl.EventBatch, tx: sl.Transaction) -> None:
        for event in batch:
            await tx.enqueue(ship, event.data.item)

    async with app:
        await app.start()
        done = await app.append("order-1", Ordered("kettle"))
        await holds(lambda: app.jobs.list(kind=tell, state="completed"))
        (first,) = await app.jobs.list(kind=ship)
        (second,) = await app.jobs.list(kind=tell)
        (parcel,) = await app.read_stream("parcels")

    shipping_meta, telling_meta = json.loads(first.meta or ""), json.loads(second.meta or "")
    assert shipping_meta["causation"] == f"event:{done.position}"
    assert telling_meta["causation"] == f"job:{first.id}"
    assert telling_meta["correlation"] == shipping_meta["correlation"] == f"event:{done.position}"
    assert parcel.metadata.causation == f"job:{first.id}"
    assert parcel.metadata.correlation == f"event:{done.position}"


async def test_catching_up_runs_no_job(database_url: str) -> None:
    """What a test does: let read models and subscriptions follow, then look at what they asked for."""
    app = shop(database_url)

    @app.job
    async def ship(item: str) -> None: ...

    @app.subscription("shipping", types=[Ordered])
    async def shipping(batch: sl.EventBatch, tx: sl.Transaction) -> None:
        for event in batch:
            await tx.enqueue(ship, event.data.item)

    async with app:
        await app.append("order-1", Ordered("kettle"))
        await app.catch_up()

        await jobs.assert_enqueued(app, ship, item="kettle")
        assert (await jobs.drain(app)).completed == 1
