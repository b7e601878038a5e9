"""Nodes to be scraped: in this process, in a thread with a loop of its own, or as processes."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from tally import tally_app

from strandline.app import App

# Patient where nothing is waited for: a busy machine must not add an incident of its own.
CALM = {
    "pulse": "thread",
    "pulse_interval": 0.1,
    "node_ttl": 20.0,
    "leader_ttl": 20.0,
    "poll_interval": 0.05,
    "survey_interval": 0.2,
    "control_connections": 4,  # for surveys that come fifty times as often as usual
    "rejoin_grace": 0.0,
    "rebalance_interval": 0.2,
    "stop_timeout": 5.0,
    "stop_reserve": 2.0,
    "stop_hard": 20.0,
    "ops_port": 0,
}
SHARDS = ("versions:v1:all", "positions:v1:all")


def calm_app(
    url: str, name: str = "a", *, make: Callable[..., App] = tally_app, **options: Any
) -> App:
    """An app that can be a node to scrape; *make* makes it."""
    return make(url, **{"node_name": name, **CALM, **options})


@asynccontextmanager
async def running(app: App, *projections: Any) -> AsyncIterator[App]:
    """*app* as a node, inside the block."""
    async with app:
        await app.start(*projections)
        yield app


class Aside:
    """A node in a thread with an event loop of its own, which can be blocked."""

    def __init__(self, app: App) -> None:
        self.app = app
        self._up = threading.Event()
        self._failed: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    async def __aenter__(self) -> Aside:
        self._thread.start()
        assert await asyncio.to_thread(self._up.wait, 30)
        if self._failed is not None:
            raise self._failed
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._loop is not None and self._over is not None:
            self._loop.call_soon_threadsafe(self._over.set)
        await asyncio.to_thread(self._thread.join, 30)

    def call(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call *function* in its loop; it may block that."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(function, *arguments)

    def _run(self) -> None:
        try:
            asyncio.run(self._live())
        except BaseException as error:
            self._failed = error
        finally:
            self._up.set()

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        async with running(self.app):
            self._up.set()
            await self._over.wait()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
