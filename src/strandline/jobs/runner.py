"""A runner: one of the long-lived tasks that take jobs of a queue from its buffer and run them.

This is the hot path: a plain async job costs a few microseconds here. There is no task, no timer
and no log line for each job; a time limit is looked after by ``Deadlines``.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio import CancelledError
from collections.abc import Callable
from typing import Any, Protocol, cast

import msgspec

from strandline.clock import Clock
from strandline.errors import TO_THE_PROCESS
from strandline.jobs.attempt import Attempt, Runnable, StoppedFor
from strandline.jobs.buffer import Buffer
from strandline.jobs.deadlines import Deadlines
from strandline.jobs.outcome import judged
from strandline.jobs.parts import Completer
from strandline.jobs.returned import completed
from strandline.jobs.row import Claimed, Ended
from strandline.jobs.telling import told
from strandline.telemetry.journal import Journal
from strandline.telemetry.signals import Signals

log = Journal("strandline.jobs")

SLICE = 0.002  # seconds of jobs that never wait, after which others get a turn
SIGNALS = {
    "retry": "job_failed",
    "dead": "job_dead",
    "snoozed": "job_snoozed",
    "cancelled": "job_cancelled",
    "released": "job_interrupted",
}


class Place(Protocol):
    """The worker that a runner belongs to; see ``Worker``."""

    queue: str
    buffer: Buffer
    completer: Completer
    deadlines: Deadlines
    runnables: dict[str, Runnable]
    signals: Signals
    clock: Clock
    low: int
    surplus: bool
    ended: int
    seconds: float

    async def rest(self, runner: Runner) -> bool:
        """Wait until there is a job to begin; False: *runner* is not needed any more."""
        ...

    def rouse_others(self) -> None:
        """A runner is about to take a job."""
        ...

    def refill(self) -> None:
        """The buffer runs low."""
        ...

    def runnable(self, job: Claimed) -> Runnable | None:
        """How to run *job*; None: it cannot be, and that is recorded."""
        ...

    def limit(self, runner: Runner, attempt: Attempt) -> None:
        """Have *attempt* stopped when its time is up, if it has a time limit."""
        ...

    def check(self) -> None:
        """Begin nothing more if this node may not trust itself: it may have been frozen."""
        ...

    def replace(self, runner: Runner) -> None:
        """*runner* does not end its attempt: another one gets its place."""
        ...


class Runner:
    """Runs job after job in one task.

    Attributes:
        attempt: What it runs now; None between two jobs.
        is_replaced: It was stuck, and another one has its place: it ends with its attempt.
    """

    __slots__ = ("_cancels", "_now", "attempt", "is_replaced", "task", "worker")

    def __init__(self, worker: Place, now: Callable[[], float]) -> None:
        self.attempt: Attempt | None = None
        self.is_replaced = False
        self.task: asyncio.Task[None] = asyncio.create_task(
            self._run(), name=f"strandline:job of {worker.queue}"
        )
        self.worker = worker
        self._now = now
        self._cancels = 0

    def stop(self, attempt: Attempt, why: str) -> None:
        """Cancel *attempt*, if it is still the one under way; the first reason stays.

        It is done by the event loop, when no task is running: this may be called by the very
        handler that it concerns, and the cancellation must hit that one and not a later job.
        """
        if not attempt.stopped_for or why == "out":
            attempt.stopped_for = cast("StoppedFor", why)
            self.worker.deadlines.told(self, attempt)
            asyncio.get_running_loop().call_soon(self.press, attempt)

    def press(self, attempt: Attempt) -> None:
        """Cancel its task; a second time leaves a handler in a thread to itself."""
        if self.attempt is attempt:
            self._cancels += 1
            self.task.cancel()

    async def _run(self) -> None:  # noqa: C901, PLR0912 - the hot path: calls cost more
        worker, now = self.worker, self._now
        jobs, task = worker.buffer.jobs, self.task
        done, put = worker.completer.done, worker.completer.put
        runnables, take = worker.runnables, worker.buffer.jobs.popleft
        started = turn = now()
        worker.rouse_others()
        while True:
            if not jobs or worker.surplus:
                if not await worker.rest(self):
                    return
                started = turn = now()
                continue
            job = take()
            if len(jobs) <= worker.low:
                worker.refill()
            runnable = runnables.get(job.kind) or worker.runnable(job)
            if runnable is None:
                continue
            self.attempt = attempt = Attempt(job, runnable, started, task)
            try:
                if runnable.timeout is not None or job.meta is not None:
                    worker.limit(self, attempt)
                result = await runnable.run(attempt)
            except BaseException as error:
                self._raised(attempt, error)
            else:
                if not attempt.is_settled and attempt.stopped_for != "out":
                    if result is None:
                        done(job, None)
                    else:
                        put(completed(job, result))
                if task.cancelling():
                    self._uncancelled()
            self.attempt = None
            ended = now()
            worker.ended += 1
            worker.seconds += ended - started
            started = ended
            if self.is_replaced:
                return
            if ended - turn > SLICE:
                await asyncio.sleep(0)
                worker.check()
                started = turn = now()

    def _raised(self, attempt: Attempt, error: BaseException) -> None:
        """Judge the *error* of *attempt*; what is meant for the process goes on to it."""
        if isinstance(error, GeneratorExit):  # a runner that was left behind is thrown away
            raise error
        worker, job = self.worker, attempt.job
        if attempt.is_settled:
            log.tell("settled_job_failed", job=job.id, kind=job.kind, error=error)
        elif attempt.stopped_for != "out":
            limit = None if attempt.deadline is None else attempt.deadline - attempt.started
            ended = judged(
                job,
                attempt.runnable.retry,
                error,
                stopped_for=attempt.stopped_for,
                limit=limit,
                now=worker.clock.now(),
            )
            worker.completer.put(ended)
            self._tell(ended, error, attempt.started)
        if isinstance(error, TO_THE_PROCESS):
            raise error
        self._uncancelled()

    def _uncancelled(self) -> None:
        """Take back the cancellations of the attempt that has ended, for the next ones.

        Raises:
            CancelledError: Somebody else has cancelled this task, the handler itself or who ends the
                event loop: another one takes its place, if the worker goes on.
        """
        asked, self._cancels = self._cancels, 0
        for _ in range(asked):
            self.task.uncancel()
        if self.task.cancelling():
            raise CancelledError

    def _tell(self, ended: Ended, error: BaseException, started: float) -> None:
        job = ended.job
        level = logging.ERROR if ended.ending == "dead" else logging.INFO
        if ended.error is not None:
            log.tell(
                "job_failed",
                level=level,
                job=job.id,
                kind=job.kind,
                queue=job.queue,
                attempt=job.attempt,
                max_attempts=job.max_attempts,
                error=error,
                outcome=ended.ending,
            )
        told(
            self.worker.signals,
            SIGNALS[ended.ending],
            id=job.id,
            kind=job.kind,
            queue=job.queue,
            attempt=job.attempt,
            delay=ended.delay,
            reason=ended.reason,
            error=error,
            seconds=self._now() - started,
        )


def time_limit(job: Claimed, usual: float | None) -> float | None:
    """Seconds an attempt of *job* may take: its own word, or what is usual for its kind."""
    if job.meta is None or '"timeout"' not in job.meta:
        return usual
    try:
        own: Any = msgspec.json.decode(job.meta).get("timeout")
        return float(own) if isinstance(own, int | float) and own > 0 else usual
    except (msgspec.DecodeError, AttributeError, OverflowError):  # written by hand
        return usual
