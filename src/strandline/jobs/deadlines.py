"""Time limits of attempts, and what becomes of those that do not end when they are told to.

One loop looks at all attempts that have a limit; no attempt has a timer of its own.
"""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

from strandline.loops import Loop, Rhythm

RESOLUTION = 0.05  # seconds
FRAMES = 12  # of a stuck handler's stack that are logged


class Runs(Protocol):
    """A runner, as far as it matters here."""

    attempt: Any

    def stop(self, attempt: Any, why: str) -> None:
        """Cancel *attempt* if it is still the one under way."""
        ...

    def press(self, attempt: Any) -> None:
        """Cancel it once more."""
        ...


@dataclass(slots=True)
class Told:
    """An attempt that was told to end."""

    attempt: Any
    since: float


class Deadlines:
    """Watches the attempts of one node.

    Args:
        now: Monotonic seconds.
        stuck_after: Seconds an attempt may go on once it was told to end.
        on_stuck: Called with the runner and its attempt, once, when it went on for longer.
    """

    def __init__(
        self, now: Callable[[], float], stuck_after: float, on_stuck: Callable[[Any, Any], None]
    ) -> None:
        self._now = now
        self._stuck_after = stuck_after
        self._on_stuck = on_stuck
        self._limited: dict[Runs, Any] = {}
        self._told: dict[Runs, Told] = {}
        self._loop = Loop("job deadlines", self._looked, Rhythm(3600.0, jitter=0.0, gap=RESOLUTION))

    def start(self) -> None:
        """Begin to look."""
        self._loop.start()

    async def stop(self) -> None:
        """End looking."""
        await self._loop.stop(timeout=1.0)

    def limit(self, runner: Runs, attempt: Any) -> None:
        """Stop *attempt* of *runner* at its deadline."""
        self._limited[runner] = attempt
        if len(self._limited) == 1:
            self._loop.wake()

    def told(self, runner: Runs, attempt: Any) -> None:
        """*attempt* was told to end just now."""
        self._told[runner] = Told(attempt, self._now())
        self._loop.wake()

    async def _looked(self) -> bool:
        now = self._now()
        for runner, attempt in list(self._limited.items()):
            if runner.attempt is not attempt:
                del self._limited[runner]
            elif attempt.deadline <= now:
                del self._limited[runner]
                runner.stop(attempt, "time")
        for runner, told in list(self._told.items()):
            if runner.attempt is not told.attempt:
                del self._told[runner]
            elif now - told.since >= self._stuck_after:
                del self._told[runner]
                runner.press(told.attempt)
                self._on_stuck(runner, told.attempt)
        return bool(self._limited or self._told)


def stack_of(task: Any) -> str:
    """Where *task* stands, for a log."""
    if task is None:
        return ""
    words = io.StringIO()
    frames: list[tuple[FrameType, int]] = []
    awaited = task.get_coro()
    while awaited is not None and len(frames) < 100:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is not None:
            frames.append((frame, frame.f_lineno))
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    traceback.print_list(traceback.StackSummary.extract(iter(frames[-FRAMES:])), file=words)
    return words.getvalue() or f"(no frames, Python {sys.version_info[0]}.{sys.version_info[1]})"
