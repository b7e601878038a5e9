"""Turns: of those with the same key one at a time, in the order in which they came."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

Key = tuple[str, str]


class _Line:
    """Of one key.

    Attributes:
        having: How many have the turn.
        shared: They have it together.
        called: The first of those who waited has been told to begin, and has not yet.
    """

    __slots__ = ("called", "having", "shared", "waiting")

    def __init__(self) -> None:
        self.having = 0
        self.shared = False
        self.called = False
        self.waiting: deque[tuple[asyncio.Future[None], bool]] = deque()

    def is_open(self, shared: bool) -> bool:
        """Whether those who have the turn let one more begin."""
        return not self.having or (shared and self.shared)


class Turns:
    """Who waits behind whom, by key."""

    def __init__(self) -> None:
        self._lines: dict[Key, _Line] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    @asynccontextmanager
    async def of(self, key: Key | None, *, shared: bool = False) -> AsyncIterator[None]:
        """Have the turn of *key* for the length of the block; None: there is nothing to wait for.

        Args:
            key: Of which there is one line.
            shared: Neighbours in the line who say so have the turn together, and begin in order.
        """
        if key is None:
            yield
            return
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line()
            self._idle.clear()
        elif line.waiting or line.called or not line.is_open(shared):
            await self._called(key, line, shared)
        line.having += 1
        line.shared = shared
        self._next(key, line)
        try:
            yield
        finally:
            line.having -= 1
            self._next(key, line)

    async def end(self, timeout: float, error: Exception) -> None:
        """Wait until nobody has a turn; those who wait for one after that get *error*."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        for line in self._lines.values():
            while line.waiting:
                future, _ = line.waiting.popleft()
                if not future.done():
                    future.set_exception(error)

    async def _called(self, key: Key, line: _Line, shared: bool) -> None:
        """Wait in *line*."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.waiting.append((future, shared))
        try:
            await future
        except BaseException:
            if not future.cancelled() and future.exception() is None:
                line.called = False  # its turn had come already
            self._next(key, line)
            raise
        line.called = False

    def _next(self, key: Key, line: _Line) -> None:
        while line.waiting and not line.called:
            future, shared = line.waiting[0]
            if not future.done():
                if not line.is_open(shared):
                    return
                line.called = True
                future.set_result(None)
            line.waiting.popleft()
        if not line.having and not line.called and self._lines.get(key) is line:
            del self._lines[key]
            if not self._lines:
                self._idle.set()
