"""When an event loop last turned, to be asked from other threads while it is blocked."""

from __future__ import annotations

import asyncio
import sys
import threading
import time

EVERY = 0.1  # seconds between stamps
MOMENT = 0.5  # seconds a loop is given to turn once more, before it is called blocked


class LoopStamp:
    """Stamps that the running loop turns, from ``start`` to ``stop``."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._stamp = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin; called in the loop that is watched."""
        self.stop()
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._turn()

    def stop(self) -> None:
        """End: nothing is blocked any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._loop, self._timer, self._stamp = None, None, 0.0

    @property
    def age(self) -> float:
        """Seconds for which the loop has not turned; 0 while it does, and before the start."""
        stamp = self._stamp
        if not stamp or threading.get_ident() == self._thread:  # who asks is the loop itself
            return 0.0
        return max(0.0, time.monotonic() - stamp - EVERY)

    def lasting_age(self, limit: float) -> float:
        """The age; if it is above *limit*, after a moment in which the loop may turn.

        A whole process that was stopped and goes on wakes up here before its loop has turned.
        """
        until = time.monotonic() + MOMENT
        while (age := self.age) > limit and time.monotonic() < until:
            time.sleep(0.02)
        return age

    def place(self) -> str:
        """What the loop's thread runs now: function, file and line; empty if that is not known."""
        frame = sys._current_frames().get(self._thread)
        if frame is None:
            return ""
        code = frame.f_code
        return f"{code.co_qualname}, {code.co_filename}:{frame.f_lineno}"

    def _turn(self) -> None:
        if self._loop is not None:
            self._stamp = time.monotonic()
            self._timer = self._loop.call_later(EVERY, self._turn)
