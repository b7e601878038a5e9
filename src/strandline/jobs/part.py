"""What a node runs for jobs: workers and completer under its number, and the leader's duties.

A number is the node's for ever, and the upper half of every claim it makes. After an eviction the
process joins again under another one: nothing of before may act under it, so everything is made
anew. It ends in three bounded phases: what runs may end by itself; then it is cancelled, and its
attempt does not count; what does not end even so is left behind, and the node's end frees its jobs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Any

from strandline.cluster.lease import Leadership
from strandline.cluster.node import Identity
from strandline.errors import Unavailable
from strandline.jobs import enqueue, executing
from strandline.jobs.completer import Completer
from strandline.jobs.executing import Executors
from strandline.jobs.hooks import Hooks
from strandline.jobs.ids import Ids
from strandline.jobs.maintenance import Hands, Maintenance
from strandline.jobs.middleware import Middleware
from strandline.jobs.progress import ProgressBoard
from strandline.jobs.queues import Queues
from strandline.jobs.reach import NodeReach
from strandline.jobs.rescue import draw_number
from strandline.jobs.row import Claimed, NewJob
from strandline.jobs.waking import Wakes, Written
from strandline.jobs.wiring import JobWiring
from strandline.jobs.workers import JobStop, Workers, queues_of
from strandline.telemetry.journal import Journal

log = Journal("strandline.jobs")

LOOK = 0.02  # seconds between looks whether all attempts have ended
FLUSH = 2.0  # seconds to write how the last ones ended


CancelLost = Callable[[Sequence[int], Sequence[int]], Awaitable[Any]]
Complete = Callable[[Claimed, Any], AbstractAsyncContextManager[Any]]


@dataclass(frozen=True, slots=True)
class JobTies:
    """What jobs need of the app around them.

    Attributes:
        wiring: The app's parts.
        wakes: Of the app.
        ids: For jobs that schedules enqueue.
        hooks: Of the app.
        middlewares: Of the app.
        complete: Makes the transaction of ``sl.current().completing()``.
        cancel_lost: See ``control.cancel_lost``.
        counts: For the leader's watch: jobs by queue and state.
    """

    wiring: JobWiring
    wakes: Wakes
    ids: Ids
    hooks: Hooks
    middlewares: Sequence[Middleware]
    complete: Complete
    cancel_lost: CancelLost
    counts: Callable[[], Any] | None = None


class JobShare(Enum):
    """What of jobs a node takes part in."""

    ALL = "all"
    DUTIES = "duties"  # only those of a leader: without them nobody would rescue what others run
    NONE = "none"  # it is there for a moment, for something else


@dataclass(slots=True)
class _Running:
    """What works under one number."""

    number: int
    queues: Queues
    completer: Completer
    workers: Workers
    board: ProgressBoard
    executors: Executors


class JobsPart:
    """Jobs on one node: a ``Resident`` of the cluster, and its ``office``.

    Args:
        ties: What it needs of the app.
        trusts: Whether this node may believe that its jobs are its own.
        leadership: The leader's epoch while this node leads.
        share: What it takes part in.
    """

    def __init__(
        self,
        ties: JobTies,
        *,
        trusts: Callable[[], bool],
        leadership: Callable[[], Leadership | None],
        share: JobShare = JobShare.ALL,
    ) -> None:
        self.share = share
        self._ties = ties
        self._trusts = trusts
        self._running: _Running | None = None
        self._number: int | None = None  # under which it may claim
        self._turning = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False
        self._hands = Hands(
            on_available=ties.wakes.enqueued,
            draw=ties.ids.draw,
            insert=enqueue.insert,
            on_enqueued=self._enqueued,
            cancel_lost=ties.cancel_lost,
            counts=ties.counts,
        )
        self.office = Maintenance(ties.wiring, self._hands, leadership)

    @property
    def has_work(self) -> bool:
        """Whether this node works any queue: its code has jobs, and it is told to."""
        wiring = self._ties.wiring
        is_told_to = self.share is JobShare.ALL and wiring.settings.queues.strip() != "none"
        return is_told_to and bool(list(wiring.kinds.names))

    # ---- as a resident

    async def joined(self, node: Identity, number: int) -> None:
        """See ``Resident``."""
        await self.begin(number)

    def draining(self) -> None:
        """See ``Resident``."""
        if not self._draining and self._running is not None:
            self._draining = True
            task = asyncio.create_task(self._drained(), name="strandline:jobs drain")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def out(self, *, timeout: float) -> None:
        """See ``Resident``."""
        running, self._running, self._number = self._running, None, None
        if running is not None:
            await self._abandon(running, timeout)

    # ---- its life

    async def begin(self, number: int) -> None:
        """Work under *number*; does nothing where that goes on already.

        Raises:
            Unavailable: The database did not answer.
            InvalidSetting: Setting ``queues`` cannot be read.
        """
        async with self._turning:
            if not self.has_work or (self._running and self._running.number == number):
                return
            self._draining, self._number = False, number
            running = self._make(number)
            try:
                await running.queues.start()
                self._allow_threads(running)
                running.queues.on_changed(lambda: self._allow_threads(running))
                running.completer.start()
                running.board.start()
                await running.workers.start(number)
                if self._number != number:
                    raise Unavailable(f"node number {number} was evicted while its jobs began")
            except BaseException:
                await self._abandon(running, 0.5)
                raise
            self._running = running

    async def begin_alone(self) -> None:
        """Work without a cluster: under a number of its own; what others have begun is taken from them.

        Raises:
            Unavailable: The database did not answer.
        """
        if self.share is not JobShare.ALL:  # who runs jobs beside it is unknown
            return
        number = await self._ties.wiring.pools.control.run(draw_number())
        await self.begin(number)
        self.office.begin_alone(number)

    async def drain(self, *, limit: float) -> int:
        """Take nothing new and let what runs end, for *limit* seconds; how much did."""
        running = self._running
        if running is None:
            return 0
        until = time.monotonic() + limit
        await self._take_nothing()
        begun = left = _busy(running)
        while left and time.monotonic() < until:
            await asyncio.sleep(LOOK)
            left = _busy(running)
        return begun - left

    async def end(self, *, cancel: float) -> JobStop:
        """Cancel what still runs, for *cancel* seconds; write how everything ended; end."""
        async with self._turning:
            running, self._running = self._running, None
            if running is None:
                return JobStop()
            try:
                return await running.workers.stop(drain=0.0, cancel=cancel)
            finally:
                await self._close(running, flush=FLUSH)

    async def close(self) -> None:
        """End whatever is still there; in a stop that went its way, nothing is."""
        for task in self._tasks:
            task.cancel()
        await self.office.stop(timeout=0.5)
        await self.end(cancel=0.5)

    def statistics(self) -> dict[str, Any]:
        """A picture of now, for metrics."""
        running = self._running
        return {
            "job_workers": running.workers.statistics() if running else None,
            "job_completer": running.completer.statistics() if running else None,
            "job_duties": self.office.statistics(),
            "job_watch": self.office.watched,
        }

    # ---- inside

    def _make(self, number: int) -> _Running:
        ties, wiring = self._ties, self._ties.wiring
        settings, kinds = wiring.settings, wiring.kinds
        queues = Queues(wiring.pools.control, wiring.listener)
        completer = Completer(wiring, on_available=ties.wakes.enqueued, application=str(number))
        board = ProgressBoard(wiring.pools.control)
        executors = Executors(threads=settings.job_concurrency)
        reach = NodeReach(wiring.pools.work, board, ties.complete)
        kinds.compile_with(
            lambda job: executing.compile(
                job, kinds, ties.middlewares, ties.hooks, executors, reach=reach
            )
        )
        workers = Workers(
            *(wiring, completer, queues, ties.wakes),
            lambda: self._number == number and self._trusts(),
        )
        return _Running(number, queues, completer, workers, board, executors)

    def _allow_threads(self, running: _Running) -> None:
        """As many as jobs may run at once: a call of a thread job may wait in any queue."""
        wiring = self._ties.wiring
        chosen = queues_of(wiring.settings.queues, {*wiring.kinds.queues, *wiring.queues})
        running.executors.threads.most = sum(
            most or running.queues.settings_of(queue).concurrency or wiring.settings.job_concurrency
            for queue, most in chosen.items()
        )

    async def _drained(self) -> None:
        try:
            await self._take_nothing()
        except Unavailable as error:  # what was fetched and not begun is given back once it is old
            log.tell("drain_delayed", error=error)
        except Exception as error:
            log.tell("drain_failed", trace=error)

    async def _take_nothing(self) -> None:
        if self._running is not None:
            await self._running.workers.take_nothing()

    async def _abandon(self, running: _Running, timeout: float) -> None:
        """End what worked under a number that is gone. Never raises: nothing can be mended here."""
        running.completer.abandon()
        try:
            await running.workers.abandon(timeout * 0.8)
            await self._close(running, flush=0.1)
        except Exception as error:
            log.tell("abandoned_jobs_failed", number=running.number, trace=error)

    async def _close(self, running: _Running, *, flush: float) -> None:
        await asyncio.gather(
            running.completer.stop(flush),
            running.board.stop(timeout=min(flush, 1.0)),
            running.queues.stop(),
            running.executors.stop(timeout=0.5),
            self._ties.hooks.settle(timeout=min(flush, 1.0)),
            return_exceptions=True,
        )

    def _enqueued(self, jobs: Sequence[NewJob]) -> None:
        """*jobs*, which a schedule has enqueued, are committed."""
        written = Written()
        written.add(jobs)
        self._ties.wakes.written(written)


def _busy(running: _Running) -> int:
    return sum(one.running for one in running.workers.statistics().queues)
