"""What beats: ticks, elects and tells, in whichever thread or process hosts it.

A round is: join if that is not done, tick if it is time, and then what the election says is due.
Ticks come every ``interval``; sooner when a notice tells of a change that matters, when the
connection is found lost, after a failure, and when the leader's lease is about to end. A tick
renews the leadership, so there is nothing else to be on time.

A heart must not vouch for an app that does not work: a stamp of the app's event loop that is too
old makes the node resign, and later *stalled*.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from contextlib import suppress

from strandline.cluster import beat
from strandline.cluster.beat import Beat, Terms
from strandline.cluster.election import Acquire, Election, Move, Resign, Rules, Seen, TakeOver
from strandline.cluster.lease import boot_time
from strandline.cluster.node import Identity, NodeState
from strandline.cluster.trust import Trust
from strandline.cluster.vigil import Vigil
from strandline.cluster.vitals import Chest, Command, News, PulseOptions
from strandline.errors import (
    AnswerTimedOut,
    DatabaseUnavailable,
    SetupError,
    StrandlineError,
    Unavailable,
)
from strandline.loops import Loop, Rhythm
from strandline.postgres.line import Line
from strandline.telemetry.journal import Journal

log = Journal("strandline.pulse")

STAMP_EVERY = 0.1  # seconds between stamps of the app's event loop
RESIGN_WITHIN = 2.0  # seconds that the app has to stop a leader's duties when asked to resign
GAP = 0.02  # seconds at least between two rounds, however many notices come
LONGEST_PAUSE = 1.0  # seconds between tries while the database does not answer

# Notices of changes that a tick needs not hurry for: they are told to the app, which looks itself.
QUIET = frozenset(
    {
        "joined",
        "active",
        "stalled",
        "draining",
        "leader",
        "plan",
        "claimed",
        "released",
        "avoided",
        "work",
    }
)


class Heart:
    """Speaks for a node. Runs in the event loop in which ``start`` is called."""

    def __init__(
        self,
        identity: Identity,
        options: PulseOptions,
        chest: Chest,
        *,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._identity = identity
        self._options = options
        self._chest = chest
        self._board = chest.board
        self._chance = chance
        self._terms = Terms(options.ttl, options.leader_ttl, options.channel)
        self._election = Election(
            identity.id, Rules(options.leader_ttl, options.margin, options.interval), chance
        )
        self._line = Line(
            options.url,
            options.schema,
            application=f"strandline pulse {identity.name}",
            connect_timeout=options.deadline,
            deadline=options.deadline,
            prepared=options.prepared,
            on_notice={options.channel: self._noticed} if options.listens else {},
            on_lost=self._tick_now,
        )
        self._trust = Trust(self._election, self._board, chest.tell)
        self._vigil = Vigil(
            self._board, (options.stall_resign_after, options.stall_after), self._tick_now
        )
        self._loop = Loop("pulse", self._round, Rhythm(options.interval, jitter=0.0, gap=GAP))
        self._joined = chest.joined
        self._ready = self._draining = self._over = False
        self._ticked = self._drain_told = False
        self._tick_at = 0.0
        self._failures = 0
        self._version = -1
        self._asked: tuple[int, float] | None = None  # epoch asked to resign from, and when
        self._turned = asyncio.Event()
        self._moving = False
        self._last: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._notice_timer: asyncio.TimerHandle | None = None

    # ---- the host's side

    def start(self) -> None:
        """Begin beating."""
        self._vigil.start()
        self._loop.start()

    async def obey(self, command: Command) -> bool:
        """Do what the app asks; whether it is done. Goes on trying until it is, or is cancelled."""
        self.wish(command)
        if command.kind in {"ready", "drain"}:
            self._tick_now()
        if command.kind == "drain":
            return await self._until(lambda: self._board.state == NodeState.DRAINING)
        if command.kind == "resign":
            self._loop.wake()
            return await self._until(self._is_clear)
        if command.kind == "leave":
            facts = command.facts
            return await self._end(NodeState.LEFT, facts["reason"], facts.get("report") or None)
        return True

    def wish(self, command: Command) -> None:
        """Take in what the app asks, and do nothing yet: e.g. what an earlier heart was asked."""
        if command.kind == "ready":
            self._ready = True
        elif command.kind == "drain":
            self._draining = True
        elif command.kind == "resign":
            for_good = command.facts.get("for_good")
            self._withdraw(command.facts["reason"], math.inf if for_good else None)

    async def die(self, reason: str) -> bool:
        """Write down that the node is dead: the process it speaks for has ended."""
        return await self._end(NodeState.DEAD, reason)

    async def stop(self) -> None:
        """Beat no more, and close the connection; the node's row stays as it is."""
        self._finish("its pulse was stopped")
        self._line.cut()
        await self._loop.stop(timeout=0.5)
        await self._line.close()

    # ---- a round

    async def _round(self) -> None:
        if self._over:
            return
        try:
            self._consider()
            if boot_time() >= self._tick_at:
                await self._tick()
            while not self._over and (move := self._election.due(boot_time())) is not None:
                await self._make(move)
                self._trust.publish()
        finally:
            self._trust.publish()
            self._schedule()
            turned, self._turned = self._turned, asyncio.Event()
            turned.set()

    async def _tick(self) -> None:
        options = self._options
        sent = boot_time()
        self._tick_at = sent + options.interval * (0.9 + 0.1 * self._chance())
        try:
            if not self._joined:
                await self._line.run(beat.join(self._identity, self._chest.kind, self._terms))
                self._joined = True
                sent = boot_time()
            found = await self._line.run(
                beat.tick(
                    self._identity,
                    self._wanted(),
                    self._terms,
                    loop_lag=max(self._vigil.age, self._board.lag),
                    progress=self._board.progress,
                    epoch=self._election.renewing,
                )
            )
            if found is None:
                raise DatabaseUnavailable(
                    "the rows of the leader's lease or of the cluster are gone"
                )
        except StrandlineError as error:
            self._tick_failed(error, boot_time() - sent)
        else:
            if not self._over:
                self._take_in(found, sent, boot_time())

    def _tick_failed(self, error: StrandlineError, seconds: float) -> None:
        self._board.failures += 1
        self._failures += 1
        pause = min(self._options.interval, LONGEST_PAUSE, GAP * 2 ** min(self._failures, 10))
        self._tick_at = boot_time() + pause * (0.5 + self._chance() / 2)
        self._tell("tick_failed", error=str(error), seconds=seconds)
        if isinstance(error, SetupError):
            self._tell("refused", error=str(error))

    def _take_in(self, found: Beat, sent: float, received: float) -> None:
        self._failures = 0
        if found.state is None:
            self._evicted(found)
            return
        board = self._board
        board.tick_at, board.tick_seconds = sent, received - sent
        board.ticks += 1
        board.state = found.state
        seen = Seen(found.holder, found.epoch, found.renewals, found.expires_in, found.lease_ttl)
        if not seen.is_free:
            board.leader_seen_at = received
        self._stand(found.state, received)
        self._election.saw(
            seen, sent=sent, received=received, renewed=found.is_renewed, rivals=found.rivals
        )
        if not self._ticked:
            self._ticked = True
            self._tell("joined", state=found.state)
        self._tell("ticked", seconds=received - sent)
        if found.version != self._version:
            self._version = found.version
            self._tell("changed", version=found.version, notice="")
        if found.drain_reason is not None and not self._drain_told and not self._draining:
            self._drain_told = True
            self._tell("drain_requested", reason=found.drain_reason)
        mine = found.holder == self._identity.id and found.resign_reason is not None
        if mine and (self._asked is None or self._asked[0] != found.epoch):
            self._asked = (found.epoch, received)
            self._tell("resign_requested", reason=found.resign_reason)

    def _stand(self, state: str, now: float) -> None:
        may = self._identity.priority >= 0 and self._identity.mode == "cluster"
        may = may and state == NodeState.ACTIVE and not self._draining
        self._election.stand(may, now, f"its node is {state}")

    def _consider(self) -> None:
        """What must not wait for the app, since it may never come."""
        now = boot_time()
        age = self._vigil.age
        if age > self._options.stall_resign_after:
            self._withdraw(f"its event loop has been blocked for {age:.1f} s")
        if self._asked and now >= self._asked[1] + RESIGN_WITHIN:
            if self._election.renewing == self._asked[0]:
                self._withdraw("it was asked to")
            self._asked = None

    def _withdraw(self, reason: str, seconds: float | None = None) -> None:
        seconds = self._options.leader_ttl if seconds is None else seconds
        self._election.withdraw(boot_time(), seconds=seconds, reason=reason)
        self._trust.publish()

    async def _make(self, move: Move) -> None:
        sent = boot_time()
        self._moving = True
        try:
            epoch = await self._line.run(beat.made(move, self._identity.id, self._terms))
        except StrandlineError as error:
            self._election.failed(move, boot_time())
            timed_out = isinstance(error, AnswerTimedOut)
            self._count(move, "timed_out" if timed_out else "failed", sent, str(error))
        else:
            self._settle(move, epoch, sent)
        finally:
            self._moving = False

    def _settle(self, move: Move, epoch: int | None, sent: float) -> None:
        now = boot_time()
        if epoch is None:
            self._election.refused(move, now)
        elif isinstance(move, Resign):
            self._election.resigned()
        else:
            self._election.won(move, epoch, sent=sent, now=now)
            self._board.leader_seen_at = now
        self._count(move, "lost" if epoch is None else "won", sent, "")

    def _count(self, move: Move, outcome: str, sent: float, error: str) -> None:
        if not isinstance(move, Acquire | TakeOver):
            return
        seconds = boot_time() - sent
        self._board.count(outcome, seconds)
        self._tell("election", outcome=outcome, seconds=seconds, error=error)

    # ---- what the app is told

    def _evicted(self, found: Beat) -> None:
        reason = found.end_reason or "its row is gone"
        self._board.state = NodeState.DEAD
        self._finish(f"its node was declared dead: {reason}")
        self._tell("evicted", reason=reason)
        if found.holder == self._identity.id:
            self._last = asyncio.create_task(self._give_up_all(), name="strandline:evicted")
        else:
            self._line.cut()

    async def _give_up_all(self) -> None:
        with suppress(StrandlineError):
            await self._line.run(
                beat.end(self._identity.id, NodeState.DEAD, "evicted", self._terms)
            )
        self._line.cut()

    def _tell(self, kind: str, /, **facts: object) -> None:
        self._chest.tell(News(kind, facts))

    def _noticed(self, payload: str) -> None:
        if payload not in QUIET:
            self._tick_now()
        if self._notice_timer is None and not self._over:
            self._notice_timer = asyncio.get_running_loop().call_later(
                GAP / 2, self._tell_notice, payload
            )

    def _tell_notice(self, payload: str) -> None:
        self._notice_timer = None
        if not self._over:
            self._tell("changed", version=self._version, notice=payload)

    # ---- moments

    def _wanted(self) -> NodeState:
        if self._draining:
            return NodeState.DRAINING
        if not self._ready:
            return NodeState.JOINING
        stalled = self._vigil.age > self._options.stall_after
        return NodeState.STALLED if stalled else NodeState.ACTIVE

    def _tick_now(self) -> None:
        if not self._over:
            self._tick_at = 0.0
            self._loop.wake()

    def _schedule(self) -> None:
        if self._over:
            return
        now = boot_time()
        look = self._election.next_look(now)
        if look is not None:
            self._tick_at = min(self._tick_at, look)
        moments = [self._tick_at]
        if self._election.due_at is not None:
            moments.append(self._election.due_at)
        if self._asked is not None:
            moments.append(self._asked[1] + RESIGN_WITHIN)
        if self._timer is not None:
            self._timer.cancel()
        wait = max(0.0, min(moments) - now)
        self._timer = asyncio.get_running_loop().call_later(wait, self._loop.wake)

    def _is_clear(self) -> bool:
        looked = self._ticked or not self._joined
        return looked and self._election.is_clear and not self._moving

    async def _until(self, done: Callable[[], bool]) -> bool:
        while not done():
            if self._over:
                return False
            await self._turned.wait()
        return True

    # ---- the end

    async def _end(self, state: NodeState, reason: str, report: str | None = None) -> bool:
        self._finish(f"its node {'left' if state == NodeState.LEFT else 'died'}: {reason}")
        await self._loop.stop(timeout=0.1)  # a tick under way is answered within a moment, or never
        self._turned.set()
        tries = 0
        while True:
            op = beat.end(self._identity.id, state, reason, self._terms, report=report)
            try:
                done = await self._line.run(op) or not self._joined
                self._board.state = state if done else NodeState.DEAD
                return done
            except StrandlineError as error:
                if report is not None and not isinstance(error, Unavailable):
                    log.tell("report_refused", node=self._identity.name, error=error)
                    report = None  # to have left matters more than what it said
                    continue
                tries += 1
                log.tell("leaving_delayed", node=self._identity.name, error=error)
                await asyncio.sleep(min(LONGEST_PAUSE, GAP * 2 ** min(tries, 10)))

    def _finish(self, reason: str) -> None:
        self._over = True
        self._trust.end(reason)
        self._vigil.stop()
        for timer in (self._timer, self._notice_timer):
            if timer is not None:
                timer.cancel()
