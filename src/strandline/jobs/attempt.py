"""One execution of a job: what its runner, its deadline and its function share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context, copy_context
from typing import Any, Literal

from strandline.jobs.context import CURRENT, JobContext, Reach
from strandline.jobs.job import Executor, Job
from strandline.jobs.row import Claimed

StoppedFor = Literal["", "cancelled", "time", "stop", "out"]


class Runnable:
    """A kind as a node runs it: compiled once from its function, middleware and injections.

    Attributes:
        run: Begins an attempt. What it answers must be awaited in the same task; for a plain async
            function that is the coroutine of the function itself.
        executor: Where it runs. In a thread it is asked to stop by the first cancellation, and left
            to itself by the second.
    """

    __slots__ = ("executor", "job", "kind", "reach", "retry", "run", "timeout")

    def __init__(
        self,
        job: Job[..., Any],
        run: Callable[[Attempt], Awaitable[Any]],
        reach: Reach | None = None,
    ) -> None:
        self.job = job
        self.kind = job.kind
        self.retry = job.retry
        self.timeout = job.timeout
        self.executor: Executor = job.executor
        self.run = run
        self.reach = reach


class Attempt(JobContext):
    """One execution of a job. Made for every job, so it holds little and makes nothing.

    Attributes:
        started: By the runner's clock.
        deadline: When its time is up, by the same clock; None: never.
        is_settled: The job's end is in the database already: nothing more is written about it.
        stopped_for: Why it was cancelled.
        task: The runner's.
    """

    __slots__ = ("_base", "_ground", "deadline", "runnable", "started", "task")

    def __init__(
        self,
        job: Claimed,
        runnable: Runnable,
        started: float = 0.0,
        task: asyncio.Task[Any] | None = None,
    ) -> None:
        self.job = job
        self.stopped_for = ""
        self.is_settled = False
        self._reach = runnable.reach
        self._loop = None
        self._meta = None
        self.runnable = runnable
        self.started = started
        self.deadline: float | None = None
        self.task = task
        self._ground: Context | None = None
        self._base: Context | None = None

    def stop(self, why: StoppedFor) -> None:
        """Cancel it, once; the first reason stays."""
        if not self.stopped_for:
            self.stopped_for = why
            if self.task is not None:
                self.task.cancel()

    def enter(self) -> Context | None:
        """Become the current job of this task.

        A runner executes job after job in one task, and what one of them has set in context
        variables must not be seen by the next. The variables of a task cannot be taken back, but to
        see whether they are as they were costs two pointers: only a job that comes after one that
        left something behind needs a context, and with it a task, of its own.

        Returns:
            None, or the context that this attempt must run in.
        """
        previous = CURRENT.get()
        if not isinstance(previous, Attempt):
            self._base = copy_context()
        else:
            base = previous._base
            if base is None or not _unchanged(previous._ground):
                own = base.copy() if base is not None else copy_context()
                own.run(CURRENT.set, self)
                previous._ground = None
                return own
            self._base = base
            previous._ground = previous._base = None  # or attempts would be a chain for ever
        CURRENT.set(self)
        self._ground = copy_context()
        return None


def _unchanged(ground: Context | None) -> bool:
    try:
        return ground is not None and copy_context() == ground
    except Exception:  # two values of the user's that cannot be compared
        return False
