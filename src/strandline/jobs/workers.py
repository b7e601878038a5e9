"""The workers of one node: started with its number, drained with it, abandoned when it is evicted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from strandline.errors import InvalidSetting
from strandline.jobs.attempt import Attempt
from strandline.jobs.deadlines import Deadlines, stack_of
from strandline.jobs.fetcher import Fetcher
from strandline.jobs.limits import Limits
from strandline.jobs.parts import Completer, Kinds, LocalWakes, Queues
from strandline.jobs.runner import Runner
from strandline.jobs.stocktaking import Stocktaking
from strandline.jobs.telling import told
from strandline.jobs.wiring import JobWiring
from strandline.jobs.worker import Shared, Worker
from strandline.jobs.worker_statistics import WorkersStatistics
from strandline.loops import Loop, Rhythm
from strandline.telemetry.journal import Journal

log = Journal("strandline.jobs")

LOOK_EVERY = 1.0  # seconds between looks for jobs to cancel without any notice
KEEP_EVERY = 0.25  # seconds between looks at what was fetched and not begun
JOBS = "jobs"
JOB_CANCEL = "job_cancel"


@dataclass(frozen=True, slots=True)
class JobStop:
    """How the jobs of a node ended with it.

    Attributes:
        finished: Attempts that ended by themselves while it drained.
        interrupted: Attempts that were cancelled then; they do not count.
        abandoned: Attempts that did not end: they run on, and are run again elsewhere.
    """

    finished: int = 0
    interrupted: int = 0
    abandoned: int = 0


class Workers:
    """Fetches and runs the jobs of a node, one worker for each of its queues.

    Args:
        wiring: The app's parts.
        completer: Where attempts go when they have ended.
        queues: The settings of all queues.
        local: Tells of what this process enqueues.
        trusts: Whether this node may believe that its jobs are its own.
    """

    def __init__(
        self,
        wiring: JobWiring,
        completer: Completer,
        queues: Queues,
        local: LocalWakes,
        trusts: Callable[[], bool],
    ) -> None:
        self._wiring = wiring
        self._completer = completer
        self._queues = queues
        self._local = local
        self._trusts = trusts
        self._shared: Shared | None = None
        self._workers: dict[str, Worker] = {}
        self._loops: list[Loop] = []
        self._ends: list[Callable[[], None]] = []
        self._left: list[Runner] = []  # that did not end with the last incarnation

    async def start(self, number: int) -> None:
        """Begin to work as node *number*; again, with another one, after ``stop`` or ``abandon``.

        Raises:
            InvalidSetting: Setting ``queues`` cannot be read.
        """
        wiring = self._wiring
        kinds: Kinds = wiring.kinds
        chosen = queues_of(wiring.settings.queues, {*kinds.queues, *wiring.queues})
        self._shared = shared = Shared(
            fetcher=Fetcher(wiring, Limits(), self._given, self._completer.put),
            completer=self._completer,
            deadlines=Deadlines(
                wiring.clock.monotonic, wiring.settings.job_stuck_after, self._on_stuck
            ),
            kinds=kinds,
            queues=self._queues,
            settings=wiring.settings,
            signals=wiring.signals,
            clock=wiring.clock,
            trusts=self._trusts,
        )
        self._workers = {name: Worker(name, shared, most) for name, most in chosen.items()}
        cancels = Loop("job cancels", self._cancelled, Rhythm(LOOK_EVERY, limit=15.0, gap=0.02))
        keeping = Loop("job buffers", self._kept, Rhythm(KEEP_EVERY, limit=15.0))
        stock = Stocktaking(
            *(wiring.pools.control, number, shared.fetcher, self._completer),
            *(self._held, wiring.clock),
        )
        stocktaking = Loop("job stocktaking", stock.look, Rhythm(LOOK_EVERY, limit=60.0))
        self._loops = [cancels, keeping, stocktaking]
        self._ends = [
            wiring.listener.on(JOBS, self.wake),
            wiring.listener.on(JOB_CANCEL, lambda _: cancels.wake()),
            self._local.on(self.wake),
            self._queues.on_changed(self.wake),
        ]
        shared.fetcher.begin(number)
        shared.deadlines.start()
        for worker in self._workers.values():
            worker.start()
        for loop in self._loops:
            loop.start()

    def wake(self, queue: str = "") -> None:
        """There may be jobs in *queue*; empty: in any."""
        if queue:
            worker = self._workers.get(queue)
            if worker is not None:
                worker.wake()
        else:
            for worker in self._workers.values():
                worker.wake()

    def cancel(self, ids: Iterable[int]) -> None:
        """Cancel those of the jobs *ids* that are here."""
        wanted = set(ids)
        if wanted:
            for worker in self._workers.values():
                worker.cancel(wanted)

    async def take_nothing(self, timeout: float = 2.0) -> None:
        """Fetch no more and begin no more; what was fetched and not begun is given back."""
        for end in self._ends:
            end()
        self._ends.clear()
        taken = [job for worker in self._workers.values() for job in worker.shut()]
        await asyncio.gather(*(one.close(timeout) for one in self._workers.values()))
        if self._shared is not None:
            await self._shared.fetcher.give_back(taken)

    async def stop(self, *, drain: float, cancel: float) -> JobStop:
        """End: take nothing, let what runs end, cancel what is left, leave what then remains.

        Args:
            drain: Seconds for attempts to end by themselves.
            cancel: Seconds for the others to end once they are cancelled.
        """
        shared = self._shared
        if shared is None:
            return JobStop()
        await self.take_nothing()
        under_way = self._busy()
        pending = await _ended(under_way, drain)
        await self._tell_all(pending, "stop")
        left = await _ended(pending, cancel)
        self._leave(left)
        await self._close(shared)
        await shared.fetcher.stop()
        self._shared = None
        return JobStop(
            finished=len(under_way) - len(pending),
            interrupted=len(pending) - len(left),
            abandoned=len(left),
        )

    async def abandon(self, timeout: float = 2.0) -> None:
        """This node was declared dead, its jobs are others': cancel all, hand nothing over."""
        shared, self._shared = self._shared, None
        if shared is None:
            return
        for end in self._ends:
            end()
        self._ends.clear()
        busy = self._busy()
        for worker in self._workers.values():
            worker.shut()
        await self._tell_all(busy, "out")
        await shared.fetcher.cut()
        await asyncio.gather(*(one.close(0.1) for one in self._workers.values()))
        self._leave(await _ended(busy, timeout))
        await shared.fetcher.cut()
        await self._close(shared)

    def statistics(self) -> WorkersStatistics:
        """A picture of now."""
        return WorkersStatistics(tuple(one.statistics() for one in self._workers.values()))

    # ---- inside

    def _busy(self) -> list[Runner]:
        return [one for worker in self._workers.values() for one in worker.busy]

    def _held(self) -> Iterator[tuple[int, int]]:
        """Jobs that are here, each with its claim."""
        for worker in self._workers.values():
            for job in worker.buffer.jobs:
                yield job.id, job.claim
        for runner in (*self._busy(), *self._left):
            if (attempt := runner.attempt) is not None:
                yield attempt.job.id, attempt.job.claim

    async def _tell_all(self, runners: list[Runner], why: str) -> None:
        for one in runners:
            if one.attempt is not None:
                one.stop(one.attempt, why)
        await asyncio.sleep(0)

    def _leave(self, runners: list[Runner]) -> None:
        for one in runners:
            attempt = one.attempt
            if attempt is not None:
                self._left.append(one)
                one.press(attempt)
                log.tell(
                    "job_left_behind",
                    job=attempt.job.id,
                    kind=attempt.job.kind,
                    stack=stack_of(one.task),
                )

    async def _close(self, shared: Shared) -> None:
        for loop in self._loops:
            await loop.stop(timeout=1.0)
        await shared.deadlines.stop()
        self._workers = {}
        self._left = [one for one in self._left if not one.task.done()]

    def _given(self) -> None:
        """Jobs were given back: others may have room for them."""
        self._wiring.notifier.notify(JOBS)

    async def _kept(self) -> None:
        """Begin nothing while this node may not trust itself; give back what waits for too long."""
        trusts = self._trusts()
        stale = []
        for worker in self._workers.values():
            worker.hold(not trusts)
            worker.tell_ran()
            stale += worker.take_stale()
        if stale and self._shared is not None:
            await self._shared.fetcher.give_back(stale)

    async def _cancelled(self) -> None:
        if self._shared is not None and any(
            one.buffer.jobs or one.busy for one in self._workers.values()
        ):
            self.cancel(await self._shared.fetcher.to_cancel())

    def _on_stuck(self, runner: Runner, attempt: Attempt) -> None:
        job = attempt.job
        log.tell(
            "job_runs_on",
            job=job.id,
            kind=job.kind,
            reason=attempt.stopped_for,
            stack=stack_of(runner.task),
        )
        runner.worker.replace(runner)
        told(
            self._wiring.signals,
            "job_stuck",
            id=job.id,
            kind=job.kind,
            queue=job.queue,
            attempt=job.attempt,
            reason=attempt.stopped_for,
            seconds=self._wiring.clock.monotonic() - attempt.started,
        )


def queues_of(setting: str, default: Iterable[str]) -> dict[str, int | None]:
    """The queues to work, each with the jobs at once that the setting names for it.

    Raises:
        InvalidSetting: It cannot be read.
    """
    if not setting.strip():
        return dict.fromkeys(sorted(set(default)))
    if setting.strip() == "none":
        return {}
    chosen: dict[str, int | None] = {}
    for part in setting.split(","):
        name, has_number, number = (one.strip() for one in part.partition("="))
        if not name or len(name.encode()) > 100 or name in chosen:
            raise InvalidSetting("queues", setting, f"{part!r} is no queue, or stands there twice")
        if has_number and not (number.isdecimal() and int(number) > 0):
            raise InvalidSetting("queues", setting, f"{number!r} is no number of jobs at once")
        chosen[name] = int(number) if has_number else None
    return chosen


async def _ended(runners: list[Runner], timeout: float) -> list[Runner]:
    """Those of *runners* that still run after *timeout* seconds."""
    if not runners:
        return []
    _, pending = await asyncio.wait({one.task for one in runners}, timeout=timeout)
    return [one for one in runners if one.task in pending]
