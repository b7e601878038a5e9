"""The ways in which a pulse loses its connection: each is found out, and recovered from.

| way | found by | found within |
| --- | --- | --- |
| the server is restarted | the end of the connection | 0.1 s |
| it crashes (``pg_ctl -m immediate``) | the end of the connection | 0.1 s |
| its backend is terminated | the end of the connection | 0.1 s; a new one is open in the same moment |
| the connection is reset | the end of the connection | 0.1 s; likewise |
| a black hole acknowledges and forwards nothing | the deadline of the next tick | interval + deadline |
| the server only reads, after a fail-over | the next tick's answer, SQLSTATE 25006 | interval |

With the default settings ``interval`` is 3 s and ``deadline`` 2.5 s. A lost connection makes a tick
due at once. Then the pulse tries again after 20 ms, 40 ms ... up to 1 s, so it is back within a
second and a deadline of the server's first answer.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from pulses import QUICK, Node, Watcher, beating, watching
from tally import holds

from strandline.postgres.embedded import Embedded, EmbeddedServer
from strandline.testing.database import fresh_database
from strandline.testing.faults import Proxy

SLACK = 0.7  # seconds that a busy machine may add
AT_ONCE = 0.1
BACK = 1.0 + QUICK.deadline  # seconds after which a pulse is back at the latest


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    """A server of its own; somebody starts it again whenever it ends."""
    base = Path(tempfile.mkdtemp(prefix="strandline-", dir="/tmp"))
    base.chmod(0o755)
    embedded = Embedded(base / "server", durable=False, options={"shared_buffers": "32MB"})
    try:
        yield embedded.start()
    finally:
        embedded.stop()
        shutil.rmtree(base, ignore_errors=True)


@dataclass
class Outage:
    """A database behind a proxy, and what can be done to both."""

    server: EmbeddedServer
    proxy: Proxy
    url: str

    async def begin(self, way: str) -> None:
        match way:
            case "restart":
                os.kill(self._postmaster(), signal.SIGINT)
            case "crash":
                os.kill(self._postmaster(), signal.SIGQUIT)
            case "terminate":
                async with watching(self.url) as operator:
                    for pid in await operator.backends():
                        await operator.run("SELECT pg_terminate_backend($1)", pid)
            case "reset":
                self.proxy.cut()
            case "black hole":
                self.proxy.hold()
            case "read-only":
                await self._only_read("on")

    async def end(self, way: str) -> None:
        match way:
            case "restart" | "crash":
                await holds(self._answers, timeout=30)
            case "black hole":
                self.proxy.forward()
            case "read-only":
                await self._only_read("off")

    async def _only_read(self, value: str) -> None:
        async with watching(self.url) as operator:
            await operator.run(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
            await operator.run("SELECT pg_reload_conf()")

    async def _answers(self) -> bool:
        try:
            async with watching(self.url) as operator:
                return await operator.run("SELECT true")
        except Exception:
            return False

    def _postmaster(self) -> int:
        return int((self.server.folder / "data/postmaster.pid").read_text().split("\n", 1)[0])


@asynccontextmanager
async def outage(server: EmbeddedServer) -> AsyncIterator[Outage]:
    async with fresh_database(server.url) as url, Proxy(url) as proxy:
        yield Outage(server, proxy, url)


async def found_out(one: Node, since: float) -> float:
    """Seconds until it knew: a tick failed, or one succeeded on a connection that is new."""
    await one.tells("tick_failed", since=since, timeout=20)
    return one.first("tick_failed", since) - since


@pytest.mark.parametrize("kind", ["thread", "process"])
@pytest.mark.parametrize(
    ("way", "within"),
    [
        ("restart", AT_ONCE),
        ("crash", AT_ONCE),
        ("black hole", QUICK.interval + QUICK.deadline),
        ("read-only", QUICK.interval),
    ],
)
async def test_a_pulse_finds_an_outage_and_is_back_when_the_server_is(
    server: EmbeddedServer, way: str, within: float, kind: str
) -> None:
    async with outage(server) as it, beating(it.proxy.url, kind, ttl=30.0) as one:
        await one.tells("leading")
        await one.tells("ticked", since=time.monotonic())
        began = time.monotonic()
        await it.begin(way)

        assert await found_out(one, began) < within + SLACK
        await it.end(way)
        back = time.monotonic()

        await one.tells("ticked", since=back)
        assert one.first("ticked", since=back) - back < BACK + SLACK
        await holds(lambda: one.pulse.leadership)
        assert one.news("evicted") == []
        async with watching(it.url) as watcher:
            await assert_every_term_was_its_own(watcher, one)


@pytest.mark.parametrize("kind", ["thread", "process"])
@pytest.mark.parametrize("way", ["terminate", "reset"])
async def test_a_pulse_whose_connection_ends_opens_another_in_the_same_moment(
    server: EmbeddedServer, way: str, kind: str
) -> None:
    """With an interval of 20 s, so that only the end of the connection can have told it."""
    async with (
        outage(server) as it,
        beating(it.proxy.url, kind, interval=20.0, ttl=60.0, leader_ttl=50.0) as one,
        watching(it.url) as watcher,
    ):
        await one.tells("leading")
        before = set(await watcher.backends())
        began = time.monotonic()
        await it.begin(way)

        await one.tells("ticked", since=began)

        assert one.first("ticked", since=began) - began < AT_ONCE + SLACK
        assert before.isdisjoint(await watcher.backends())
        assert one.news("not_leading") == [], "a session that ends is no lease that ends"
        assert (await watcher.lease())["epoch"] == 1


async def test_a_leader_stops_by_itself_while_the_server_is_away(server: EmbeddedServer) -> None:
    """I2: its trust ends before anybody else could lead, although nobody can tell it."""
    async with outage(server) as it, beating(it.proxy.url, "process") as one:
        await one.tells("leading")
        await one.tells("ticked", since=time.monotonic())
        it.proxy.refuse()
        cut = time.monotonic()

        await one.tells("not_leading", since=cut)

        trust = QUICK.leader_ttl - QUICK.margin
        assert one.first("not_leading", since=cut) - cut < trust + SLACK
        assert one.pulse.leadership is None
        it.proxy.forward()
        await one.tells("leading", since=cut)


async def test_two_nodes_through_an_outage_have_one_leader_and_no_epoch_twice(
    server: EmbeddedServer,
) -> None:
    """The server crashes again and again; a logged row keeps its epoch."""
    async with (
        outage(server) as it,
        beating(it.proxy.url, "thread", name="a", ttl=30.0) as first,
        beating(it.proxy.url, "process", name="b", ttl=30.0) as second,
    ):
        for _ in range(3):
            await holds(lambda: first.pulse.leadership or second.pulse.leadership, timeout=20)
            await it.begin("crash")
            await it.end("crash")
        await holds(lambda: first.pulse.leadership or second.pulse.leadership, timeout=20)

        assert not (first.pulse.leadership and second.pulse.leadership)
        async with watching(it.url) as watcher:
            epochs = [epoch for _, _, epoch in await watcher.logged("leader_acquired")]
            assert epochs == list(range(1, len(epochs) + 1))


async def test_what_a_black_hole_held_back_does_no_harm_when_it_comes_late(
    server: EmbeddedServer,
) -> None:
    """The ticks of a leader are let through after another has taken over."""
    async with outage(server) as it, beating(it.proxy.url, "thread", name="old") as old:
        await old.tells("leading")
        async with beating(it.url, "thread", name="new") as new, watching(it.url) as watcher:
            it.proxy.hold()
            held = time.monotonic()
            await new.tells("leading", since=held)
            assert old.pulse.leadership is None, "the old one stopped before the new one began"
            epoch = new.pulse.leadership.epoch

            it.proxy.forward()
            await old.tells("ticked", since=time.monotonic())
            await asyncio.gather(
                *(one.tells("ticked", since=time.monotonic()) for one in (old, new))
            )

            assert (await watcher.lease())["holder"] == new.id
            assert new.pulse.leadership.epoch == epoch
            assert old.pulse.leadership is None


async def assert_every_term_was_its_own(watcher: Watcher, one: Node) -> None:
    """I1: the epochs it led under are those that it acquired, each once."""
    acquired = [epoch for _, _, epoch in await watcher.logged("leader_acquired")]
    assert acquired == sorted(set(acquired))
    assert {facts["epoch"] for facts in one.news("leading")} <= set(acquired)
