"""PostgreSQL dies under a node at work and comes back: everything recovers by itself (I1, I2)."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tally import Ticked, assert_applied_exactly_once, connected, holds, tally_app

from strandline.errors import Unavailable
from strandline.postgres.embedded import Embedded, EmbeddedServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from strandline.app import App

STREAMS = 6
DEADLINE = 30.0  # seconds from the first answer of the new server until all read models are level


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    """A server of its own; commits it acknowledged survive the death of its processes."""
    base = Path(tempfile.mkdtemp(prefix="strandline-", dir="/tmp"))
    base.chmod(0o755)
    embedded = Embedded(
        base / "server",
        durable=False,
        options={"synchronous_commit": "on", "shared_buffers": "32MB"},
    )
    try:
        yield embedded.start()
    finally:
        embedded.stop()
        shutil.rmtree(base, ignore_errors=True)


async def test_a_killed_server_loses_nothing_and_everything_goes_on_by_itself(
    server: EmbeddedServer,
) -> None:
    app = tally_app(server.url, page_events=20, failure_pause=0.5)
    acknowledged: list[tuple[str, int]] = []
    stopping = asyncio.Event()
    async with app:
        await app.start()
        writers = [
            asyncio.create_task(write(app, f"s{number}", acknowledged, stopping))
            for number in range(STREAMS)
        ]
        for _ in range(2):
            await more_of(acknowledged, 200)
            killed = postmaster(server)
            os.kill(killed, signal.SIGKILL)
            await holds(lambda killed=killed: postmaster(server) not in (0, killed), timeout=30)
            await all_append_again(acknowledged)
        answered = time.monotonic()
        stopping.set()
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*writers)
            await app.wait_for(await app.highest_position(), timeout=DEADLINE)
        assert time.monotonic() - answered < DEADLINE

        await assert_stored_once(server.url, acknowledged)
        await assert_applied_exactly_once(app)
        statistics = app.statistics()
        assert statistics is not None
        assert {one.state for one in statistics.agents} == {"running"}
        assert statistics.high_water.loop is not None
        assert statistics.high_water.loop.running


async def write(
    app: App, stream: str, acknowledged: list[tuple[str, int]], stopping: asyncio.Event
) -> None:
    """Append numbers, one after the other; give up a number whose outcome is not known."""
    number = 0
    while not stopping.is_set():
        number += 1
        try:
            await app.append(stream, Ticked(number))
        except Unavailable:
            await asyncio.sleep(0.02)
        else:
            acknowledged.append((stream, number))


async def more_of(acknowledged: list[tuple[str, int]], more: int) -> None:
    """Wait until so many more are acknowledged."""
    wanted = len(acknowledged) + more
    await holds(lambda: len(acknowledged) >= wanted, timeout=30)


async def all_append_again(acknowledged: list[tuple[str, int]]) -> None:
    """Wait until every stream has another append acknowledged."""
    begun = len(acknowledged)
    await holds(lambda: len({stream for stream, _ in acknowledged[begun:]}) == STREAMS, timeout=60)


def postmaster(server: EmbeddedServer) -> int:
    """Its process id; 0 while there is none."""
    try:
        return int((server.folder / "data/postmaster.pid").read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return 0


async def assert_stored_once(url: str, acknowledged: list[tuple[str, int]]) -> None:
    """Whatever was acknowledged is stored, nothing twice, in the order of each stream."""
    async with connected(url) as operator:
        rows = await operator.fetch(
            "SELECT stream, (data->>'number')::int AS number FROM strandline.events"
            " ORDER BY stream, version"
        )
    stored = [(row["stream"], row["number"]) for row in rows]
    assert len(set(stored)) == len(stored)
    assert stored == sorted(stored)
    assert set(acknowledged) <= set(stored)
