"""Makes a node run what the plan says it should: release what is not its own, then claim what is.

One loop a node, and nothing else there starts or stops work. Each look at the database:

* owned and no longer wanted: stopped, and released the moment it has ended;
* wanted and free: claimed, under a new epoch, and started under that grant;
* owned but not running: a claim whose answer was lost, or that was never taken up: adopted;
* running but not owned: lost. It is stopped at once; what it still writes the database refuses.

Invariant. Work runs here only under a grant that the database gave to this node's id, and every
grant has an epoch of its own. Claim, release and the death of a node are single statements that
lock the rows they decide on, so they come one after the other. What was abandoned because it hung
may still be running when its successor starts: it is the epoch that protects, not the stopping.

What can go wrong, and what then:

* No answer from the database: what runs goes on running, as nothing was decided. Whoever takes it
  over meanwhile does so under a later epoch.
* A claim's or release's answer is lost: the next look shows what became of it.
* Work that ends by itself while it is still this node's is started again, so there is never nobody.
  If it fails three times in a row, and another node could run it, it is released to be avoided here.
* Work that does not stop: abandoned when its time is over, released all the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import asdict, dataclass, field
from typing import Any

from strandline.cluster import claims
from strandline.cluster.claims import WorkRow
from strandline.cluster.losses import tell_lost
from strandline.cluster.node import Identity
from strandline.cluster.releases import Outcome, Releases, listed
from strandline.cluster.run import LONGEST_REST, Run, well
from strandline.cluster.work import Grant, Worker
from strandline.errors import OwnershipLost, Unavailable
from strandline.loops import Loop, LoopStatistics, Rhythm
from strandline.postgres.operations import Answer, Op
from strandline.postgres.pools import Pool
from strandline.settings import Settings
from strandline.telemetry.journal import Journal
from strandline.telemetry.signals import Signals

log = Journal("strandline.reconciler")

BREATH = 0.01  # seconds between looks, however often woken
ANSWER_WITHIN = 5.0  # seconds for one statement: a connection that forwards nothing is given up
TELL_WITHIN = 2.0  # seconds for what is only written down for people
AT_ONCE = 10  # pieces of work being started at the same time
MOST = 1_000  # pieces of work claimed by one statement
FAILURES = 3  # in a row, before work is left to another node
AVOID = 600.0  # seconds it is then not given to this node again
STUCK_STOP = 5.0  # seconds for work that got nowhere to end
SHARE = 0.8  # of `revoke_timeout`, for work to end in good order


@dataclass(slots=True)
class _Counts:
    claimed: int = 0
    adopted: int = 0
    lost: int = 0
    restarted: int = 0
    avoided: int = 0
    abandoned: int = 0


@dataclass(frozen=True, slots=True)
class ReconcilerStatistics:
    """How a reconciler is doing.

    Attributes:
        running: Pieces of work that run here.
        resting: Of those that should, how many wait to be started again.
        stopping: Being stopped.
        claimed: Claims given to this node.
        adopted: Claims it learned of later, since their answer was lost.
        released: Pieces of work given up in good order.
        lost: Found to be another's while they ran here.
        restarted: Started again after they ended by themselves, or got nowhere.
        avoided: Given up since they failed here.
        abandoned: Had not ended when their time was over.
        loop: The loop that looks.
    """

    running: int
    resting: int
    stopping: int
    claimed: int
    adopted: int
    released: int
    lost: int
    restarted: int
    avoided: int
    abandoned: int
    loop: LoopStatistics = field(repr=False)


class Reconciler:
    """One node's share of the work, kept as the plan says.

    Args:
        identity: The node.
        worker: Runs the work.
        pool: Where it looks and decides; never shared with work.
        settings: ``pulse_interval`` (a look at least so often) and ``revoke_timeout``.
        signals: Told ``work_claimed``, ``work_adopted``, ``work_released``, ``work_failed``,
            ``work_avoided`` and ``ownership_lost``.
        channel: Where the others are told.
    """

    def __init__(
        self,
        identity: Identity,
        worker: Worker,
        pool: Pool,
        settings: Settings,
        signals: Signals,
        channel: str,
    ) -> None:
        self._me = identity
        self._worker = worker
        self._pool = pool
        self._settings = settings
        self._signals = signals
        self._channel = channel
        self._runs: dict[str, Run] = {}
        self._endings: dict[str, asyncio.Task[bool]] = {}
        self._releases = Releases(identity, self._answered, signals, channel)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False
        self._evicted = False
        self._counts = _Counts()
        self._slots = asyncio.Semaphore(AT_ONCE)
        rhythm = Rhythm(settings.pulse_interval, limit=3 * ANSWER_WITHIN, gap=BREATH)
        self._loop = Loop("reconciler", self._step, rhythm)

    async def start(self) -> None:
        """Offer the work of this node's code (or raise ``Unavailable``), then begin to look."""
        await self.offer()
        self._loop.start()

    async def offer(self) -> int:
        """Make known what this node's code can run; how much of that was new."""
        return await self._answered(claims.offer(await self._worker.offers(), self._channel))

    async def stop(self, *, timeout: float = 1.0) -> bool:
        """End the loop. What runs is left as it is: see ``release_all`` and ``abandon_all``."""
        self._closing = True
        clean = await self._loop.stop(timeout=timeout)
        for task in [*self._tasks, *self._endings.values()]:
            task.cancel()
        self._releases.cancel()
        return clean

    def wake(self) -> None:
        """Look now: something changed."""
        self._loop.wake()

    def grants(self) -> dict[str, Grant]:
        """What runs here, and by which right."""
        return {name: run.grant for name, run in self._runs.items()}

    def statistics(self) -> ReconcilerStatistics:
        """A picture of now."""
        states = [run.state for run in self._runs.values()]
        return ReconcilerStatistics(
            running=states.count("running") + states.count("starting"),
            resting=states.count("resting"),
            stopping=states.count("stopping"),
            released=self._releases.released,
            loop=self._loop.statistics(),
            **asdict(self._counts),
        )

    # ---- leaving

    async def release_all(self, *, timeout: float) -> tuple[list[str], list[str]]:
        """Stop everything at once, each released as it ends. Nothing is claimed any more.

        Returns:
            What ended in good order and is released, and what did not within *timeout* seconds.
        """
        self._closing = True
        reserve = min(1.0, 0.25 * timeout)  # for the statement that releases the last of them
        for run in list(self._runs.values()):
            self._end(run, timeout=timeout - reserve, release=True)
        endings = dict(self._endings)
        if endings:
            await asyncio.wait(endings.values(), timeout=timeout)
        done = {name for name, task in endings.items() if well(task)}
        return sorted(done), sorted(set(endings) - done)

    async def abandon_all(self, *, timeout: float) -> list[str]:
        """Stop everything, as it is others' already; what had not ended in *timeout* seconds."""
        self._closing = self._evicted = True
        for run in list(self._runs.values()):
            self._end(run, timeout=0.5 * timeout, release=False)
        endings = dict(self._endings)
        if endings:
            await asyncio.wait(endings.values(), timeout=timeout)
        return sorted(name for name, task in endings.items() if not well(task))

    async def give_back(self) -> int:
        """Release whatever is still this node's, running or not; how much that was.

        Raises:
            Unavailable: The database did not answer.
        """
        self._closing = True
        return await self._releases.all()

    # ---- one look

    async def _step(self) -> bool:
        begun = time.monotonic()
        rows = {row.work: row for row in await self._answered(claims.look(self._me))}
        for run in list(self._runs.values()):
            if run.state != "stopping":
                self._compare(run, rows.get(run.work))
        for row in rows.values():
            if row.owned and self._releases.is_news(row.work, begun):
                self._take_up(row)
        free = any(row.wanted and not row.owned for row in rows.values())
        more = free and not self._closing and await self._claim()
        self._start_again()
        return more

    def _compare(self, run: Run, row: WorkRow | None) -> None:
        if row is None or not row.owned or row.epoch != run.grant.epoch:
            self._lose(run)
        elif self._closing or not row.wanted:
            self._end(run, timeout=SHARE * self._settings.revoke_timeout, release=True)

    def _take_up(self, row: WorkRow) -> None:
        """Run, or release, what is this node's and does not run."""
        if row.work in self._runs or self._evicted:
            return
        if row.wanted and not self._closing:
            self._counts.adopted += 1
            log.tell("work_adopted", work=row.work, epoch=row.epoch)
            self._signals.tell("work_adopted", work=row.work, epoch=row.epoch)
            self._begin(Grant(row.work, self._me.id, row.epoch))
        else:
            self._releases.add(row.work, row.epoch)

    async def _claim(self) -> bool:
        """Claim what is free; whether there may be more."""
        revoke = self._settings.revoke_timeout
        grants = await self._answered(
            claims.claim(self._me, revoke=revoke, most=MOST, channel=self._channel)
        )
        for grant in grants:
            self._begin(grant)
        if grants:
            self._counts.claimed += len(grants)
            shown = listed(f"{one.work} (epoch {one.epoch})" for one in grants)
            log.tell("work_claimed", works=shown, count=len(grants))
            self._signals.tell(
                "work_claimed", count=len(grants), works=[one.work for one in grants]
            )
        return len(grants) == MOST

    def _begin(self, grant: Grant) -> None:
        if grant.work in self._runs:
            return  # still stopping under an older grant; adopted when that is over
        run = Run(
            grant,
            self._worker,
            healthy_after=self._settings.work_stall_after + LONGEST_REST,
            on_ended=self._came_to_rest,
        )
        self._runs[grant.work] = run
        run.start(self._slots)

    # ---- what did not go well

    def _start_again(self) -> None:
        if self._closing:
            return
        for work in self._worker.stuck():
            run = self._runs.get(work)
            if run is not None and run.state == "running":
                log.tell("work_stuck", work=work)
                reason = Unavailable(f"work {work!r} has made no progress for too long")
                run.restart(reason, timeout=STUCK_STOP)
        for run in self._runs.values():
            if run.is_due():
                self._counts.restarted += 1
                run.start(self._slots)

    def _came_to_rest(self, run: Run, error: BaseException | None) -> None:
        """*run* ended by itself, or could not be started."""
        if self._runs.get(run.work) is not run or self._closing:
            return
        if isinstance(error, OwnershipLost):
            self.wake()  # perhaps it is another's by now; perhaps only its epoch was raised
        else:
            log.tell("work_failed", work=run.work, error=error, failures=run.failures)
            self._signals.tell("work_failed", work=run.work, error=error, failures=run.failures)
            seconds, run.due = run.due - time.monotonic(), float("inf")
            self._spawn(self._failed(run, error, seconds), f"failure of {run.work}")
            return
        asyncio.get_running_loop().call_later(run.due - time.monotonic(), self.wake)

    async def _failed(self, run: Run, error: BaseException | None, rest: float) -> None:
        """Write it down; leave it to another node when it fails again and again."""
        try:
            facts = {"failures": run.failures, "error": repr(error)}
            await self._answered(claims.failed(self._me, run.grant, facts), TELL_WITHIN)
            if run.failures >= FAILURES:
                avoided = await self._answered(
                    claims.avoid(self._me, run.grant, facts, seconds=AVOID, channel=self._channel)
                )
                if avoided:
                    self._avoided(run)
                    return
                rest = LONGEST_REST  # nobody else can run it
        except Exception as failure:  # whatever it is, it must not keep the work from going on
            log.tell("failure_not_recorded", work=run.work, error=failure)
        run.due = time.monotonic() + rest
        asyncio.get_running_loop().call_later(rest, self.wake)

    def _avoided(self, run: Run) -> None:
        log.tell("work_avoided", work=run.work, failures=run.failures, seconds=AVOID)
        self._counts.avoided += 1
        self._releases.forget(run.work)
        self._signals.tell("work_avoided", work=run.work, failures=run.failures)
        self._end(run, timeout=0.0, release=False)

    def _lose(self, run: Run) -> None:
        """It is no longer this node's: stop it at once, and tell, unless it never ran."""
        self._end(run, timeout=0.0, release=False, lost=run.state != "resting")

    async def _tell_lost(self, grant: Grant) -> None:
        def soon(op: Op[Any]) -> Coroutine[Any, Any, Any]:
            return self._answered(op, TELL_WITHIN)

        if await tell_lost(self._me, grant, soon, self._signals):
            self._counts.lost += 1

    # ---- stopping

    def _end(self, run: Run, *, timeout: float, release: bool, lost: bool = False) -> None:
        """Stop it within *timeout* seconds, and release it the moment it has ended."""
        if run.state == "stopping":
            return
        stopping = run.stop(timeout=timeout)
        task = asyncio.create_task(
            self._ended(run, stopping, release=release, lost=lost),
            name=f"strandline:end of {run.work}",
        )
        self._endings[run.work] = task
        task.add_done_callback(lambda one: self._forget_ending(run.work, one))

    async def _ended(
        self, run: Run, stopping: asyncio.Task[bool], *, release: bool, lost: bool
    ) -> bool:
        await asyncio.wait({stopping})
        clean = well(stopping)
        if not clean and (release or self._evicted):
            self._counts.abandoned += 1
            log.tell("work_abandoned", work=run.work)
        if self._runs.get(run.work) is run:
            del self._runs[run.work]
        self.wake()
        outcome = None
        if release and not self._evicted:
            outcome = await self._releases.add(run.work, run.grant.epoch)
            lost = outcome is Outcome.TAKEN  # by force, while it was ending
        if lost and not run.has_told:
            self._spawn(self._tell_lost(run.grant), f"loss of {run.work}")
        return clean and outcome in (None, Outcome.RELEASED)

    def _forget_ending(self, work: str, task: asyncio.Task[bool]) -> None:
        if self._endings.get(work) is task:
            del self._endings[work]

    # ---- the rest

    async def _answered(self, op: Op[Answer], timeout: float = ANSWER_WITHIN) -> Answer:
        try:
            async with asyncio.timeout(timeout):
                return await self._pool.run(op)
        except TimeoutError as error:
            raise Unavailable(f"no answer within {timeout} s") from error

    def _spawn(self, step: Coroutine[Any, Any, Any], what: str) -> asyncio.Task[Any]:
        task = asyncio.create_task(step, name=f"strandline:{what}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
