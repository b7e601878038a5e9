"""Waits of an agent, on its clock: between tries and in pauses; ended early when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from strandline.clock import Clock


class Rest:
    """Waits that end early when the agent is told to stop, or is nudged."""

    def __init__(self, clock: Clock, stopping: asyncio.Event) -> None:
        self._clock = clock
        self._stopping = stopping
        self._nudged = asyncio.Event()

    def nudge(self) -> None:
        """End the pause under way: somebody has changed something."""
        self._nudged.set()

    async def between_tries(self, seconds: float) -> None:
        """Wait *seconds*, or until it is told to stop."""
        await self._either(seconds, self._stopping)

    async def during_pause(self, seconds: float) -> bool:
        """Wait *seconds*, or until it is told to stop or nudged; whether it was."""
        await self._either(seconds, self._stopping, self._nudged)
        was_nudged = self._nudged.is_set()
        self._nudged.clear()
        return was_nudged or self._stopping.is_set()

    async def no_longer(self, seconds: float, until: Coroutine[Any, Any, None]) -> bool:
        """Wait for *until*, but no longer than *seconds*; whether that time is over."""
        over = asyncio.create_task(self._clock.sleep(seconds))
        tasks = {over, asyncio.create_task(until)}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return over.done()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _either(self, seconds: float, *events: asyncio.Event) -> None:
        if any(event.is_set() for event in events):
            return
        tasks: set[asyncio.Task[Any]] = {asyncio.create_task(event.wait()) for event in events}
        tasks.add(asyncio.create_task(self._clock.sleep(seconds)))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
