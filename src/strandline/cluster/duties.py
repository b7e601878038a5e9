"""The duties of one term of leadership, as loops; what they are is told in ``balancer``."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from strandline.clock import Clock
from strandline.cluster import log as node_log
from strandline.cluster import membership
from strandline.cluster.assignment import plan
from strandline.cluster.leading import Term, log_brake, look, mark_dead, publish
from strandline.cluster.lease import LEADER, Leadership
from strandline.cluster.outcome import SHOWN, UNPLACED_SHOWN, Outcome
from strandline.cluster.restraint import Brake, Homes, Rounds
from strandline.cluster.sight import SeenNode, Sight
from strandline.errors import LeaseLost, Unavailable
from strandline.loops import Loop, LoopStatistics, Rhythm
from strandline.postgres.operations import Answer, Op
from strandline.postgres.pools import Pool
from strandline.settings import Settings
from strandline.telemetry.journal import Journal
from strandline.telemetry.signals import Signals

log = Journal("strandline.balancer")

BREATH = 0.05  # seconds between looks, however often woken: one look takes in many changes
REST = 2  # times its own duration that a look rests, so that a large cluster leaves room for work
LONGEST_REST = 1.0  # seconds
RETRY = 0.1  # seconds until a failed look is tried again; doubles, up to the interval of beats
SOON = 0.005  # seconds after a moment at which it has surely passed
IN_A_THREAD = 500  # items above which a plan is made in a thread, so that it blocks no event loop
PRUNE_INTERVAL = 60.0  # seconds
PRUNE_AFTER = 5.0  # seconds of a term, in which there are more urgent things
PRUNE_AT_ONCE = 1_000  # rows deleted by one statement
PRUNE_LIMIT = 20.0  # seconds one round of pruning may take


@dataclass(slots=True)
class Counts:
    """What the balancer of a node has done since the process started."""

    looks: int = 0
    changes: int = 0
    moves: int = 0
    deaths: int = 0
    brakes: int = 0
    refused: int = 0
    pruned: int = 0
    unplaced: int = 0
    look_seconds: float = 0.0
    plan_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class DutyWiring:
    """What the duties share with the rest of the app."""

    pool: Pool
    settings: Settings
    signals: Signals
    leadership: Callable[[], Leadership | None]
    clock: Clock
    counts: Counts


class Duties:
    """What a leader does in one term. Everything it remembers is forgotten with it."""

    def __init__(self, term: Term, wiring: DutyWiring) -> None:
        settings = wiring.settings
        self.term = term
        self._wiring = wiring
        self._is_over = False
        self._begun = self._rest_until = now = wiring.clock.monotonic()
        self._check_at = now + random.random() * settings.rebalance_interval  # noqa: S311 - spreading, not secrecy
        self._failures = 0
        self._timer: asyncio.TimerHandle | None = None
        self._unplaced: Mapping[str, Sequence[str]] = {}
        self._brake = Brake(settings.node_ttl)
        self._homes = Homes(settings.rejoin_grace)
        self._rounds = Rounds(
            now,
            after=settings.rebalance_after,
            interval=settings.rebalance_interval,
            share=settings.moves_per_round,
        )
        self._balancing = Loop(
            "balancing",
            self._balance,
            Rhythm(settings.rebalance_interval, limit=settings.leader_ttl, gap=BREATH),
            ends_on=(LeaseLost,),
        )
        self._pruning = Loop(
            "pruning",
            self._prune,
            Rhythm(PRUNE_INTERVAL, jitter=0.5, limit=PRUNE_LIMIT, gap=BREATH),
            ends_on=(LeaseLost,),
        )

    def start(self) -> None:
        """Begin; the first look is due at once."""
        self._balancing.start()
        self._pruning.start()

    def wake(self) -> None:
        """Look soon. Cheap; many calls are one look."""
        self._balancing.wake()

    def end(self) -> None:
        """Begin nothing more; what is under way goes on until ``stop`` cuts it, or its deadline."""
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
        self._balancing.wake()  # both find that the term is over, and end
        self._pruning.wake()

    async def stop(self, *, timeout: float) -> None:
        """End, within *timeout* seconds if what is under way allows that; else cut it."""
        self.end()
        await asyncio.gather(
            self._balancing.stop(timeout=timeout), self._pruning.stop(timeout=timeout)
        )

    @property
    def is_running(self) -> bool:
        """Whether anything of it is still under way."""
        return self._balancing.running or self._pruning.running

    @property
    def is_at_work(self) -> bool:
        """Whether it looks, and goes on looking."""
        return self._balancing.running and not self._is_over

    def statistics(self) -> LoopStatistics:
        """How the looks are doing."""
        return self._balancing.statistics()

    # ---- one look

    async def _balance(self) -> None:
        if not self._leads():
            return  # the pulse tells whether it is only for a moment
        now = self._wiring.clock.monotonic()
        if now < self._rest_until:
            self._look_at(self._rest_until)
            return
        self._failures += 1
        try:
            sight = await self._see()
            if await self._declare_dead(sight):
                sight = await self._see()
            is_done = await self._place(sight)
        except BaseException:
            pause = min(RETRY * 2 ** min(self._failures, 8), self._wiring.settings.pulse_interval)
            self._look_at(self._wiring.clock.monotonic() + pause)  # sooner than the loop would
            raise
        self._failures = 0
        begun, now = now, self._wiring.clock.monotonic()
        self._wiring.counts.looks += 1
        self._wiring.counts.look_seconds = now - begun
        self._rest_until = now + min(REST * (now - begun), LONGEST_REST)
        self._look_at(self._next(sight, now) if is_done else now + RETRY)

    def _leads(self) -> bool:
        if self._is_over:
            raise LeaseLost(LEADER, epoch=self.term.epoch, reason="the term is over")
        leadership = self._wiring.leadership()
        return leadership is not None and leadership.epoch == self.term.epoch

    async def _ask(self, op: Op[Answer]) -> Answer:
        if not self._leads():
            raise Unavailable("the leader's lease cannot be trusted at the moment")
        try:
            return await self._wiring.pool.run(op)
        except LeaseLost as error:
            self._wiring.counts.refused += 1
            self._wiring.signals.tell("leader_refused", epoch=error.epoch, reason=error.reason)
            log.tell("leader_refused", error=error, epoch=error.epoch)
            raise

    async def _see(self) -> Sight:
        return await self._ask(look(self.term, grace=self._wiring.settings.rejoin_grace))

    def _look_at(self, moment: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._is_over:
            delay = max(0.0, moment - self._wiring.clock.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self.wake)

    def _next(self, sight: Sight, now: float) -> float:
        """When there may be something to do, if nobody wakes the loop before."""
        moments = [now + self._wiring.settings.rebalance_interval]
        if self._check_at > now:
            moments.append(self._check_at)
        begins = self._rounds.next_at(now)
        if begins is not None:
            moments.append(begins + SOON)
        moments.extend(self._due_at(node, now) for node in sight.present if node.due_in is not None)
        return min(moments)

    def _due_at(self, node: SeenNode, now: float) -> float:
        held = self._brake.held_until(node.id)
        if held is not None and held > now:
            return held + SOON
        due_in = node.due_in or 0.0
        return now + (due_in + SOON if due_in > 0 else RETRY)

    # ---- the silent

    async def _declare_dead(self, sight: Sight) -> bool:
        """Whether somebody is dead now."""
        wiring = self._wiring
        dying, held = self._brake.judge(wiring.clock.monotonic(), sight)
        if held:
            names = sorted(node.name for node in held)
            present = len(sight.present)
            wiring.counts.brakes += 1
            log.tell(
                "evictions_braked",
                present=present,
                seconds=wiring.settings.node_ttl,
                nodes=tuple(names[:SHOWN]),
            )
            wiring.signals.tell("brake", due=names, present=present)
            await self._ask(log_brake(self.term, names[:UNPLACED_SHOWN], present))
        if not dying:
            return False
        dead = await self._ask(mark_dead(self.term, dying))
        wiring.counts.deaths += len(dead)
        for one in dead:
            log.tell("node_dead", node=one.name, node_id=one.id, silent=one.silent)
            wiring.signals.tell("node_dead", node=one.id, name=one.name, silent=one.silent)
        return bool(dead)

    # ---- work

    async def _place(self, sight: Sight) -> bool:
        """Publish what a plan changes. False: not all of it could be, so look again soon."""
        clock, counts = self._wiring.clock, self._wiring.counts
        now = clock.monotonic()
        homes = self._homes.look(now, sight)
        moves = self._rounds.look(now, sight)
        places = sight.places()
        if not any(place.takes_new for place in places):
            return True  # nobody could follow a plan: a moment after an outage, all are late
        items = sight.items(homes)
        if len(items) > IN_A_THREAD:
            made = await asyncio.to_thread(plan, places, items, moves=moves)
        else:
            made = plan(places, items, moves=moves)
        counts.plan_seconds = clock.monotonic() - now
        outcome = Outcome.of(sight, made)
        counts.unplaced = outcome.unplaced_count
        is_news = outcome.unplaced != self._unplaced
        if not outcome.changes and not is_news:
            return True
        detail = outcome.detail(with_unplaced=is_news)
        changes = await self._ask(publish(self.term, outcome.changes, detail))
        if is_news:
            self._tell_unplaced(outcome)
        if changes:
            self._tell_planned(outcome, changes)
        return changes == len(outcome.changes)

    def _tell_unplaced(self, outcome: Outcome) -> None:
        self._unplaced = outcome.unplaced
        for reason, names in outcome.unplaced.items():
            log.tell("work_unplaced", count=len(names), reason=reason, works=tuple(names[:SHOWN]))
        self._wiring.signals.tell(
            "unplaced", count=outcome.unplaced_count, reasons=outcome.unplaced
        )

    def _tell_planned(self, outcome: Outcome, changes: int) -> None:
        counts = self._wiring.counts
        self._rounds.made(self._wiring.clock.monotonic(), outcome.moves)
        counts.changes += changes
        counts.moves += outcome.moves
        log.tell("plan_made", epoch=self.term.epoch, summary=outcome.words)
        self._wiring.signals.tell(
            "planned",
            changes=changes,
            moves=outcome.moves,
            seconds=counts.plan_seconds,
            **outcome.kinds,
        )

    # ---- what is old

    async def _prune(self) -> bool:
        """Delete a portion of what is old. True: there is more."""
        if not self._leads() or self._wiring.clock.monotonic() < self._begun + PRUNE_AFTER:
            return False
        is_more = False
        failed: Exception | None = None
        for prune in (node_log.prune, membership.prune):
            try:
                rows = await self._ask(prune(most=PRUNE_AT_ONCE))
            except LeaseLost:
                raise
            except Exception as error:  # the other one may work
                failed = error
            else:
                self._wiring.counts.pruned += rows
                is_more = is_more or rows > 0
        if failed is not None:
            raise failed
        return is_more
