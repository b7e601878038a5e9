"""LISTEN comes back after every way of losing it, and is not tried where it cannot work."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from strandline.postgres import listener as listening
from strandline.postgres.listener import Listener, Notifier
from strandline.postgres.pools import Pools
from strandline.settings import Settings
from strandline.testing.faults import Proxy
from strandline.testing.leaks import no_leaks
from tests.tally import connected, end_backends, holds


@asynccontextmanager
async def heard(url: str, **options: Any) -> AsyncIterator[tuple[Listener, asyncio.Queue[str]]]:
    """A listener on the channel ``c``, and what it heard."""
    listener = Listener(url, Settings(database_url=url, **options))
    queue: asyncio.Queue[str] = asyncio.Queue()
    async with no_leaks():
        listener.on("c", queue.put_nowait)
        listener.start()
        try:
            yield listener, queue
        finally:
            await listener.stop()


async def notify(connection: Any, payload: str) -> None:
    await connection.execute("SELECT pg_notify('strandline.c', $1)", payload)


async def is_listening(listener: Listener, connection: Any) -> None:
    """Wait until the server knows of it."""
    await holds(lambda: listener.statistics().connected)
    await holds(lambda: listener._connection_channels == {"strandline.c"})


async def next_of(queue: asyncio.Queue[str]) -> str:
    return await asyncio.wait_for(queue.get(), 5)


async def test_notices_are_heard(database_url: str) -> None:
    async with heard(database_url) as (listener, queue), connected(database_url) as other:
        await is_listening(listener, other)
        await notify(other, "one")
        assert await next_of(queue) == "one"
        assert listener.statistics().notices == 1


async def test_a_channel_added_later_is_heard_at_once(database_url: str) -> None:
    async with heard(database_url) as (listener, _), connected(database_url) as other:
        await is_listening(listener, other)
        late: asyncio.Queue[str] = asyncio.Queue()
        end = listener.on("late", late.put_nowait)
        await holds(lambda: "strandline.late" in listener._connection_channels)
        await other.execute("SELECT pg_notify('strandline.late', 'one')")
        assert await next_of(late) == "one"
        end()


async def test_a_lost_connection_is_made_anew_and_whoever_listens_is_told_to_look(
    database_url: str,
) -> None:
    async with heard(database_url) as (listener, queue), connected(database_url) as other:
        await is_listening(listener, other)
        assert await end_backends(other, "strandline listen%") == 1

        assert await next_of(queue) == ""
        await notify(other, "after")  # LISTEN stands before anybody is told

        assert await next_of(queue) == "after"
        assert listener.statistics().reconnects == 1


async def test_a_session_that_does_not_listen_any_more_is_found_and_replaced(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with heard(database_url) as (listener, queue), connected(database_url) as other:
        await is_listening(listener, other)
        await listener._connection.execute("UNLISTEN *")  # as when a pooler changes the backend

        with caplog.at_level(logging.WARNING, "strandline.loops"):
            listener._loop.wake()  # the next look, without waiting for it
            assert await next_of(queue) == ""

        assert "no longer listens to strandline.c" in caplog.text
        await notify(other, "again")
        assert await next_of(queue) == "again"


async def test_a_connection_that_forwards_nothing_is_found(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "PATIENCE", 0.2)
    async with Proxy(database_url) as proxy, heard(proxy.url, connect_timeout=1.0) as (one, queue):
        async with connected(database_url) as other:
            await is_listening(one, other)
            proxy.hold()
            one._loop.wake()
            await holds(lambda: not one.statistics().connected, timeout=3)
            proxy.forward()

            assert await next_of(queue) == ""
            await notify(other, "again")
            assert await next_of(queue) == "again"


async def test_a_listener_that_fails_does_not_keep_a_notice_from_others(database_url: str) -> None:
    async with heard(database_url) as (listener, queue), connected(database_url) as other:
        await is_listening(listener, other)

        def fail(_: str) -> None:
            raise ZeroDivisionError

        listener._hears["strandline.c"].insert(0, fail)
        await notify(other, "one")
        assert await next_of(queue) == "one"


async def test_behind_a_pooler_it_does_not_even_try(database_url: str) -> None:
    async with heard(database_url, pooler="transaction") as (listener, _):
        statistics = listener.statistics()
        assert statistics.is_polling and not statistics.connected
        async with connected(database_url) as other:
            assert await end_backends(other, "strandline listen%") == 0


async def test_past_a_pooler_it_listens(database_url: str) -> None:
    options = {"pooler": "transaction", "direct_url": database_url}
    async with heard(database_url, **options) as (listener, queue):
        async with connected(database_url) as other:
            await is_listening(listener, other)
            await notify(other, "one")
            assert await next_of(queue) == "one"
        assert not listener.statistics().is_polling


async def test_many_notices_are_sent_as_few_with_the_latest_payload(database_url: str) -> None:
    settings = Settings(database_url=database_url, notify_interval=0.05)
    pools = Pools.to(database_url, settings)
    await pools.open()
    notifier = Notifier(pools.control, settings)
    notifier.start()
    try:
        async with heard(database_url) as (listener, queue), connected(database_url) as other:
            await is_listening(listener, other)
            for number in range(100):
                notifier.notify("c", str(number))
                await asyncio.sleep(0)
            found = [await next_of(queue)]
            while found[-1] != "99":
                found.append(await next_of(queue))
            assert len(found) < 10
    finally:
        await notifier.stop()
        await pools.close()
