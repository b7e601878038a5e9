"""A worker: fetches the jobs of one queue for one node, ahead of the runners that run them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from strandline.clock import Clock
from strandline.errors import Unavailable
from strandline.jobs.attempt import Attempt
from strandline.jobs.buffer import Buffer
from strandline.jobs.claims import Claims
from strandline.jobs.deadlines import Deadlines
from strandline.jobs.demand import Demand
from strandline.jobs.fetcher import Fetcher
from strandline.jobs.outcome import judged
from strandline.jobs.parts import Completer, Kinds, Queues, Runnable
from strandline.jobs.retry import Retry
from strandline.jobs.row import Claimed, Ended
from strandline.jobs.runner import Runner, time_limit
from strandline.jobs.telling import told
from strandline.jobs.worker_statistics import WorkerStatistics
from strandline.loops import Loop, Rhythm
from strandline.settings import Settings
from strandline.telemetry.journal import Journal
from strandline.telemetry.signals import Signals

log = Journal("strandline.jobs")

NEVER = -1
FREED_AFTER = 0.003  # seconds after which the end of a job may be written, and its place be free


@dataclass(frozen=True, slots=True)
class Shared:
    """What the workers of a node share.

    Attributes:
        trusts: Whether this node may believe that its jobs are its own.
    """

    fetcher: Fetcher
    completer: Completer
    deadlines: Deadlines
    kinds: Kinds
    queues: Queues
    settings: Settings
    signals: Signals
    clock: Clock
    trusts: Callable[[], bool]


class Worker:
    """Fetches and runs the jobs of one queue.

    Attributes:
        buffer: Fetched jobs.
        low: Jobs in the buffer from which on more are fetched; below 0: not now.
        surplus: Runners come to rest before they take another job.
        ended: Attempts so far; *seconds* is what they took.
    """

    def __init__(self, queue: str, shared: Shared, own_concurrency: int | None = None) -> None:
        self.queue = queue
        self.clock = shared.clock
        self.completer = shared.completer
        self.deadlines = shared.deadlines
        self.signals = shared.signals
        self.buffer = Buffer()
        self.runnables: dict[str, Runnable] = {}
        self.low = NEVER
        self.surplus = False
        self.ended = 0
        self.seconds = 0.0
        self.runners: set[Runner] = set()
        self._strays: set[Runner] = set()  # that were stuck, and have not ended yet
        self._shared = shared
        self._own_concurrency = own_concurrency
        self._concurrency = self._wanted_concurrency()
        self._idle: list[asyncio.Future[None]] = []
        self._demand = Demand(shared.settings.job_batch)
        self._told = (0, 0.0)
        self._is_held = self._is_closed = self._is_limited = False
        self._given_back = self._stuck = 0
        settings = shared.settings
        self._loop = Loop(
            f"jobs of {queue}", self._step, Rhythm(settings.job_poll_interval), kind="job worker"
        )
        self._claims = Claims(
            *(queue, sorted(shared.kinds.names), shared.fetcher, settings, self.clock),
            *(self._demand, self._loop.wake),
        )

    # ---- from outside

    def start(self) -> None:
        """Begin to fetch."""
        self._loop.start()

    def wake(self) -> None:
        """There may be something to fetch."""
        self._claims.woken()
        self._loop.wake()

    def refill(self) -> None:
        """The buffer runs low."""
        self.low = NEVER
        self._loop.wake()

    def hold(self, is_held: bool) -> None:
        """Begin no job, or begin again; those under way go on."""
        if is_held != self._is_held:
            self._is_held = is_held
            self._resize()
            if not is_held:
                self._rouse(2)
                self.wake()

    def shut(self) -> list[Claimed]:
        """Fetch no more, begin no more; answer what was fetched and not begun."""
        self._is_closed = self.surplus = True
        for one in self._idle:
            if not one.done():
                one.set_result(None)
        self._idle.clear()
        return self.buffer.take_all()

    async def close(self, timeout: float) -> None:
        """End fetching; what a claim under way brings is given back."""
        await self._loop.stop(timeout=timeout)

    def take_stale(self) -> list[Claimed]:
        """Take out what has been waiting for its turn for too long."""
        before = self.clock.monotonic() - self._shared.settings.job_buffer_seconds
        taken = self.buffer.take_stale(before)
        if taken:
            self._demand.forget()
            self._given_back += len(taken)
        return taken

    def tell_ran(self) -> None:
        """Tell how many attempts have ended since the last time."""
        before, self._told = self._told, (self.ended, self.seconds)
        if self.ended > before[0]:
            told(
                self.signals,
                "jobs_ran",
                queue=self.queue,
                count=self.ended - before[0],
                seconds=self.seconds - before[1],
            )

    def cancel(self, ids: set[int]) -> None:
        """Cancel those of *ids* that are here, whether begun or not."""
        for job in self.buffer.take(ids):
            self.completer.put(Ended(job, "cancelled", reason="cancelled before it was begun"))
        for runner in self.busy:
            if (attempt := runner.attempt) is not None and attempt.job.id in ids:
                runner.stop(attempt, "cancelled")

    def replace(self, runner: Runner) -> None:
        """*runner* does not end its attempt: another one gets its place."""
        self._stuck += 1
        runner.is_replaced = True
        self.runners.discard(runner)
        self._strays.add(runner)
        self._resize()
        self._rouse(1)
        self._loop.wake()

    @property
    def busy(self) -> list[Runner]:
        """Runners with an attempt under way, those that are stuck included."""
        return [one for one in (*self.runners, *self._strays) if one.attempt is not None]

    def statistics(self) -> WorkerStatistics:
        """A picture of now."""
        return WorkerStatistics(
            queue=self.queue,
            concurrency=self._concurrency,
            running=len(self.busy),
            buffered=len(self.buffer),
            ended=self.ended,
            seconds=self.seconds,
            fetches=self._claims.fetches,
            fetched=self._claims.fetched,
            fetch_seconds=self._claims.seconds,
            given_back=self._given_back,
            stuck=self._stuck,
            is_paused=self._shared.queues.settings_of(self.queue).is_paused,
            skips_dead_entries=self._claims.cursor.is_engaged,
        )

    # ---- the runners' side

    async def rest(self, runner: Runner) -> bool:
        """Wait until there is a job to begin; False: *runner* is not needed any more."""
        if self._is_closed or len(self.runners) > self._concurrency:
            self.runners.discard(runner)
            self._resize()
            if not self.surplus:
                self._rouse(2)
            return False
        if self.low >= 0:
            self.refill()
        elif self._is_limited:
            self._claims.rested(FREED_AFTER)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._idle.append(future)
        await future
        self.check()
        self.rouse_others()
        return True

    def check(self) -> None:
        """Begin nothing more if this node may not trust itself: it may have been frozen."""
        if not self._shared.trusts():
            self.hold(True)

    def rouse_others(self) -> None:
        """A runner is about to take a job: two more follow, and each of them does the same."""
        if not self.surplus:
            self._rouse(min(2, len(self.buffer) - 1))

    def runnable(self, job: Claimed) -> Runnable | None:
        """How to run *job*; None: it cannot be, and that is recorded."""
        try:
            found = self._shared.kinds.runnable(job.kind)
        except Exception as error:  # only known kinds are fetched, but compiling is the user's too
            log.tell("job_not_runnable", kind=job.kind, error=error)
            self.completer.put(judged(job, Retry(), error, now=self.clock.now()))
            return None
        self.runnables[job.kind] = found
        return found

    def limit(self, runner: Runner, attempt: Attempt) -> None:
        """Have *attempt* stopped when its time is up, if it has a time limit."""
        seconds = time_limit(attempt.job, attempt.runnable.timeout)
        if seconds is not None:
            attempt.deadline = attempt.started + seconds
            self.deadlines.limit(runner, attempt)

    def _rouse(self, count: int) -> None:
        """Have up to *count* more runners take jobs; each rouses others in turn."""
        for _ in range(min(count, len(self.buffer))):
            if self._begin_one():
                continue
            if len(self.runners) >= self._concurrency or self.surplus:
                return
            runner = Runner(self, self.clock.monotonic)
            runner.task.add_done_callback(partial(self._ended, runner))
            self.runners.add(runner)

    def _begin_one(self) -> bool:
        """End the rest of one idle runner; whether there was one."""
        while self._idle:
            future = self._idle.pop()
            if not future.done():
                future.set_result(None)
                return True
        return False

    def _ended(self, runner: Runner, task: asyncio.Task[None]) -> None:
        """A runner's task is over; its place must not stay empty if that was a fault."""
        self.runners.discard(runner)
        self._strays.discard(runner)
        if task.cancelled():
            log.tell("runner_cancelled", queue=self.queue)
        elif (error := task.exception()) is not None:
            log.tell("runner_ended", queue=self.queue, error=error, trace=error)
        else:
            return
        self._resize()
        if not self._loop.is_ending:
            self._rouse(1)
            self._loop.wake()

    def _resize(self) -> None:
        self.surplus = self._is_closed or self._is_held or len(self.runners) > self._concurrency

    # ---- fetching

    async def _step(self) -> bool:
        self.low = NEVER
        if not await self._may_fetch():
            return False
        wanted = self._wanted()
        if wanted <= 0:
            self.low = len(self.buffer) // 2 if self._claims.more else NEVER
            return False
        claims = self._claims
        try:
            fetched = await (
                claims.claim_limited(wanted) if self._is_limited else claims.claim(wanted)
            )
        except Unavailable as error:
            claims.more = True
            log.tell("fetch_failed", queue=self.queue, error=error)
            return False
        if self._is_closed:
            await self._shared.fetcher.give_back(fetched)
            return False
        self.buffer.add(fetched, self.clock.monotonic())
        self._demand.weighed(fetched)
        self.check()
        self._rouse(2)
        if fetched:
            self._tell_claimed(fetched)
        return self._go_on()

    async def _may_fetch(self) -> bool:
        if self._is_closed or not self._shared.trusts():
            return False
        wanted = self._wanted_concurrency()
        if wanted != self._concurrency:
            self._concurrency = wanted
            self._resize()
            for _ in range(min(len(self._idle), len(self.runners) - wanted)):
                self._begin_one()  # it finds that it is one too many
        said = self._shared.queues.settings_of(self.queue)
        self._is_limited = said.is_limited
        if said.is_paused:
            await self._shared.fetcher.give_back(self.buffer.take_all())
            return False
        await self.completer.room()
        return not self._is_closed

    def _go_on(self) -> bool:
        """Whether to fetch again at once; if not, from how many jobs in the buffer on."""
        if not self._claims.more:
            return False
        target = self._target()
        if len(self.buffer) <= target // 2 < target:
            return True
        self.low = target // 2
        return False

    def _tell_claimed(self, fetched: list[Claimed]) -> None:
        if not self.signals.listeners:
            return
        first = fetched[0]
        waited = (self.clock.now() - first.created_at).total_seconds()
        told(
            self.signals,
            "jobs_claimed",
            queue=self.queue,
            count=len(fetched),
            seconds=self._claims.seconds,
            wait=max(0.0, waited) if first.attempt == 1 else None,
        )

    def _wanted(self) -> int:
        """How many jobs to fetch now."""
        return min(self._shared.settings.job_batch, self._target() - len(self.buffer))

    def _target(self) -> int:
        """How many jobs the buffer should hold: for the idle runners, and ahead for the others."""
        free = self._concurrency - len(self.busy) + len(self._strays)
        if self._is_limited:
            return free  # what one node has fetched counts against the others
        self._demand.learn(self.ended, self.seconds)
        return free + self._demand.ahead(self._concurrency)

    def _wanted_concurrency(self) -> int:
        said = self._shared.queues.settings_of(self.queue).concurrency
        return self._own_concurrency or said or self._shared.settings.job_concurrency
