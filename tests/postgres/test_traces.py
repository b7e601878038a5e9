"""What one request leads to is one trace: through events, projections, subscriptions and jobs."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from spans import Seen, attribute, ids, is_child, links, seen
from tally import holds

import strandline as sl
from strandline import sync
from strandline.app import App, Transaction
from strandline.events.event import RecordedEvent
from strandline.projections.subscription import EventBatch
from strandline.telemetry.trace_context import current_ids, current_traceparent

pytest.importorskip("opentelemetry.sdk.trace")


OUTSIDE = ("shard_claimed",)  # told by what runs for nobody


@dataclass(frozen=True)
class Ordered:
    item: str


@dataclass(frozen=True)
class Shipped:
    item: str


@dataclass
class Parcel:
    items: list[str] = field(default_factory=list)


class Orders(sl.SingleStream[Parcel]):
    """Wants no envelope, so its pages are lean."""

    @sl.apply
    def ordered(self, parcel: Parcel, event: Ordered) -> None:
        parcel.items.append(event.item)


class Parcels(sl.SingleStream[Parcel]):
    @sl.apply
    def shipped(self, parcel: Parcel, event: RecordedEvent[Shipped]) -> None:
        parcel.items.append(event.data.item)


def shop(url: str, *, subscribed: bool = True) -> App:
    """An order is projected and enqueues a job, which appends an event, which is projected."""
    app = App("shop", url, mode="solo", poll_interval=0.1, job_poll_interval=0.1, node_name="n1")
    app.event("ordered")(Ordered)
    app.event("shipped")(Shipped)
    app.projection("orders", version=1)(Orders)
    app.projection("parcels", version=1)(Parcels)

    @app.job
    async def ship(item: str) -> None:
        await app.append(f"parcel-{item}", Shipped(item))

    if subscribed:

        @app.subscription("shipping", types=[Ordered])
        async def shipping(batch: EventBatch, tx: Transaction) -> None:
            for event in batch:
                await tx.enqueue(ship, event.data.item)

    return app


@asynccontextmanager
async def running(app: App) -> AsyncIterator[App]:
    async with app:
        await app.start()
        yield app


async def batch_of(spans: Seen, projection: str, position: int) -> Any:
    """The span of the batch that took *projection* over *position*."""

    def find() -> list[Any]:
        return [
            one
            for one in spans.named("batch", projection=projection)
            if attribute(one, "batch.floor") < position <= attribute(one, "batch.ceiling")
        ]

    await holds(lambda: bool(find()))
    return find()[0]


async def test_what_a_request_leads_to_is_one_trace(database_url: str) -> None:
    with seen() as spans:
        async with running(shop(database_url)) as app:
            with spans.tracer.start_as_current_span("POST /orders") as request:
                done = await app.append("order-1", Ordered("book"))
            await app.wait_for(done.position, Orders)
            await holds(lambda: bool(spans.named("append", stream="parcel-book")))
            (shipped,) = await app.read_stream("parcel-book")
            await app.wait_for(shipped.position, Parcels)

            projected = await batch_of(spans, "orders:v1", done.position)
            subscribed = await batch_of(spans, "shipping", done.position)
            last = await batch_of(spans, "parcels:v1", shipped.position)

        ordered = spans.only("append", stream="order-1")
        enqueued, job = spans.only("enqueue"), spans.only("job")
        second = spans.only("append", stream="parcel-book")
        story = [ordered, projected, subscribed, enqueued, job, second, last]
        assert {ids(one)[0] for one in story} == {request.get_span_context().trace_id}
        assert is_child(ordered, request)
        assert is_child(projected, ordered)
        assert links(projected) == [ids(ordered)]
        assert is_child(subscribed, ordered)
        (commit,) = [one for one in spans.named("batch.commit") if is_child(one, subscribed)]
        assert is_child(enqueued, commit)
        assert is_child(job, enqueued)
        assert links(job) == [ids(enqueued)]
        assert is_child(second, job)
        assert is_child(last, second)


async def test_a_batch_has_its_load_apply_and_commit_inside(database_url: str) -> None:
    with seen() as spans:
        async with running(shop(database_url, subscribed=False)) as app:
            done = await app.append("order-1", Ordered("book"))
            batch = await batch_of(spans, "orders:v1", done.position)

        inside = [one for one in spans.all if is_child(one, batch)]
        names = ["strandline.batch.load", "strandline.batch.apply", "strandline.batch.commit"]
        assert [one.name for one in sorted(inside, key=lambda one: one.start_time or 0)] == names
        assert attribute(batch, "shard") == "orders:v1:all"
        assert attribute(batch, "node") == "n1"
        assert attribute(batch, "events.count") == 1
        assert all((batch.start_time or 0) <= (one.start_time or 0) for one in inside)
        assert all((one.end_time or 0) <= (batch.end_time or 0) for one in inside)


async def test_a_lean_page_tells_the_traces_of_its_events(database_url: str) -> None:
    """The only agent of a node gets pages of its own, without what envelopes need."""
    with seen() as spans:
        app = App("alone", database_url, mode="solo", poll_interval=0.1)
        app.event("ordered")(Ordered)
        app.projection("orders", version=1)(Orders)
        async with running(app):
            done = await app.append("order-1", Ordered("book"), metadata={"user": "ada"})
            batch = await batch_of(spans, "orders:v1", done.position)
            parcel = await app.get(Orders, "order-1")

        assert links(batch) == [ids(spans.only("append"))]
        assert parcel.items == ["book"]


async def test_a_batch_of_many_requests_links_to_each_and_begins_a_trace_of_its_own(
    database_url: str,
) -> None:
    with seen() as spans:
        app = shop(database_url, subscribed=False)
        async with app:
            for number in range(40):
                done = await app.append(f"order-{number}", Ordered("book"))
            await app.start()
            batch = await batch_of(spans, "orders:v1", done.position)

        appends = [ids(one) for one in spans.named("append")]
        assert links(batch) == appends[:32]
        assert attribute(batch, "links.dropped") == 8
        assert batch.parent is None
        assert ids(batch)[0] not in {trace for trace, _ in appends}


async def test_what_nobody_follows_is_written_nowhere(database_url: str) -> None:
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    with seen(ALWAYS_OFF) as spans:
        app = shop(database_url)
        async with app:
            await app.append("order-1", Ordered("book"))
            await app.enqueue(app.kinds.jobs["ship"], "book")
            (event,) = await app.read_stream("order-1")
            async with app.pools.work.session() as session:
                rows = await session.connection.fetch("SELECT meta FROM strandline.jobs")

        assert event.metadata.traceparent is None
        assert [row["meta"] for row in rows] == [None]
        assert spans.all == ()


async def test_a_failed_append_and_a_failed_batch_say_why(database_url: str) -> None:
    with seen() as spans:
        app = shop(database_url, subscribed=False)

        @app.subscription("picky")
        async def picky(batch: EventBatch) -> None:
            raise LookupError("no such parcel")

        async with running(app):
            done = await app.append("order-1", Ordered("book"))
            with pytest.raises(sl.WrongVersion):
                await app.append("order-1", Ordered("book"), expected=7)
            batch = await batch_of(spans, "picky", done.position)

        (refused,) = [one for one in spans.named("append") if not one.status.is_ok]
        assert refused.attributes is not None
        assert refused.attributes["error.type"] == "strandline.WrongVersion"
        assert not batch.status.is_ok
        assert "no such parcel" in batch.status.description


async def test_a_transaction_and_an_import_are_traced_too(database_url: str) -> None:
    with seen() as spans:
        app = shop(database_url)
        async with app:
            with spans.tracer.start_as_current_span("request") as request:
                async with app.transaction() as tx:
                    await tx.append_many([("a", Ordered("x")), ("b", Ordered("y"))], tenant="t")
                    await tx.enqueue(app.kinds.jobs["ship"], "z")
            calls = [app.kinds.jobs["ship"].call(str(number)) for number in range(3)]
            await app.enqueue_many(calls)

        append = spans.only("append")
        assert is_child(append, request)
        assert attribute(append, "streams.count") == attribute(append, "events.count") == 2
        one, many = spans.named("enqueue")
        assert is_child(one, request)
        assert (attribute(one, "kind"), attribute(one, "job.queue")) == ("ship", "default")
        assert attribute(many, "jobs.count") == 3


async def test_a_job_ends_its_span_as_it_ends(database_url: str) -> None:
    with seen() as spans:
        app = App("ends", database_url, mode="solo", job_poll_interval=0.1)

        @app.job(max_attempts=1)
        async def fail() -> None:
            raise LookupError("nothing there")

        @app.job
        async def cancel() -> None:
            raise sl.Cancel("not needed")

        @app.job(timeout=0.05, max_attempts=1)
        async def sleep() -> None:
            import asyncio

            await asyncio.sleep(30)

        async with running(app):
            for job in (fail, cancel, sleep):
                await job.enqueue()
            await holds(lambda: len(spans.named("job")) == 3)

        ended = {attribute(one, "kind"): one for one in spans.named("job")}
        endings = {kind: attribute(one, "job.ending") for kind, one in ended.items()}
        assert endings == {"fail": "failed", "cancel": "cancelled", "sleep": "failed"}
        assert not ended["fail"].status.is_ok
        assert not ended["sleep"].status.is_ok
        assert ended["cancel"].status.is_unset


async def test_a_job_in_a_thread_and_the_blocking_twin_carry_the_trace(database_url: str) -> None:
    inside: list[str | None] = []
    done = threading.Event()
    with seen() as spans:
        app = App("threads", database_url, mode="solo", job_poll_interval=0.1)
        app.event("ordered")(Ordered)
        twin = sync.App("threads", database_url, registry=app.registry)

        @app.job(executor="thread")
        def order(item: str) -> None:
            inside.append(current_traceparent())
            with twin:
                twin.append("order-1", Ordered(item))
            done.set()

        async with running(app):
            await order.enqueue("book")
            await holds(done.is_set)
            await holds(lambda: bool(spans.named("job")))
            (event,) = await app.read_stream("order-1")

        job, append = spans.only("job"), spans.only("append")
        assert [_named(one) for one in inside] == [ids(job)]
        assert is_child(append, job)
        assert _named(event.metadata.traceparent) == ids(append)


def _named(traceparent: str | None) -> tuple[int, int]:
    """Trace and span that it names."""
    assert traceparent is not None
    _, trace, span, _ = traceparent.split("-")
    return int(trace, 16), int(span, 16)


async def test_a_node_that_was_started_inside_a_span_does_not_belong_to_it(
    database_url: str,
) -> None:
    with seen() as spans:
        app = shop(database_url, subscribed=False)
        inherited: list[Any] = []
        app.signals.listen(
            lambda notice: inherited.append(current_ids()) if notice.name in OUTSIDE else None
        )
        with spans.tracer.start_as_current_span("starting") as starting:
            await app.open()
            await app.start()
        done = await app.append("order-1", Ordered("book"))
        batch = await batch_of(spans, "orders:v1", done.position)
        await app.close()

        assert ids(batch)[0] != starting.get_span_context().trace_id
        assert [one.name for one in spans.all if is_child(one, starting)] == []
        assert set(inherited) == {None}
