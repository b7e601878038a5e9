"""The leader's lease as a few lines of Python, and nodes that contend for it over a bad wire."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import UUID

from strandline.cluster.election import (
    Acquire,
    Adopt,
    Election,
    Move,
    Resign,
    Rules,
    Seen,
    TakeOver,
)

RULES = Rules(ttl=12.0, margin=2.0, interval=3.0)


@dataclass
class Time:
    """What the boot clocks of all machines and the server's clock show."""

    now: float = 1000.0
    skew: float = 0.0

    @property
    def server(self) -> float:
        return self.now + self.skew


class Lease(Protocol):
    """What a node can ask of the database."""

    time: Time
    terms: dict[int, UUID]

    def tick(self, node: UUID, epoch: int | None) -> tuple[Seen, bool]: ...
    def make(self, node: UUID, move: Move) -> int | None: ...


@dataclass
class ModelLease:
    """The row, and what the statements do with it."""

    time: Time
    ttl: float = RULES.ttl
    holder: UUID | None = None
    epoch: int = 0
    renewals: int = 0
    expires_at: float = float("-inf")
    terms: dict[int, UUID] = field(default_factory=dict)

    def tick(self, node: UUID, epoch: int | None) -> tuple[Seen, bool]:
        renewed = epoch is not None and self._renew(node, epoch) is not None
        left = 0.0 if self.holder is None else self.expires_at - self.time.server
        ttl = 0.0 if self.holder is None else self.ttl
        return Seen(self.holder, self.epoch, self.renewals, left, ttl), renewed

    def make(self, node: UUID, move: Move) -> int | None:
        match move:
            case Acquire():
                free = self.holder is None or self.expires_at <= self.time.server
                return self._take(node) if free else None
            case TakeOver(epoch, renewals):
                same = (self.epoch, self.renewals) == (epoch, renewals)
                return self._take(node) if same else None
            case Adopt(epoch):
                return self._renew(node, epoch)
            case Resign(epoch, _):
                if (self.holder, self.epoch) != (node, epoch):
                    return None
                self.holder, self.expires_at = None, float("-inf")
                self.renewals += 1
                return epoch

    def _take(self, node: UUID) -> int:
        self.holder, self.epoch = node, self.epoch + 1
        self.renewals += 1
        self.expires_at = self.time.server + self.ttl
        assert self.epoch not in self.terms, "an epoch was given twice"
        self.terms[self.epoch] = node
        return self.epoch

    def _renew(self, node: UUID, epoch: int) -> int | None:
        mine = (self.holder, self.epoch) == (node, epoch)
        if not mine or self.expires_at <= self.time.server:
            return None
        self.renewals += 1
        self.expires_at = self.time.server + self.ttl
        return epoch


@dataclass
class Contender:
    """A node whose every message may be lost, late, or answered to nobody.

    Each call of ``step`` does one thing: send a request, carry it out, or take its answer in.
    """

    id: UUID
    time: Time
    lease: Lease
    late: list[Callable[[], object]]
    chance: Callable[[], float] = lambda: 0.5
    stands: bool = True
    given_up: set[int] = field(default_factory=set)
    led: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.election = Election(self.id, RULES, self.chance)
        self._acts = self._rounds()
        self._fate = "ok"
        self.tick_at = self.time.now

    def step(self, fate: str = "ok") -> None:
        """Go on by one step. *fate* of the message: ok, unsent, unanswered, or late."""
        self._fate = fate
        next(self._acts)
        self.watch()

    def watch(self) -> None:
        leadership = self.election.leadership(self.time.now)
        if leadership is not None:
            assert leadership.epoch not in self.given_up, "a term that was given up is trusted"
            self.led.add(leadership.epoch)

    def withdraw(self, seconds: float) -> None:
        leadership = self.election.leadership(self.time.now)
        if leadership is not None:
            self.given_up.add(leadership.epoch)
        self.election.withdraw(self.time.now, seconds=seconds, reason="asked to")
        assert self.election.leadership(self.time.now) is None

    def next_at(self) -> float:
        """When the pulse would wake."""
        look = self.election.next_look(self.time.now)
        moments = [self.tick_at, look, self.election.due_at]
        return min(one for one in moments if one is not None)

    def _rounds(self) -> Iterator[None]:
        while True:
            look = self.election.next_look(self.time.now)
            if look is not None:
                self.tick_at = min(self.tick_at, look)
            if self.time.now >= self.tick_at:
                yield from self._tick()
            while (move := self.election.due(self.time.now)) is not None:
                yield from self._make(move)
            yield

    def _tick(self) -> Iterator[None]:
        sent = self.time.now
        self.tick_at = sent + RULES.interval
        epoch = self.election.renewing
        yield
        answer = self._carried(lambda: self.lease.tick(self.id, epoch))
        yield
        if answer is None or self._fate == "unanswered":
            self.tick_at = self.time.now + 0.5
            return
        seen, renewed = answer
        self.election.stand(self.stands, self.time.now, "not eligible")
        self.election.saw(seen, sent=sent, received=self.time.now, renewed=renewed)

    def _make(self, move: Move) -> Iterator[None]:
        sent = self.time.now
        yield
        found = self._carried(lambda: (self.lease.make(self.id, move),))
        yield
        if found is None or self._fate == "unanswered":
            self.election.failed(move, self.time.now)
        elif found[0] is None:
            self.election.refused(move, self.time.now)
        elif isinstance(move, Resign):
            self.election.resigned()
        else:
            self.election.won(move, found[0], sent=sent, now=self.time.now)

    def _carried(self, request: Callable[[], Any]) -> Any:
        if self._fate == "unsent":
            return None
        if self._fate == "late":  # a black hole opens again after the client has given up
            self.late.append(request)
            return None
        return request()


# How often what happens. Most messages arrive: else nobody ever leads, and nothing is tested.
ACTS = {"ok": 60, "unsent": 2, "unanswered": 3, "late": 3, "wait": 16, "release": 3, "freeze": 1}
ACTS |= {"withdraw": 0.4, "stand": 0.4, "crash": 0.4}
SKEWS = {"forward": 0.4, "back": 0.4}


def script(seed: int, acts: dict[str, float], length: int) -> list[tuple[str, int, float]]:
    """Acts, the number of a node each, and some seconds; drawn by weight."""
    draw = random.Random(seed)
    kinds = draw.choices(list(acts), list(acts.values()), k=length)
    return [(kind, draw.randrange(12), draw.random()) for kind in kinds]


class World:
    """Some nodes, one lease, and a wire."""

    def __init__(self, nodes: int, seed: int, lease: Lease | None = None) -> None:
        chance = random.Random(seed).random
        self.lease = lease or ModelLease(Time())
        self.time = self.lease.time
        self.late: list[Callable[[], object]] = []
        self.chance = chance
        self.begun = 0
        self.gone: list[Contender] = []
        self.nodes = [self.contender() for _ in range(nodes)]

    def contender(self) -> Contender:
        self.begun += 1
        return Contender(UUID(int=self.begun), self.time, self.lease, self.late, self.chance)

    def act(self, what: str, number: int, seconds: float) -> None:
        node = self.nodes[number % len(self.nodes)]
        match what:
            case "wait":
                self.wait(seconds)
            case "freeze":
                self.wait(seconds * 20)
            case "release":
                if self.late:
                    self.late.pop(number % len(self.late))()
            case "withdraw":
                node.withdraw(seconds * 7)
            case "crash":
                self.gone.append(node)
                self.nodes[self.nodes.index(node)] = self.contender()
            case "stand":
                node.stands = not node.stands
            case "forward":
                self.time.skew += seconds * 40
            case "back":
                self.time.skew -= seconds * 40
            case fate:
                node.step(fate)

    def wait(self, seconds: float) -> None:
        self.time.now += seconds
        for node in self.nodes:
            node.watch()

    def leaders(self) -> list[int]:
        found = [node.election.leadership(self.time.now) for node in self.nodes]
        return [one.epoch for one in found if one is not None]

    def runs_well(self, seconds: float) -> None:
        """Let everybody do everything at its time, with nothing lost, for so many seconds."""
        ends = self.time.now + seconds
        while self.time.now < ends:
            for node in self.nodes:
                for _ in range(4):
                    node.step()
            soonest = min(node.next_at() for node in self.nodes)
            self.wait(min(max(soonest - self.time.now, 0.01), RULES.interval))


def assert_terms_are_sound(world: World) -> None:
    """I1: every epoch has one holder; nobody leads under an epoch that is another's."""
    for node in world.nodes + world.gone:
        for epoch in node.led:
            assert world.lease.terms[epoch] == node.id
