"""Being watched changes nothing: hostile contexts, providers that fail, one caller's span and another's work."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from commands import execute
from spans import Seen, attribute, ids, is_child, links, seen
from tally import holds

import strandline as sl
from strandline.app import App
from strandline.events.bulk import ImportedEvent
from strandline.telemetry import tracing

trace_sdk = pytest.importorskip("opentelemetry.sdk.trace")

TRACE = "0af7651916cd43dd8448eb211c80319c"
DEEP = "[" * 5_000 + "]" * 5_000


def context(span: int, trace: str = TRACE) -> str:
    return f"00-{trace}-{span:016x}-01"


@dataclass(frozen=True)
class Ordered:
    item: str


@dataclass
class Parcel:
    items: list[str] = field(default_factory=list)


class Orders(sl.SingleStream[Parcel]):
    @sl.apply
    def ordered(self, parcel: Parcel, event: Ordered) -> None:
        parcel.items.append(event.item)


def shop(url: str, **settings: Any) -> App:
    """With an event, a projection of it, and a job; nothing runs before ``start``."""
    app = App("shop", url, mode="solo", poll_interval=0.1, job_poll_interval=0.1, **settings)
    app.event("ordered")(Ordered)
    app.projection("orders", version=1)(Orders)

    @app.job(max_attempts=1)
    async def ship(item: str) -> None:
        app.shipped.append(item)  # type: ignore[attr-defined]

    app.shipped = []  # type: ignore[attr-defined]
    return app


@asynccontextmanager
async def running(app: App) -> AsyncIterator[App]:
    async with app:
        await app.start()
        yield app


async def batch_over(spans: Seen, position: int) -> Any:
    """The span of the batch of ``orders`` over *position*."""

    def find() -> list[Any]:
        return [
            one
            for one in spans.named("batch", projection="orders:v1")
            if attribute(one, "batch.floor") < position <= attribute(one, "batch.ceiling")
        ]

    await holds(lambda: bool(find()))
    return find()[0]


# ---- what is stored


async def test_what_just_fits_is_stored_under_a_span_too(database_url: str) -> None:
    app = shop(database_url, max_payload_bytes=300)
    with seen() as spans:
        async with app:
            ship = app.kinds.jobs["ship"].call("book")
            with spans.tracer.start_as_current_span("request"):
                await app.append("a", Ordered("book"), metadata={"headers": {"a": "x" * 250}})
                await app.enqueue(ship.with_(meta={"note": "x" * 250}))
            (event,) = await app.read_stream("a")
            async with app.pools.work.session() as session:
                meta = await session.connection.fetchval("SELECT meta FROM strandline.jobs")

    assert event.metadata is not None
    assert event.metadata.headers == {"a": "x" * 250}
    assert event.metadata.traceparent is None
    assert "trace" not in meta


async def test_an_append_is_repeated_in_another_span(database_url: str) -> None:
    with seen() as spans:
        async with shop(database_url) as app:
            done = []
            for _ in range(2):
                with spans.tracer.start_as_current_span("request"):
                    named = ["0197f0a0-0000-7000-8000-000000000001"]
                    done.append(await app.append("a", Ordered("book"), ids=named))

    assert done[0].position == done[1].position


# ---- contexts that somebody else has written


async def test_a_batch_goes_on_whatever_its_events_carry(database_url: str) -> None:
    carried = [
        f'{{"traceparent": "{context(1)}", "deep": {DEEP}}}',
        '{"traceparent": 7}',
        '{"traceparent": {"traceparent": []}}',
        '["traceparent"]',
        f'{{"traceparent": "{context(1).upper()}"}}',
        f'{{"traceparent": "{context(0)}"}}',
        f'{{"traceparent": "{context(1, "0" * 32)}"}}',
        f'{{"traceparent": "ff-{TRACE}-{1:016x}-01"}}',
        f'{{"traceparent": "{context(1)}{"x" * 100_000}"}}',
    ]
    app = shop(database_url)
    async with app:
        for number, metadata in enumerate(carried):
            await app.append(f"a-{number}", Ordered("book"))
            await execute(
                database_url,
                "UPDATE strandline.events SET metadata = $1::jsonb WHERE stream = $2",
                *(metadata, f"a-{number}"),
            )
    with seen() as spans:
        async with running(app):
            await app.wait_for(len(carried), Orders, timeout=20)
            batch = await batch_over(spans, 1)

    assert links(batch) == []


@pytest.mark.parametrize("meta", [f'{{"trace": 1, "deep": {DEEP}}}', '["trace"]', '{"trace": [1]}'])
async def test_a_job_runs_whatever_its_meta_says(database_url: str, meta: str) -> None:
    app = shop(database_url)
    async with app:
        await app.enqueue(app.kinds.jobs["ship"], "book")
        await execute(database_url, "UPDATE strandline.jobs SET meta = $1::jsonb", meta)
        with seen() as spans:
            await app.start()
            await holds(lambda: bool(spans.named("job")))

    assert app.shipped == ["book"]  # type: ignore[attr-defined]
    assert links(spans.only("job")) == []


async def test_a_rebuild_is_no_part_of_traces_that_are_long_over(database_url: str) -> None:
    now = datetime.now(UTC)
    with seen() as spans:
        async with running(shop(database_url)) as app:
            for number, at in ((1, now - timedelta(days=900)), (2, now)):
                said = {"traceparent": context(number)}
                event = ImportedEvent(f"a-{number}", Ordered("book"), at, metadata=said)
                done = await app.import_events([event])
                await app.wait_for(done.last_position, Orders)
            old, new = [await batch_over(spans, position) for position in (1, 2)]

    assert old.parent is None
    assert links(old) == [(int(TRACE, 16), 1)]
    assert ids(new)[0] == int(TRACE, 16)


# ---- providers


class Broken:
    """A provider whose spans fail at everything."""

    def __init__(self) -> None:
        self._tracer = trace_sdk.TracerProvider(shutdown_on_exit=False).get_tracer("test")

    def get_tracer(self, *_: Any) -> Broken:
        return self

    def start_span(self, *arguments: Any, **options: Any) -> Any:
        span = self._tracer.start_span(*arguments, **options)
        for name in ("set_attribute", "set_attributes", "set_status", "record_exception", "end"):
            setattr(span, name, _fails)
        return span


def _fails(*_: Any, **__: Any) -> None:
    raise RuntimeError("a span processor fails")


async def test_a_provider_that_fails_at_everything_stops_nothing(database_url: str) -> None:
    end = tracing.use(Broken())
    try:
        async with running(shop(database_url)) as app:
            done = await app.append("order-1", Ordered("book"))
            await app.enqueue(app.kinds.jobs["ship"], "book")
            await app.wait_for(done.position, Orders, timeout=20)
            await holds(lambda: app.shipped == ["book"])  # type: ignore[attr-defined]
            with pytest.raises(sl.WrongVersion):
                await app.append("order-1", Ordered("pen"), expected=7)
    finally:
        end()


def test_an_error_that_has_no_text_ends_its_span() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError("no text")

    with seen() as spans:
        with pytest.raises(Mute), tracing.span("strandline.append"):
            raise Mute
        assert not spans.only("append").status.is_ok


@pytest.mark.parametrize("name", ["OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "OTEL_BSP_SCHEDULE_DELAY"])
def test_a_variable_that_the_sdk_cannot_read_keeps_no_node_from_starting(name: str) -> None:
    """Some are read when the SDK is imported."""
    script = "from strandline.telemetry import otlp; print(otlp.from_environment('shop'))"
    asked = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", name: "-3"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, "None\n"), done.stderr
    assert "could not be set up" in done.stderr


# ---- one caller's span and another's work


async def test_what_works_for_all_is_in_nobodys_span(database_url: str) -> None:
    from opentelemetry.trace import INVALID_SPAN, get_current_span

    contexts: dict[str, Context] = {}

    def noting(
        loop: asyncio.AbstractEventLoop, work: Any, context: Context | None = None
    ) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, context=context)
        contexts[work.__qualname__] = context or copy_context()
        return task

    loop = asyncio.get_running_loop()
    with seen() as spans:
        async with shop(database_url) as app:
            with spans.tracer.start_as_current_span("request"):
                loop.set_task_factory(noting)
                try:
                    await asyncio.gather(
                        *(app.append(f"s-{n}", Ordered("book")) for n in range(8)),
                        *(app.enqueue(app.kinds.jobs["ship"], str(n)) for n in range(8)),
                    )
                finally:
                    loop.set_task_factory(None)

    senders = [context for name, context in contexts.items() if "send" in name]
    assert len(senders) == 2
    assert all(one.run(get_current_span) is INVALID_SPAN for one in senders)


async def test_appends_that_go_together_keep_their_own_traces(database_url: str) -> None:
    with seen() as spans:
        async with shop(database_url) as app:

            async def request(number: int) -> Any:
                with spans.tracer.start_as_current_span(f"request {number}") as span:
                    await app.append(f"s-{number}", Ordered("book"))
                return span

            requests = await asyncio.gather(*(request(number) for number in range(20)))
            events = [(await app.read_stream(f"s-{number}"))[0] for number in range(20)]

    for number, (span, event) in enumerate(zip(requests, events, strict=True)):
        append = spans.only("append", stream=f"s-{number}")
        trace, own = ids(append)
        assert is_child(append, span)
        assert event.metadata.traceparent[:52] == f"00-{trace:032x}-{own:016x}"
