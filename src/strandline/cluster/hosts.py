"""Where a heart beats: in a thread of its own, or in the app's event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

from strandline.cluster.heart import Heart
from strandline.cluster.node import Identity
from strandline.cluster.vitals import Chest, Command, PulseOptions
from strandline.postgres.line import calm

LOOK_EVERY = 0.5  # seconds between looks whether the app's event loop was closed without a word
LAST_WORDS = 5.0  # seconds to write that down; after that the ttl tells it


class Host(Protocol):
    """Keeps a heart beating."""

    restarts: int

    def start(self) -> None:
        """Begin; called in the app's event loop."""
        ...

    def ask(self, command: Command) -> Awaitable[bool]:
        """Hand *command* to the heart; whether it was done."""
        ...

    async def stop(self, *, timeout: float) -> None:
        """End within about *timeout* seconds, whatever hangs."""
        ...


class LoopHost:
    """In the app's event loop: whatever blocks that loop stops the heart too. For tests."""

    restarts = 0

    def __init__(self, identity: Identity, options: PulseOptions, chest: Chest) -> None:
        self._heart = Heart(identity, options, chest)

    def start(self) -> None:
        """See ``Host``."""
        self._heart.start()

    def ask(self, command: Command) -> Awaitable[bool]:
        """See ``Host``."""
        return self._heart.obey(command)

    async def stop(self, *, timeout: float) -> None:
        """See ``Host``."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._heart.stop()


class ThreadHost:
    """In a thread with an event loop of its own. Only what holds the GIL for long stops it."""

    restarts = 0

    def __init__(self, identity: Identity, options: PulseOptions, chest: Chest) -> None:
        self._make: Callable[[], Heart] = lambda: Heart(identity, options, chest)
        self._app_loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._app_loop.create_future()
        self._loop = asyncio.SelectorEventLoop()
        calm(self._loop)
        self._stopping = asyncio.Event()
        self._heart: Heart | None = None
        self._begun = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="strandline-pulse", daemon=True)

    def start(self) -> None:
        """See ``Host``."""
        self._thread.start()

    def ask(self, command: Command) -> Awaitable[bool]:
        """See ``Host``."""
        return asyncio.wrap_future(
            asyncio.run_coroutine_threadsafe(self._obeyed(command), self._loop)
        )

    async def stop(self, *, timeout: float) -> None:
        """See ``Host``."""
        with suppress(RuntimeError):  # its loop is closed: it has ended
            self._loop.call_soon_threadsafe(self._stopping.set)
        if self._thread.is_alive():
            await asyncio.wait({self._ended}, timeout=timeout)

    async def _obeyed(self, command: Command) -> bool:
        await self._begun.wait()
        assert self._heart is not None
        return await self._heart.obey(command)

    def _run(self) -> None:
        loop = self._loop
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(self._beat())
        finally:
            loop.close()
            with suppress(RuntimeError):  # the app's loop is closed: nobody waits any more
                self._app_loop.call_soon_threadsafe(self._has_ended)

    async def _beat(self) -> None:
        self._heart = self._make()
        self._heart.start()
        self._begun.set()
        while not self._stopping.is_set() and not self._app_loop.is_closed():
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY):
                    await self._stopping.wait()
        with suppress(TimeoutError):
            if not self._stopping.is_set():
                async with asyncio.timeout(LAST_WORDS):
                    await self._heart.die("its event loop was closed")
        await self._heart.stop()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        if rest:
            await asyncio.wait(rest, timeout=1.0)

    def _has_ended(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)
