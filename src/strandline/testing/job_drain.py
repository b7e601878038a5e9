"""Runs enqueued jobs one after the other in a test: claimed, executed, settled as on a node."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from typing import Any, Literal, TypeAlias

from strandline.app import App
from strandline.errors import TO_THE_PROCESS
from strandline.jobs import completion, cron, enqueue, executing, order
from strandline.jobs.attempt import Attempt, Runnable
from strandline.jobs.context import CURRENT
from strandline.jobs.executing import Executors
from strandline.jobs.fetch import claim, first_claim
from strandline.jobs.outcome import TimeLimitExceeded, judged
from strandline.jobs.progress import ProgressBoard
from strandline.jobs.reach import NodeReach
from strandline.jobs.rescue import draw_number
from strandline.jobs.returned import completed
from strandline.jobs.right import Right
from strandline.jobs.row import Claimed, Ended
from strandline.jobs.runner import SIGNALS, time_limit
from strandline.jobs.scheduling import promote_due
from strandline.jobs.templates import made
from strandline.postgres.operations import Op, many, none, one
from strandline.postgres.statements import SqlFile

Outcome: TypeAlias = Literal[
    "completed", "retried", "dead", "snoozed", "cancelled", "released", "lost"
]
_OUTCOMES: dict[str, Outcome] = {
    "completed": "completed",
    "retry": "retried",
    "dead": "dead",
    "snoozed": "snoozed",
    "cancelled": "cancelled",
    "released": "released",
}


@dataclass(frozen=True, slots=True)
class Ran:
    """One attempt.

    Attributes:
        outcome: What became of the job; ``lost``: somebody else has it.
        result: What the function returned.
        error: What it raised.
        delay: Seconds until the next attempt, if there is one.
    """

    id: int
    kind: str
    queue: str
    attempt: int
    outcome: Outcome
    result: Any = None
    error: BaseException | None = None
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Drained:
    """What was run, in order."""

    runs: tuple[Ran, ...] = ()

    @property
    def completed(self) -> int:
        """Jobs that completed."""
        return self._count("completed")

    @property
    def retried(self) -> int:
        """Attempts that failed and are followed by another."""
        return self._count("retried")

    @property
    def dead(self) -> int:
        """Jobs whose attempts are used up."""
        return self._count("dead")

    @property
    def snoozed(self) -> int:
        """Attempts that put their job off."""
        return self._count("snoozed")

    @property
    def cancelled(self) -> int:
        """Jobs that cancelled themselves."""
        return self._count("cancelled")

    @property
    def errors(self) -> list[BaseException]:
        """What was raised, verdicts left out."""
        return [run.error for run in self.runs if run.error and run.outcome in ("retried", "dead")]

    def of(self, job: Any) -> list[Ran]:
        """The attempts of *job*, a job or its kind."""
        kind = getattr(job, "kind", job)
        return [run for run in self.runs if run.kind == kind]

    def raise_errors(self) -> None:
        """Raise what the attempts raised, if any did.

        Raises:
            Exception: The only one.
            BaseExceptionGroup: There were more.
        """
        __tracebackhide__ = True
        found = self.errors
        if len(found) == 1:
            raise found[0]
        if found:
            raise BaseExceptionGroup(f"{len(found)} attempts failed", found)

    def _count(self, outcome: Outcome) -> int:
        return sum(run.outcome == outcome for run in self.runs)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A row of a job that has not ended."""

    id: int
    kind: str
    queue: str
    state: int
    priority: int
    attempt: int
    max_attempts: int
    flags: int
    run_at: datetime | None
    key: str | None
    unique_key: str | None
    tenant: str | None
    args: str
    meta: str | None


@dataclass(frozen=True, slots=True)
class _Queue:
    queue: str


@dataclass(frozen=True, slots=True)
class _Id:
    id: int


_sql = SqlFile(__name__)
NEXT_AVAILABLE = _sql.one("next_available", _Queue)
BRING_FORWARD = _sql.one("bring_forward", _Id)
WAITING = _sql.many("waiting", Waiting)
ADVANCE = _sql.none("advance")


def next_available(kinds: Sequence[str], queues: Sequence[str]) -> Op[_Queue | None]:
    """Where the next job is to be claimed."""
    return (yield from one(NEXT_AVAILABLE, kinds, queues))


def bring_forward(kinds: Sequence[str], queues: Sequence[str]) -> Op[_Id | None]:
    """Let the scheduled job that is due next be due now."""
    return (yield from one(BRING_FORWARD, kinds, queues))


def waiting(kinds: Sequence[str]) -> Op[list[Waiting]]:
    """Jobs of *kinds*, of all if none are named, that have not ended."""
    return many(WAITING, list(kinds))


def advance(seconds: float) -> Op[None]:
    """Let everything that waits for a moment wait so much less."""
    return none(ADVANCE, seconds)


class Drain:
    """Runs the jobs of an app, one at a time.

    Args:
        app: An open one.
        queues: Only these; all when empty.
    """

    def __init__(self, app: App, queues: Sequence[str] = ()) -> None:
        self._app = app
        self._queues = list(queues)
        self._pool = app.pools.work
        self._counter = count(1)
        self._number: int | None = None
        self._runnables: dict[str, Runnable] = {}
        self._executors = Executors(threads=4, processes=1)
        self._board = ProgressBoard(app.pools.control, gap=0.0)
        complete = app._job_ties().complete
        self._reach = NodeReach(self._pool, self._board, complete)

    async def run(
        self, *, with_scheduled: bool, until: Callable[[Ran], Any] | None, most: int
    ) -> Drained:
        """Run until nothing is available; see ``jobs.drain``."""
        runs: list[Ran] = []
        self._board.start()
        try:
            while (job := await self._next(with_scheduled=with_scheduled)) is not None:
                if len(runs) >= most:
                    kinds = Counter(run.kind for run in runs).most_common(3)
                    raise AssertionError(
                        f"{most} attempts, and there are more: a job that enqueues itself for ever,"
                        f" or most= is too small ({', '.join(f'{n} of {kind!r}' for kind, n in kinds)})"
                    )
                ran = await self._one(job)
                runs.append(ran)
                if until is not None and until(ran):
                    break
        finally:
            await self._board.stop()
            await self._executors.stop()
            await self._app.job_hooks.settle()
        return Drained(tuple(runs))

    async def _next(self, *, with_scheduled: bool) -> Claimed | None:
        """Claim the next job there is."""
        kinds = list(self._app.kinds.names)
        if self._number is None:
            self._number = await self._pool.run(draw_number())
        while True:
            await self._pool.run(promote_due(Right()))
            found = await self._pool.run(next_available(kinds, self._queues))
            if found is not None:
                token = first_claim(self._number) + next(self._counter)
                claimed = await self._pool.run(claim(found.queue, kinds, 1, token))
                if claimed:
                    return claimed[0]
                continue
            # Ordered jobs whose turn it is are told of after a commit, perhaps not yet.
            if (await self._pool.run(order.sweep())).promoted:
                continue
            if not with_scheduled:
                return None
            if await self._pool.run(bring_forward(kinds, self._queues)) is None:
                return None

    async def _one(self, job: Claimed) -> Ran:
        """Run one attempt, and write how it ended."""
        ended, result, error, attempt = await self._attempted(job)
        if attempt.is_settled:
            return _ran(job, "completed", result, error)
        async with self._pool.transaction() as session:
            linked = await session.run(completion.settle_linked([ended]))
        keys = linked.keys
        queues = linked.queues | await self._pool.run(order.promote(keys))
        self._app.wakes.enqueued(queues)
        if not linked.settled:
            return _ran(job, "lost", result, error)
        if ended.ending != "completed":
            self._app.signals.tell(
                SIGNALS[ended.ending],
                id=job.id,
                kind=job.kind,
                queue=job.queue,
                attempt=job.attempt,
                delay=ended.delay,
                reason=ended.reason,
                error=error,
            )
        return _ran(job, _OUTCOMES[linked.settled[0].ending], result, error, ended.delay)

    async def _attempted(self, job: Claimed) -> tuple[Ended, Any, BaseException | None, Attempt]:
        runnable = self._runnable(job.kind)
        attempt = Attempt(job, runnable)
        limit = time_limit(job, runnable.timeout)
        running = in_task(attempt)
        loop = asyncio.get_running_loop()
        timer = None if limit is None else loop.call_later(limit, attempt.stop, "time")
        try:
            await asyncio.wait({running})
        finally:
            if timer is not None:
                timer.cancel()
            if not running.done():  # this waits no more: the test is over
                running.cancel()
                await asyncio.wait({running}, timeout=5.0)
        try:
            result = running.result()
        except TO_THE_PROCESS:
            raise
        except BaseException as error:  # the job's, whatever it is
            ended = judged(
                job,
                runnable.retry,
                error,
                stopped_for=attempt.stopped_for,
                limit=limit,
                now=self._app._job_ties().wiring.clock.now(),
            )
            if attempt.stopped_for == "time":
                over = TimeLimitExceeded(f"it took longer than {limit:g} s")
                over.__cause__ = error
                return ended, None, over, attempt
            return ended, None, error, attempt
        ended = Ended(job, "completed") if result is None else completed(job, result)
        return ended, result, None, attempt

    def _runnable(self, kind: str) -> Runnable:
        app = self._app
        job = app.kinds.get(kind)
        if job.kind not in self._runnables:
            self._runnables[job.kind] = executing.compile(
                job,
                app.kinds,
                app.job_middlewares,
                app.job_hooks,
                self._executors,
                reach=self._reach,
            )
        return self._runnables[job.kind]

    async def fire(self) -> int:
        """Enqueue what is due by the schedules, as the leader would; how many jobs."""
        fired = 0
        for schedule in await self._pool.run(cron.due_schedules()):
            moments, next_at, _ = cron.plan(schedule)
            ids = await self._pool.run(self._app.job_ids.draw(len(moments)))
            jobs = [made(schedule.job, *pair) for pair in zip(ids, moments, strict=True)]
            async with self._pool.transaction() as session:
                enqueued = await session.run(
                    cron.fire(Right(), schedule, moments, next_at, jobs, enqueue.insert)
                )
            fired += len(enqueued)
        return fired


def in_task(attempt: Attempt) -> asyncio.Task[Any]:
    """Run *attempt* in a task of its own, as if no other job were around it."""
    context: Context = copy_context()
    context.run(CURRENT.set, None)

    async def run() -> Any:
        return await attempt.runnable.run(attempt)

    attempt.task = asyncio.get_running_loop().create_task(run(), context=context)
    return attempt.task


def _ran(
    job: Claimed, outcome: Outcome, result: Any, error: BaseException | None, delay: float = 0.0
) -> Ran:
    return Ran(job.id, job.kind, job.queue, job.attempt, outcome, result, error, delay)
