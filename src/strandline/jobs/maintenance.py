"""What the leader does for the jobs of the whole cluster; alone, every node does it for itself.

* *scheduler*: what is scheduled becomes available when its time has come.
* *rescuer*: jobs of nodes that are gone become available; at once when the cluster tells of a death.
  Alone it takes the jobs of processes before, also a claim of theirs that is committed late.
* *cron*: schedules that are due are fired.
* *order*: keys whose next job nobody is going to begin, since whoever should have has died.
* *days*: partitions of the history are made ahead and dropped when they are old.
* *pruner*: rows that nobody needs any more.
* *bloat*: who keeps the tables from staying small, and what they hold.

Invariant. A former leader changes nothing: see ``right``. The sweep of keys is not fenced: to
promote the next job of a key is right whoever does it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from strandline.cluster.leading import Term
from strandline.cluster.lease import Leadership
from strandline.errors import LeaseLost, StrandlineError, Unavailable
from strandline.jobs import bloat, cron, days, order, pruning
from strandline.jobs.bloat import Health, Holder
from strandline.jobs.enqueue import Enqueued
from strandline.jobs.rescue import AT_ONCE as RESCUED_AT_ONCE
from strandline.jobs.rescue import Rescued, end_sessions, end_silent, rescue
from strandline.jobs.right import Right
from strandline.jobs.row import NewJob
from strandline.jobs.scheduling import AT_ONCE as PROMOTED_AT_ONCE
from strandline.jobs.scheduling import promote_due
from strandline.jobs.shift import AT_ONCE, Desk, Duty, Shift
from strandline.jobs.templates import made
from strandline.jobs.wiring import JobWiring
from strandline.loops import LoopStatistics
from strandline.postgres.operations import Op
from strandline.telemetry.journal import Journal

log = Journal("strandline.jobs.duties")

SCHEDULER_INTERVAL = 0.5  # seconds: a job due sooner than any that was known waits at most so long
RESCUE_INTERVAL = 2.0
CRON_INTERVAL = 1.0  # seconds until a schedule that was just made is seen
ORDER_INTERVAL = 5.0
DAYS_INTERVAL = 600.0
DAY_TRIES = 5  # until it is told that the history is in use; a day's rows are kept elsewhere then
PRUNE_INTERVAL = 60.0
WALK_EVERY = 10  # rounds of pruning between two walks over all links
WATCH_INTERVAL = 30.0
SHOWN = 3 * WATCH_INTERVAL  # what was seen before is no more shown: it must not look alive
CRON_REST = 60.0  # seconds until a schedule that cannot be fired is tried again
CRON_PAUSE = 5.0  # the same, where the database did not answer: perhaps only for this one
SOON = 0.002  # seconds after a moment at which it has surely passed


@dataclass(frozen=True, slots=True)
class Watched:
    """What the last look at the tables found.

    Attributes:
        dead_tuples: Dead rows of the live jobs' table.
        oldest_xmin: Seconds since the transaction began that holds the horizon the longest.
        index_bytes: Of the largest index of the live jobs.
        counts: Jobs by queue and state.
    """

    dead_tuples: int = 0
    oldest_xmin: float = 0.0
    index_bytes: int = 0
    counts: Sequence[Any] = ()


@dataclass(frozen=True, slots=True)
class Hands:
    """What the duties need of the parts around them.

    Attributes:
        on_available: Told of queues in which jobs became available.
        draw: Ids for new jobs.
        insert: ``enqueue.insert``.
        on_enqueued: Told of jobs once they are committed.
        cancel_lost: See ``control.cancel_lost``.
        counts: Jobs by queue and state, for the watch; None where that is not wanted.
    """

    on_available: Callable[[Iterable[str]], None]
    draw: Callable[[int], Op[list[int]]]
    insert: Callable[[Sequence[NewJob]], Op[list[Enqueued]]]
    on_enqueued: Callable[[Sequence[NewJob]], None]
    cancel_lost: Callable[[Sequence[int], Sequence[int]], Awaitable[Any]]
    counts: Callable[[], Op[Sequence[Any]]] | None = None


class Maintenance:
    """The duties on one node: an ``Office`` of the cluster, or begun ``alone``."""

    def __init__(
        self, wiring: JobWiring, hands: Hands, leadership: Callable[[], Leadership | None]
    ) -> None:
        self._wiring = wiring
        self._hands = hands
        self._leadership = leadership
        self._epoch: int | None = None
        self._shift: Shift | None = None
        self._round: _Round | None = None
        self._ending: list[Shift] = []

    def begin(self, term: Term) -> None:
        """See ``Office``."""
        if self.serves(term.epoch):
            return
        self._end()

        def leads() -> bool:
            leadership = self._leadership()
            return leadership is not None and leadership.epoch == term.epoch

        self._epoch = term.epoch
        self._begin(Right.of(term), leads)

    def begin_alone(self, number: int) -> None:
        """Begin where there is no cluster: nothing is fenced, and whoever was there before is gone."""
        self._begin(Right(), lambda: True, own=number)

    def serves(self, epoch: int) -> bool:
        """See ``Office``."""
        return self._shift is not None and self._epoch == epoch and self._shift.is_at_work

    def end(self, epoch: int) -> None:
        """See ``Office``."""
        if self._epoch is not None and self._epoch <= epoch:
            self._end()

    async def stop(self, *, timeout: float) -> None:
        """See ``Office``."""
        self._end()
        ending, self._ending = self._ending, []
        await asyncio.gather(*(shift.stop(timeout=timeout) for shift in ending))

    def wake(self) -> None:
        """See ``Office``."""
        if self._shift is not None:
            self._shift.wake()

    def statistics(self) -> dict[str, LoopStatistics]:
        """How each duty is doing, by name; empty where this node does not do them."""
        return self._shift.statistics() if self._shift is not None else {}

    @property
    def watched(self) -> Watched | None:
        """What the last look at the tables found; None where this node does not look, or in vain."""
        return self._round.fresh() if self._round is not None else None

    def _begin(self, right: Right, leads: Callable[[], bool], own: int | None = None) -> None:
        desk = Desk(self._wiring, right, leads)
        self._round = _Round(desk, self._hands, own)
        self._shift = Shift(desk, self._round.duties())
        self._shift.start()

    def _end(self) -> None:
        shift, self._shift, self._round, self._epoch = self._shift, None, None, None
        self._ending = [one for one in self._ending if one.is_running]
        if shift is not None:
            shift.end()
            self._ending.append(shift)


class _Round:
    """The steps of the duties of one term, and what they remember."""

    def __init__(self, desk: Desk, hands: Hands, own: int | None) -> None:
        self._watched: Watched | None = None
        self._watched_at = 0.0
        self._own = own
        self._stuck = 0
        self._desk = desk
        self._hands = hands
        self._keep = desk.wiring.settings.job_history_days
        self._clock = desk.wiring.clock
        self._resting: dict[str, float] = {}  # schedules that could not be fired
        self._swept: tuple[str, str] | None = None
        self._prunes = self._day_tries = 0
        self._walk: dict[str, int] = {}
        self._said: list[str] = []

    def fresh(self) -> Watched | None:
        is_old = self._clock.monotonic() - self._watched_at > SHOWN
        return None if is_old else self._watched

    def duties(self) -> list[Duty]:
        return [
            Duty("scheduler", self._schedule, SCHEDULER_INTERVAL),
            Duty("rescuer", self._rescue, RESCUE_INTERVAL, hears=True),
            Duty("cron", self._fire, CRON_INTERVAL),
            Duty("order", self._order, ORDER_INTERVAL),
            Duty("days", self._days, DAYS_INTERVAL, limit=60.0),
            Duty("pruner", self._prune, PRUNE_INTERVAL),
            Duty("bloat", self._watch, WATCH_INTERVAL),
        ]

    def _tell(self, name: str, **facts: Any) -> None:
        self._desk.wiring.signals.tell(name, **facts)

    # ---- the quick ones

    async def _schedule(self) -> float | None:
        done = await self._desk.ask(promote_due(self._desk.right))
        if done.moved:
            self._hands.on_available(done.queues)
            self._tell("jobs_promoted", count=done.moved)
        if done.moved == PROMOTED_AT_ONCE:
            return AT_ONCE
        return None if done.next_in is None else done.next_in + SOON

    async def _rescue(self) -> float | None:
        done = await self._desk.ask(rescue(self._desk.right, own=self._own))
        if done.stuck > self._stuck:
            log.tell("jobs_stuck", count=done.stuck)
        self._stuck = done.stuck
        await _rescued(self._desk.wiring, self._hands, done)
        for session in await self._desk.ask(end_sessions(own=self._own)):
            log.tell("job_session_ended", application=session.application)
        for silent in await self._desk.ask(end_silent(self._desk.wiring.settings)):
            log.tell("silent_job_session_ended", application=silent.application, idle=silent.idle)
            self._tell("zombie_ended", shard="jobs", pid=silent.pid, idle=silent.idle)
        return AT_ONCE if done.seen == RESCUED_AT_ONCE and done.took else None

    async def _order(self) -> float | None:
        if not self._desk.may_act:
            return None
        swept = await self._desk.ask(order.sweep(after=self._swept), slow=True)
        self._swept = swept.after
        if swept.queues:
            self._hands.on_available(swept.queues)
        if swept.promoted:
            log.tell("keys_promoted", count=swept.promoted)
            self._tell("keys_promoted", count=swept.promoted)
        return AT_ONCE if swept.after is not None else None

    # ---- cron

    async def _fire(self) -> float | None:
        now = self._clock.monotonic()
        self._resting = {name: until for name, until in self._resting.items() if until > now}
        due = await self._desk.ask(cron.due_schedules(without=list(self._resting)))
        for schedule in due:
            await self._fire_one(schedule)
        if due:
            return AT_ONCE
        next_in = await self._desk.ask(cron.next_due_in())
        return None if next_in is None else next_in + SOON

    async def _fire_one(self, schedule: cron.DueSchedule) -> None:
        desk, hands = self._desk, self._hands
        self._resting[schedule.name] = self._clock.monotonic() + CRON_PAUSE
        try:
            moments, next_at, missed = await asyncio.to_thread(cron.plan, schedule)
            ids = await desk.ask(hands.draw(len(moments)))
            jobs = [made(schedule.job, *pair) for pair in zip(ids, moments, strict=True)]
            fired = await desk.transact(
                cron.fire(desk.right, schedule, moments, next_at, jobs, hands.insert)
            )
        except cron.FiredAlready:
            self._resting.pop(schedule.name)
            return
        except (LeaseLost, Unavailable):
            raise
        except Exception as error:  # of this one, whatever its row holds: the others are fired
            self._resting[schedule.name] = self._clock.monotonic() + CRON_REST
            log.tell("schedule_failed", schedule=schedule.name, error=error)
            self._tell("schedule_failed", schedule=schedule.name, error=str(error))
            await desk.ask(cron.fail(desk.right, schedule, str(error)))
            return
        self._resting.pop(schedule.name)
        if fired:
            hands.on_enqueued(jobs)
            self._tell("schedule_fired", schedule=schedule.name, count=len(fired))
        if missed:
            self._tell("schedule_missed", schedule=schedule.name, count=missed)

    # ---- the slow ones

    async def _days(self) -> float | None:
        desk = self._desk
        found = await desk.ask(days.days(keep=self._keep), slow=True)
        failed: Unavailable | None = None
        for day in found:
            try:
                if day.is_old and day.is_there:
                    await desk.ask(days.drop(desk.right, day), slow=True)
                    log.tell("history_dropped", day=day.day)
                    self._tell("job_day_dropped", day=day.day)
                elif not day.is_there and not await desk.ask(days.make(desk.right, day), slow=True):
                    log.tell("history_in_default", day=day.day)
            except Unavailable as error:  # in use: the other days may work
                failed = error
        if failed is None:
            self._day_tries = 0
            return None
        self._day_tries += 1
        if self._day_tries > DAY_TRIES:
            raise failed
        log.tell("history_in_use", error=failed)
        return float(self._day_tries)

    async def _prune(self) -> float | None:
        """Delete a portion of everything that is old."""
        ops = [
            ("history", pruning.prune_history(self._desk.right, days=self._keep)),
            ("periods", pruning.prune_periods(self._desk.right)),
            ("senders", pruning.prune_senders(self._desk.right)),
        ]
        if self._prunes % WALK_EVERY == 0 or self._walk:
            edges, batches = self._walk.get("edges", 0), self._walk.get("batches", 0)
            right = self._desk.right
            ops += [
                ("edges", pruning.prune_edges(right, beyond=edges)),
                ("batches", pruning.prune_batches(right, days=self._keep, beyond=batches)),
            ]
        self._prunes += 1
        is_more = False
        failed: Exception | None = None
        for name, op in ops:
            try:
                done = await self._desk.ask(op, slow=True)
            except LeaseLost:
                raise
            except StrandlineError as error:  # the other ones may work
                failed = error
                continue
            is_more = self._more(name, done) or is_more
            if done.rows:
                self._tell("jobs_pruned", what=name, count=done.rows)
        if failed is not None:
            raise failed
        return AT_ONCE if is_more else None

    def _more(self, name: str, done: pruning.Pruned) -> bool:
        is_more = done.looked >= pruning.AT_ONCE
        if name in ("edges", "batches"):
            self._walk.pop(name, None)
            if is_more:
                self._walk[name] = done.last
        return is_more

    async def _watch(self) -> float | None:
        tables, holders = await self._desk.ask(bloat.look(), slow=True)
        counts: Sequence[Any] = ()
        if self._hands.counts is not None:
            counts = await self._desk.ask(self._hands.counts(), slow=True)
        self._watched = _watched(tables, holders, counts)
        self._watched_at = self._clock.monotonic()
        found = bloat.advice(tables, holders)
        for sentence in found:
            if not any(sentence.split(" ")[0] == said.split(" ")[0] for said in self._said):
                log.tell("job_table_advice", advice=sentence)
        if found and not self._said:
            self._tell("jobs_bloated", advice=found)
        self._said = found
        return None


def _watched(tables: list[Health], holders: list[Holder], counts: Sequence[Any]) -> Watched:
    jobs = next((table for table in tables if table.name == "jobs"), None)
    return Watched(
        dead_tuples=jobs.dead if jobs else 0,
        oldest_xmin=max((holder.seconds or 0.0 for holder in holders), default=0.0),
        index_bytes=jobs.index_bytes if jobs else 0,
        counts=counts,
    )


async def _rescued(wiring: JobWiring, hands: Hands, done: Rescued) -> None:
    """Tell what was rescued, and cancel what was to be cancelled."""
    if not done.took:
        return
    names = ", ".join(map(str, done.nodes))
    log.tell(
        "jobs_rescued",
        nodes=names,
        count=done.freed,
        dead=len(done.dead),
        cancelled=len(done.to_cancel),
    )
    wiring.signals.tell(
        "jobs_rescued", count=done.freed, dead=len(done.dead), nodes=tuple(done.nodes)
    )
    if done.queues:
        hands.on_available(done.queues)
    if done.to_cancel:
        await hands.cancel_lost(done.to_cancel, done.claims)
