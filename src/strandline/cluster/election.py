"""Who leads, decided by one node for itself: a state machine without clock, wire or thread.

    follower ──lease is free──▶ candidate ──acquired──▶ leader
        ▲                          │                      │
        ├──another was faster,─────┘                      │
        │  or no answer: conceded                         │
        └──renewal refused, trust ended, or resigned──────┘

The pulse tells it what ticks read (``saw``), asks what is to be done now (``due``), does it, and
tells the outcome (``won``, ``refused``, ``failed``). All moments are of ``boot_time``.

What holds, whatever is lost or late:

* A leader trusts itself until ``start of the last successful attempt + ttl - margin``, and
  ``leadership`` is a function of the moment asked about, not a flag.
* An attempt without an answer is conceded. If it did succeed, a later look shows this node as the
  holder, and the term is adopted: renewed once, and trusted from the start of *that* renewal.
* A term that this node gave up is never renewed or adopted again, even if the row still names it:
  it is given up again. A renewal that arrives late thus cannot revive what duties have ended for.
* Who does not stand (not active, asked to resign, too low a priority, a blocked event loop) makes
  no attempt, and gives up a lease that names it.
* A lease that has not moved for 1.5 ttl of this machine's clock is taken over unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from strandline.cluster.lease import Leadership

JITTER = 0.05  # seconds: nodes that see a lease become free do not all try in the same instant
STEP = 0.2  # seconds that each higher priority among the others is given to be faster
LONGEST_STEPS = 5
PATIENCE = 1.5  # ttl without any change after which the holder counts as gone


class Role(StrEnum):
    """What a node is in an election."""

    FOLLOWER = "follower"
    CANDIDATE = "candidate"
    LEADER = "leader"


@dataclass(frozen=True, slots=True)
class Seen:
    """The lease as a tick read it; ``expires_in`` and ``ttl`` in seconds by the server's clock."""

    holder: UUID | None
    epoch: int
    renewals: int
    expires_in: float
    ttl: float

    @property
    def is_free(self) -> bool:
        """Whether anybody may acquire it."""
        return self.holder is None or self.expires_in <= 0


@dataclass(frozen=True, slots=True)
class Acquire:
    """Become the holder of a free lease."""


@dataclass(frozen=True, slots=True)
class TakeOver:
    """Become the holder of a lease that does not move."""

    epoch: int
    renewals: int


@dataclass(frozen=True, slots=True)
class Adopt:
    """Renew a term that this node has won without knowing."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Resign:
    """Give a term up."""

    epoch: int
    reason: str


Move = Acquire | TakeOver | Adopt | Resign


@dataclass(frozen=True, slots=True)
class Rules:
    """How long a term lasts, how much sooner it is not trusted, how long to wait after failures."""

    ttl: float
    margin: float
    interval: float


class Election:
    """One node's part in electing the leader.

    Args:
        me: This node.
        rules: Of the lease.
        chance: Answers a number from 0 to 1, for spreading.
    """

    def __init__(self, me: UUID, rules: Rules, chance: Callable[[], float]) -> None:
        self._me = me
        self._rules = rules
        self._chance = chance
        self._stands = False
        self._held_back_until = 0.0
        self._reason = ""
        self._held: int | None = None
        self._until = 0.0
        self._given_up: int | None = None
        self.lost_because = ""
        self._seen: Seen | None = None
        self._seen_at = 0.0
        self._unchanged_since = 0.0
        self._planned: Move | None = None
        self._planned_at = 0.0
        self._not_before = 0.0
        self._failures = 0

    # ---- asked

    def leadership(self, now: float) -> Leadership | None:
        """The term that this node may act under at *now*."""
        if self._held is None or now >= self._until:
            return None
        return Leadership(self._held, self._until)

    def role(self, now: float) -> Role:
        """For people."""
        if self.leadership(now):
            return Role.LEADER
        tries = isinstance(self._planned, Acquire | TakeOver)
        return Role.CANDIDATE if tries else Role.FOLLOWER

    @property
    def renewing(self) -> int | None:
        """The epoch that the next tick has to renew. Trust in it may have ended: it comes back."""
        return self._held

    def stands(self, now: float) -> bool:
        """Whether this node wants to lead."""
        return self._stands and now >= self._held_back_until

    def next_look(self, now: float) -> float | None:
        """When the lease should be read again, if that is sooner than the next tick."""
        seen = self._seen
        if seen is None or seen.is_free or self._held is not None or not self.stands(now):
            return None
        expires = self._seen_at + seen.expires_in
        moments = [expires] if expires > now else []
        moments.append(max(now, self._unchanged_since + PATIENCE * self._longest_ttl(seen)))
        return max(min(moments), self._not_before)

    def due(self, now: float) -> Move | None:
        """What is to be done at *now*; it stays due until its outcome is told."""
        return None if self._planned is None or now < self._planned_at else self._planned

    @property
    def is_clear(self) -> bool:
        """Whether this node has nothing of the lease left to give up, as far as it knows."""
        mine = self._seen is not None and self._seen.holder == self._me
        return self._held is None and not mine and not isinstance(self._planned, Resign)

    @property
    def due_at(self) -> float | None:
        """When something is to be done next."""
        return None if self._planned is None else self._planned_at

    # ---- told

    def stand(self, may: bool, now: float, reason: str = "") -> None:
        """Say whether this node may lead. One that may not gives up what it has."""
        self._stands = may
        if not may:
            self._step_down(now, reason)

    def withdraw(self, now: float, *, seconds: float, reason: str) -> None:
        """Give up leading, and do not stand again for *seconds*."""
        self._held_back_until = max(self._held_back_until, now + seconds)
        self._step_down(now, reason)

    def saw(
        self, seen: Seen, *, sent: float, received: float, renewed: bool = False, rivals: int = 0
    ) -> None:
        """Take in what a tick read, and whether it renewed ``renewing`` as of *sent*."""
        before, self._seen, self._seen_at = self._seen, seen, sent
        if before is None or _counter(before) != _counter(seen):
            self._unchanged_since = received
        if before is not None and (before.holder, before.epoch) != (seen.holder, seen.epoch):
            self._not_before = 0.0  # a term ended or began: a lost race before says nothing of now
        if seen.holder == self._me:
            self._saw_mine(seen, sent, received, renewed)
            return
        self._lose(f"epoch {seen.epoch} is {seen.holder or 'free'}")
        if not self.stands(received):
            self._planned = None
        elif seen.is_free:
            self._plan(Acquire(), received + self._delay(rivals))
        elif sent - self._unchanged_since >= PATIENCE * self._longest_ttl(seen):
            self._plan(TakeOver(seen.epoch, seen.renewals), received + self._delay(rivals))
        else:
            self._planned = None

    def won(self, move: Acquire | TakeOver | Adopt, epoch: int, *, sent: float, now: float) -> None:
        """*move*, begun at *sent*, succeeded under *epoch*."""
        self._planned = None
        self._failures = 0
        if not isinstance(move, Adopt):
            self._given_up = None  # a new term, even if a fail-over has set the numbers back
        self._held, self._until = epoch, sent + self._rules.ttl - self._rules.margin
        if epoch == self._given_up or not self.stands(now):
            self._give_up(epoch, now)

    def refused(self, move: Move, now: float) -> None:
        """The database said no: another has it. A resignation is then as good as done."""
        self._planned = None
        self._failures = 0
        if isinstance(move, Resign):
            self._seen = None
        else:
            self._lose("the term had ended")
            self._not_before = now + max(JITTER, self._chance() * self._rules.interval)

    def resigned(self) -> None:
        """The lease was given up."""
        self._planned = self._seen = None
        self._failures = 0

    def failed(self, move: Move, now: float) -> None:
        """Nobody knows whether *move* succeeded. Concede, and wait no longer than an interval."""
        self._failures += 1
        pause = min(self._rules.interval, JITTER * 2**self._failures) * (0.5 + self._chance() / 2)
        self._not_before = now + pause
        if isinstance(move, Resign):
            self._planned_at = now + pause
        else:
            self._planned = None

    def _saw_mine(self, seen: Seen, sent: float, now: float, renewed: bool) -> None:
        if seen.epoch == self._given_up or not self.stands(now):
            self._give_up(seen.epoch, now)
        elif renewed and seen.epoch == self._held:
            self._planned = None
            self._until = sent + self._rules.ttl - self._rules.margin
        elif seen.is_free:  # the term ran out: nobody may revive it, this node neither
            self._lose("the term ran out before it was renewed")
            self._plan(Acquire(), now + self._delay(0))
        else:
            self._plan(Adopt(seen.epoch), now)

    def _step_down(self, now: float, reason: str) -> None:
        self._reason = reason
        mine = self._seen is not None and self._seen.holder == self._me
        if self._held is not None:
            self._give_up(self._held, now)
        elif mine and self._seen is not None and not isinstance(self._planned, Resign):
            self._give_up(self._seen.epoch, now)
        elif not isinstance(self._planned, Resign):
            self._planned = None

    def _give_up(self, epoch: int, now: float) -> None:
        self._lose(self._reason)
        self._given_up = epoch
        self._plan(Resign(epoch, self._reason), now)

    def _lose(self, because: str) -> None:
        if self._held is not None:
            self.lost_because = because
        self._held, self._until = None, 0.0

    def _plan(self, move: Move, at: float) -> None:
        if move != self._planned:  # else it keeps its moment: a look in between delays nothing
            self._planned, self._planned_at = move, max(at, self._not_before)

    def _delay(self, rivals: int) -> float:
        return self._chance() * JITTER + STEP * min(rivals, LONGEST_STEPS)

    def _longest_ttl(self, seen: Seen) -> float:
        return max(self._rules.ttl, seen.ttl)


def _counter(seen: Seen) -> tuple[UUID | None, int, int]:
    return seen.holder, seen.epoch, seen.renewals
