"""THE background loop: interval, jitter, wake-up, time limit, error isolation, restart.

Everything that runs in the background is a ``Loop`` around one coroutine function, its *step*.
The step is called again and again: after ``interval`` seconds, or at once when somebody calls
``wake``. A step that raises is logged and counted and the loop goes on after a growing delay; a
step that takes longer than ``limit`` is cancelled and counted the same way; only ``stop`` and an
``ends_on`` error end the loop. A dead loop cannot look alive: ``statistics`` tells the age of the
last good step.
"""

from __future__ import annotations

import asyncio
import random
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass

from strandline.clock import Clock, SystemClock
from strandline.telemetry.journal import Journal
from strandline.telemetry.signals import Signals

log = Journal("strandline.loops")

LONGEST_DELAY = 10.0  # seconds between tries of a step that keeps failing


@dataclass(frozen=True, slots=True)
class LoopStatistics:
    """How a loop is doing.

    Attributes:
        kind: Its name without what it is for.
        is_dead: It has ended, and nobody told it to.
    """

    name: str
    kind: str
    running: bool
    steps: int
    failures: int
    consecutive_failures: int
    last_error: str
    seconds_since_success: float
    is_dead: bool = False


@dataclass(frozen=True, slots=True)
class Rhythm:
    """When a loop's step is due.

    Attributes:
        interval: Seconds between steps when nobody wakes the loop.
        jitter: Up to this share of the interval is taken off at random, so that nodes spread.
        limit: Seconds one step may take; None for no limit.
        gap: Seconds that at least lie between two steps, woken or not.
    """

    interval: float
    jitter: float = 0.1
    limit: float | None = None
    gap: float = 0.0


class Loops:
    """The loops of one app: those that run, and those that have ended without being told to.

    A loop belongs to the app whose ``begun_here`` was entered around its ``start``, or around the
    task that starts it; else to the one in which it was made, if somebody's first call starts it.
    What a loop fails with is told as ``loop_failed``.
    """

    def __init__(self, signals: Signals) -> None:
        self._signals = signals
        # Weak: one that ended badly is told for as long as somebody keeps it.
        self._of: dict[int, weakref.ref[Loop]] = {}

    @contextmanager
    def begun_here(self) -> Iterator[None]:
        """What is started inside is one of these."""
        token = _owner.set(self)
        try:
            yield
        finally:
            _owner.reset(token)

    def statistics(self) -> tuple[LoopStatistics, ...]:
        """A picture of now; may be asked for by any thread."""
        found = [reference() for reference in list(self._of.values())]
        return tuple(loop.statistics() for loop in found if loop is not None)

    def _began(self, loop: Loop) -> None:
        key = id(loop)
        self._of[key] = weakref.ref(loop, lambda _: self._of.pop(key, None))

    def _ended(self, loop: Loop) -> None:
        if not loop.is_dead:
            self._of.pop(id(loop), None)

    def _failed(self, loop: Loop, error: BaseException) -> None:
        with suppress(Exception):  # one that listens must not end the loop
            self._signals.tell("loop_failed", loop=loop.kind, name=loop.name, error=error)


_owner: ContextVar[Loops | None] = ContextVar("strandline_loops", default=None)


class Loop:
    """One supervised background loop. A step that answers True is called again at once."""

    def __init__(
        self,
        name: str,
        step: Callable[[], Awaitable[bool | None]],
        rhythm: Rhythm,
        *,
        ends_on: tuple[type[BaseException], ...] = (),
        clock: Clock | None = None,
        kind: str = "",
    ) -> None:
        self.name = name
        self.kind = kind or name  # in metrics, where a name for each shard would be too much
        self.failure: BaseException | None = None
        self._step = step
        self._rhythm = rhythm
        self._ends_on = ends_on
        self._clock = clock or SystemClock()
        self._wake = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._owner = _owner.get()
        self._steps = self._failures = self._consecutive = 0
        self._last_error = ""
        self._last_success = self._clock.monotonic()

    def start(self) -> None:
        """Begin; the first step is due at once. A second call does nothing."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"strandline:{self.name}")
            self._owner = owner = _owner.get() or self._owner
            if owner is not None:
                owner._began(self)
                self._task.add_done_callback(lambda _: owner._ended(self))

    def wake(self) -> None:
        """Make the next step due now. Cheap; many calls are one step."""
        self._wake.set()

    async def stop(self, *, timeout: float = 5.0) -> bool:
        """Let the step under way finish within *timeout* seconds, then cancel it.

        Returns:
            Whether it ended by itself.
        """
        self._stopping = True
        self._wake.set()
        if self._task is None:
            return True
        done, _ = await asyncio.wait({self._task}, timeout=timeout)
        if done:
            return True
        self._task.cancel()
        await asyncio.wait({self._task}, timeout=1.0)
        return False

    async def join(self) -> None:
        """Wait until the loop has ended, by ``stop`` or by an ``ends_on`` error."""
        if self._task is not None:
            await asyncio.wait({self._task})

    @property
    def is_ending(self) -> bool:
        """Whether it was told to end: by ``stop``, or with its whole event loop."""
        return self._stopping or (self._task is not None and self._task.cancelling() > 0)

    @property
    def running(self) -> bool:
        """Whether the loop has begun and not ended."""
        return self._task is not None and not self._task.done()

    @property
    def is_dead(self) -> bool:
        """Whether it has ended though nobody told it to, and it met no error that it ends on."""
        ended = self._task is not None and self._task.done()
        return ended and not self._stopping and self.failure is None

    def statistics(self) -> LoopStatistics:
        """A picture of now."""
        return LoopStatistics(
            name=self.name,
            kind=self.kind,
            running=self.running,
            steps=self._steps,
            failures=self._failures,
            consecutive_failures=self._consecutive,
            last_error=self._last_error,
            seconds_since_success=self._clock.monotonic() - self._last_success,
            is_dead=self.is_dead,
        )

    async def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            begun = self._clock.monotonic()
            again = await self._once()
            if again is None:
                return
            if not again and not self._stopping:
                await self._rest()
            spare = self._rhythm.gap - (self._clock.monotonic() - begun)
            if spare > 0 and not self._stopping:
                await asyncio.sleep(spare)

    async def _once(self) -> bool | None:
        """Run one step. True: again at once; False: rest; None: the loop ends."""
        try:
            async with asyncio.timeout(self._rhythm.limit):
                again = bool(await self._step())
        except self._ends_on as error:
            self.failure = error
            self._last_error = repr(error)
            return None
        except (Exception, asyncio.CancelledError) as error:  # one bad step must not end the loop
            current = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and (not current or current.cancelling()):
                raise  # this loop was told to end, and not just something that its step awaited
            self._failures += 1
            self._consecutive += 1
            self._last_error = repr(error)
            if self._owner is not None:
                self._owner._failed(self, error)
            log.tell("loop_failed", loop=self.name, failures=self._consecutive, error=error)
            await self._rest(min(LONGEST_DELAY, 0.1 * 2 ** min(self._consecutive, 10)))
            return True
        self._steps += 1
        self._consecutive = 0
        self._last_success = self._clock.monotonic()
        if again:
            await asyncio.sleep(0)  # a busy loop still lets the others run
        return again

    async def _rest(self, seconds: float | None = None) -> None:
        if seconds is None:
            seconds = self._rhythm.interval * (1 - random.random() * self._rhythm.jitter)  # noqa: S311 - spreading, not secrecy
        elif self._stopping:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass
