"""Whatever the events, the page sizes and the crashes: stored documents equal the pure fold."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tally import (
    Dropped,
    Ticked,
    assert_applied_exactly_once,
    connected,
    end_backends,
    tally_app,
)

from strandline.app import App
from strandline.errors import Unavailable
from strandline.events.gaps import highest_position
from strandline.telemetry.signals import Notice
from strandline.testing.database import fresh_database

STREAMS = st.sampled_from(["a", "b", "c"])
EVENTS = st.lists(st.one_of(st.builds(Ticked), st.just(Dropped())), min_size=1, max_size=5)
CRASHES = ("stop", "cut off", "kill", "kill all", "claim")


@dataclass(frozen=True)
class Crash:
    """After so many more batches, one of CRASHES happens to the node."""

    batches: int
    kind: str


pytestmark = pytest.mark.usefixtures("impatient")


@settings(
    max_examples=150 if os.environ.get("STRANDLINE_CHAOS") == "long" else 12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    appends=st.lists(st.tuples(STREAMS, EVENTS), min_size=1, max_size=25),
    page=st.integers(1, 6),
    cached=st.integers(0, 6),
    crashes=st.lists(st.builds(Crash, st.integers(0, 6), st.sampled_from(CRASHES)), max_size=4),
    live=st.booleans(),
)
def test_stored_documents_equal_the_fold(
    server_url: str,
    appends: list[tuple[str, list[Any]]],
    page: int,
    cached: int,
    crashes: list[Crash],
    live: bool,
) -> None:
    async def run() -> None:
        async with fresh_database(server_url) as url:
            app = tally_app(url, page_events=page, cached_documents=cached, failure_pause=0.02)
            async with app, connected(url) as operator:
                if live:
                    await app.start()
                for stream, events in appends:
                    await app.append(stream, events)
                await app.start()
                for crash in crashes:
                    await some_batches(app, crash.batches)
                    await happens(crash.kind, app, operator)
                await again(app.catch_up)
                await again(lambda: assert_applied_exactly_once(app))

    asyncio.run(run())


async def some_batches(app: App, count: int) -> None:
    """Wait until *count* batches are committed, or there is nothing more to commit."""
    enough = asyncio.Event()
    left = count

    def hear(notice: Notice) -> None:
        nonlocal left
        left -= notice.name == "batch_committed"
        if left <= 0:
            enough.set()

    end = app.signals.listen(hear)
    last = await again(lambda: app.pools.control.run(highest_position()))
    caught_up = asyncio.create_task(app.wait_for(last))
    waiting = asyncio.create_task(enough.wait())
    if count:
        await asyncio.wait({caught_up, waiting}, return_when=asyncio.FIRST_COMPLETED, timeout=20)
    end()
    for task in (caught_up, waiting):
        task.cancel()
    await asyncio.wait({caught_up, waiting})


async def again(call: Callable[[], Awaitable[Any]]) -> Any:
    """What *call* answers; tried again while killed connections are still in the pool."""
    for _ in range(30):
        try:
            return await call()
        except Unavailable:
            await asyncio.sleep(0)
    return await call()


async def happens(kind: str, app: App, operator: Any) -> None:
    """A crash of some kind, and a node that runs after it."""
    if kind == "stop":
        await app.stop()
    elif kind == "cut off":
        await app.stop(timeout=0)
    elif kind == "kill":
        await end_backends(operator, "strandline work")
    elif kind == "kill all":
        await end_backends(operator)
    else:
        other = tally_app(app.url, page_events=2, failure_pause=0.02)
        async with other:
            await other.start()
            await asyncio.sleep(0)
            await other.stop(timeout=0)
        await app.stop()
    await again(app.start)
