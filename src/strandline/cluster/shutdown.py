"""The end of a node: ordered steps, each with a time limit, none of which keeps the next from running.

Parts register how they are stopped while they start, so a signal in the middle of a start runs the
same code and stops what there is. Steps run one after the other, the last registered first;
neighbours of one phase other than 0 run side by side.

A step is a factory, called here: what it throws before its first ``await`` is its own failure like
any other. It is waited for with ``asyncio.wait``, cancelled when its time is up, and abandoned if it
does not end even so (``asyncio.wait_for`` would wait for it). Its time is the smallest of

* its own ``cap``,
* what is left of ``total``, less what the *needed* steps that follow may take: ``reserve`` in all,
  shared out by their caps. Others wait for these (the lease, the work, the node's row), so they
  begin whatever came before, and even if a blocked event loop used up everything.

A second signal shortens what is left to ``fast`` seconds, of which two thirds are kept for the needed
steps. What blocks the event loop itself cannot be cut off here: the deadlines of
``strandline.termination`` and the side process see to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from strandline.cluster.shutdown_report import ShutdownReport, Status, StepOutcome
from strandline.telemetry.journal import Journal
from strandline.telemetry.signals import Signals

log = Journal("strandline.shutdown")

LOOK = 0.05  # seconds between looks for a second signal
CANCEL = 0.1  # seconds a cancelled step has to end before it is abandoned
LEAST = 0.02  # seconds below which a step is not begun
BREAK_OFF = 5.0  # seconds a start under way may take to clean up once it is cancelled


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """How one part is stopped.

    Attributes:
        name: For the report.
        make: Called to begin it; what it returns is awaited.
        cap: Seconds it may take at the most.
        needed: Others wait for it: its share of the reserve is kept for it.
        phase: Neighbours of the same phase run side by side; 0 stands alone.
    """

    name: str
    make: Callable[[], Awaitable[Any]]
    cap: float
    needed: bool = False
    phase: int = 0


class Shutdown:
    """The steps of one run of a node, and their running. Ends once."""

    def __init__(
        self,
        *,
        total: float,
        reserve: float,
        fast: float,
        signals: Signals,
        hurry: Callable[[], int] = lambda: 0,
    ) -> None:
        """Begin without any step.

        Args:
            total: Seconds for all steps.
            reserve: Seconds of these kept for the needed steps; at most half of *total*.
            fast: Seconds left after a second signal.
            signals: Told ``shutdown_step`` after each and ``shutdown`` at the end.
            hurry: How many stop signals have come so far.
        """
        self._total, self._reserve, self._fast = total, min(reserve, total / 2), fast
        self._signals = signals
        self._hurry = hurry
        self._parts: list[Step] = []
        self._outcomes: list[StepOutcome] = []
        self._under_way: dict[Step, float] = {}
        self._needed = 0.0  # caps of all needed steps there ever were
        self._lost = 0.0  # seconds in which the event loop was blocked
        self._left_behind: set[asyncio.Task[Any]] = set()
        self._starts: set[asyncio.Task[Any]] = set()
        self._released: list[str] = []
        self._abandoned: list[str] = []
        self._jobs: dict[str, int] = {}
        self._reason = ""
        self._began = self._deadline = self._ended = 0.0
        self._is_fast = self._forced = False
        self._running: asyncio.Task[ShutdownReport] | None = None

    def part(self, step: Step) -> Callable[[], None]:
        """Register how something that has just started is stopped; the answer takes it back.

        While the shutdown runs such a step is the next one.

        Raises:
            RuntimeError: The shutdown is over.
        """
        if self._running is not None and self._running.done():
            raise RuntimeError(f"{step.name} was started after the shutdown; nothing will stop it")
        self._parts.append(step)
        self._needed += step.cap if step.needed else 0.0

        def withdraw() -> None:
            if any(one is step for one in self._parts):
                self._parts = [one for one in self._parts if one is not step]
                self._needed -= step.cap if step.needed else 0.0

        return withdraw

    def limit(self, total: float) -> None:
        """Give all steps *total* seconds instead, counted from the same moment."""
        self._total, self._reserve = total, min(self._reserve, total / 2)
        if self._running is not None:
            self._deadline = min(self._deadline, self._began + total)

    def note(self, *, released: Iterable[str] = (), abandoned: Iterable[str] = ()) -> None:
        """Add work to the report that was given back, or that did not end in time."""
        self._released += released
        self._abandoned += abandoned

    def note_jobs(self, **counts: int) -> None:
        """Add to the report how attempts of jobs ended: finished, interrupted, abandoned."""
        self._jobs.update(counts)

    @property
    def is_running(self) -> bool:
        """Whether it has begun, also if it is over."""
        return self._running is not None

    async def run(
        self, reason: str, *, began: float | None = None, stubborn: bool = False
    ) -> ShutdownReport:
        """Run every step; a second call waits for the same end.

        From inside a step, such as a hook that calls ``App.stop``, it answers at once with the
        report so far: it would wait for itself.

        Args:
            reason: For the report.
            began: Monotonic moment from which ``total`` counts, e.g. of the signal; None for now.
            stubborn: Whether the call waits for the end even if its task is cancelled, as hooks do
                that cancel every task they find. The steps go on in any case.
        """
        if self._running is not None and not self._running.done() and self._is_waited_for():
            return self.report()
        if self._running is None:
            self._reason = reason
            self._began = time.monotonic() if began is None else began
            self._deadline = self._began + self._total
            self._running = asyncio.create_task(self._run(), name="strandline:shutdown")
        if stubborn:
            while not self._running.done():
                await _wait({self._running}, self._total)
        return await asyncio.shield(self._running)

    def break_off(self, start: asyncio.Task[Any]) -> None:
        """Cancel a *start* that is under way, as the first of the steps."""

        async def end() -> None:
            start.cancel()
            await asyncio.wait({start}, timeout=BREAK_OFF - 2 * CANCEL)
            if not start.done():
                raise TimeoutError(f"the start goes on although it was cancelled{place(start)}")

        self._starts.add(start)
        self.part(Step("break off the start", end, BREAK_OFF))

    @property
    def overdue(self) -> float:
        """Seconds by which it has outlived its time in all; 0 before that, and once it is over."""
        if not self._began or self._ended:
            return 0.0
        return max(0.0, time.monotonic() - self._deadline)

    def report(self) -> ShutdownReport:
        """What has been done so far; may be asked from any thread."""
        now = time.monotonic()
        steps = list(self._outcomes)
        for step, since in list(self._under_way.items()):
            steps.append(StepOutcome(step.name, "running", now - since))
        return ShutdownReport(
            reason=self._reason,
            signals=self._hurry(),
            steps=tuple(steps),
            seconds=(self._ended or now) - self._began if self._began else 0.0,
            released=tuple(self._released),
            abandoned=tuple(self._abandoned),
            jobs=dict(self._jobs),
            forced=self._forced,
            is_complete=bool(self._ended),
        )

    def last_words(self) -> str:
        """The report of a process that is ended now, for ``Termination.last_words``."""
        return replace(self.report(), forced=True).json()

    async def _run(self) -> ShutdownReport:
        log.tell("stopping", reason=self._reason, seconds=self._total)
        while self._parts:
            await self._group(self._next())
        self._ended = time.monotonic()
        report = self.report()
        level = logging.INFO if report.result == "clean" else logging.WARNING
        _quietly(
            log.tell,
            "stopped",
            level=level,
            summary=report.summary(),
            result=report.result,
            seconds=report.seconds,
        )
        _quietly(log.tell, "shutdown_report", report=report.json())
        _quietly(
            self._signals.tell,
            "shutdown",
            report=report,
            result=report.result,
            seconds=report.seconds,
        )
        return report

    def _is_waited_for(self) -> bool:
        return _inside.get() is self or asyncio.current_task() in self._starts

    def _next(self) -> list[Step]:
        """Take the last step, and its neighbours of the same phase, out of the registry."""
        found = [self._parts.pop()]
        while self._parts and found[0].phase and self._parts[-1].phase == found[0].phase:
            found.append(self._parts.pop())
        return found

    # ---- one step, or some side by side

    async def _group(self, steps: list[Step]) -> None:
        under_way: dict[asyncio.Task[BaseException | None], Step] = {}
        for step in steps:
            now = time.monotonic()
            if not step.needed and self._end(step, now) - now < LEAST:
                self._forced = True
                self._settle(step, "skipped", 0.0, "no time was left")
                continue
            self._under_way[step] = now
            under_way[asyncio.create_task(self._isolated(step), name=f"strandline:{step.name}")] = (
                step
            )
        lost = self._lost
        while under_way:
            await self._look(under_way)
            for task, step in list(under_way.items()):
                begun, now = self._under_way[step], time.monotonic()
                # A blocked loop is no fault of a step that others wait for.
                excused = self._lost - lost if step.needed else 0.0
                if not task.done() and now < self._end(step, begun) + excused:
                    continue
                del under_way[task]
                await self._conclude(task, step, begun)

    async def _look(self, tasks: Iterable[asyncio.Task[Any]]) -> None:
        """Wait for one of *tasks*, a deadline or a signal; and notice when the loop was blocked."""
        before = time.monotonic()
        await _wait(tasks, LOOK)
        self._lost += max(0.0, time.monotonic() - before - 2 * LOOK)

    async def _conclude(
        self, task: asyncio.Task[BaseException | None], step: Step, begun: float
    ) -> None:
        if task.done():
            failure = _failure(task)
            status: Status = "ok" if failure is None else "error"
            self._settle(step, status, time.monotonic() - begun, _words(failure), failure)
            return
        seconds = time.monotonic() - begun
        self._forced |= seconds < step.cap
        where = f"cut off after {seconds:.2f} s{place(task)}"
        task.cancel()
        await _wait({task}, CANCEL)
        if not task.done():
            self._left_behind.add(task)
            where += "; goes on although it was cancelled"
        self._settle(step, "timeout", time.monotonic() - begun, where)

    def _settle(
        self,
        step: Step,
        status: Status,
        seconds: float,
        error: str,
        cause: BaseException | None = None,
    ) -> None:
        self._under_way.pop(step, None)
        outcome = StepOutcome(step.name, status, seconds, error)
        self._outcomes.append(outcome)
        if status == "ok":
            _quietly(log.tell, "step_done", step=step.name, seconds=seconds)
        else:
            _quietly(
                log.tell,
                "step_failed",
                step=step.name,
                status=status,
                reason=error,
                seconds=seconds,
                trace=cause,
            )
        _quietly(
            self._signals.tell,
            "shutdown_step",
            step=step.name,
            status=status,
            seconds=seconds,
            error=error,
        )

    async def _isolated(self, step: Step) -> BaseException | None:
        """Run *step*; what it raised, so that not even SystemExit reaches the event loop."""
        _inside.set(self)
        try:
            made = step.make()
            if inspect.isawaitable(made):
                await made
        except BaseException as error:
            return error
        return None

    # ---- time

    def _end(self, step: Step, begun: float) -> float:
        """The monotonic moment at which *step*, begun at *begun*, is cut off."""
        if not self._is_fast and self._hurry() >= 2:
            self._is_fast = True
            self._deadline = min(self._deadline, time.monotonic() + self._fast)
            self._reserve = min(self._reserve, self._fast * 2 / 3)
            _quietly(log.tell, "second_signal", seconds=self._fast)
        scale = min(1.0, self._reserve / self._needed) if self._needed else 0.0
        end = self._deadline - scale * sum(later.cap for later in self._parts if later.needed)
        if step.needed:
            end = max(end, begun + scale * step.cap)
        return min(begun + step.cap, end)


_inside: ContextVar[Shutdown | None] = ContextVar("shutdown", default=None)


async def _wait(tasks: Iterable[asyncio.Task[Any]], seconds: float) -> None:
    """Wait until one of *tasks* is done, at most *seconds*, also if somebody cancels us."""
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        if (current := asyncio.current_task()) is not None:
            current.uncancel()


def _failure(task: asyncio.Task[BaseException | None]) -> BaseException | None:
    return asyncio.CancelledError("cancelled by somebody") if task.cancelled() else task.result()


def _words(error: BaseException | None) -> str:
    if error is None:
        return ""
    try:
        return f"{type(error).__name__}: {error}"[:500]
    except BaseException:  # its own __str__ raised
        return type(error).__name__


def place(task: asyncio.Task[Any]) -> str:
    """Where *task* waits: the innermost code that is not asyncio's own."""
    where = ""
    one: Any = task.get_coro()
    while (frame := getattr(one, "cr_frame", None)) is not None:
        code = frame.f_code
        if not where or f"{os.sep}asyncio{os.sep}" not in code.co_filename:
            where = f" in {code.co_qualname}, {code.co_filename}:{frame.f_lineno}"
        one = getattr(one, "cr_await", None)
    return where


def _quietly(tell: Callable[..., Any], *what: Any, **facts: Any) -> None:
    """Tell, and lose what a listener or log handler raises: no step may be kept from running."""
    with contextlib.suppress(BaseException):
        tell(*what, **facts)
