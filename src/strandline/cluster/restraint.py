"""When the leader holds back: mass death, nodes that may come back, and moves for balance."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from strandline.cluster.sight import SeenNode, Sight

LEAST_MASS = 3  # nodes due at once, below which it may well be just these nodes
ROUND_GAP = 1.0  # seconds between rounds of moves at least, also if one has settled before


class Brake:
    """Holds back a verdict on many nodes at once: perhaps it is the network, and they come back.

    If a node is due while more than half of the nodes, and at least three, are silent for longer
    than half their ttl, it is left alone for *patience* seconds more.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._until: dict[UUID, float] = {}

    def judge(self, now: float, sight: Sight) -> tuple[list[SeenNode], list[SeenNode]]:
        """The nodes to be declared dead now, and those that are held back from now on."""
        present = sight.present
        due = [node for node in present if node.is_due]
        silent = sum(node.is_due or node.is_late for node in present)
        still = {node.id for node in due}
        self._until = {node: until for node, until in self._until.items() if node in still}
        held = []
        if silent >= LEAST_MASS and 2 * silent > len(present):
            held = [node for node in due if node.id not in self._until]
            self._until.update((node.id, now + self._patience) for node in held)
        return [node for node in due if self._until.get(node.id, now) <= now], held

    def held_until(self, node: UUID) -> float | None:
        """When the patience with *node* ends, or None."""
        return self._until.get(node)


@dataclass(slots=True)
class _Home:
    until: float
    is_back: bool
    work: set[str]


class Homes:
    """The names of nodes that work returns to: of those that went less than *grace* seconds ago.

    A node that restarts under its name gets back what it had, though others have run it
    meanwhile. This is known to one leader only: after a change of leader, work that others have
    taken stays there.
    """

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._homes: dict[str, _Home] = {}
        self._of: dict[str, str] = {}

    def look(self, now: float, sight: Sight) -> dict[str, str]:
        """Take a new look in; the name that each work returns to, where there is one."""
        self._age(now, sight)
        for one in sight.work:
            name = self._of.get(one.name)
            at = one.target or one.owner
            node = sight.nodes.get(at) if at is not None else None
            if name is not None:
                if node is not None and node.is_place and node.name == name:
                    self._forget(one.name)
            elif node is not None and not node.is_place:
                self._remember(one.name, node, now)
        return self._of

    def _age(self, now: float, sight: Sight) -> None:
        places = {node.name for node in sight.nodes.values() if node.is_place}
        coming = {node.name for node in sight.present} - places
        for name, home in list(self._homes.items()):
            if name in coming or (name in places and not home.is_back):
                home.until = now + self._grace
            home.is_back = name in places
            if now >= home.until or not home.work:
                del self._homes[name]
                for work in home.work:
                    del self._of[work]

    def _remember(self, work: str, node: SeenNode, now: float) -> None:
        until = now + self._grace - (node.gone or 0.0)
        if until > now:
            home = self._homes.setdefault(node.name, _Home(until, False, set()))
            home.work.add(work)
            self._of[work] = node.name

    def _forget(self, work: str) -> None:
        self._homes[self._of.pop(work)].work.discard(work)


class Rounds:
    """When work may move for balance, and how much: in rounds, and not while nodes come and go.

    A round begins when the nodes have been the same for *after* seconds. The next one begins when
    all work runs where it should, or *interval* seconds later.
    """

    def __init__(self, now: float, *, after: float, interval: float, share: float) -> None:
        self._after = after
        self._interval = interval
        self._share = share
        self._members: frozenset[tuple[object, ...]] = frozenset()
        self._changed_at = now
        self._moved_at: float | None = None
        self._is_settled = True

    def look(self, now: float, sight: Sight) -> int:
        """Take a new look in; how many items may move now."""
        members = frozenset(
            (node.id, node.labels, node.capacity) for node in sight.nodes.values() if node.is_place
        )
        doubtful = any(node.is_place and not node.is_fresh for node in sight.nodes.values())
        if members != self._members or doubtful:
            self._members = members
            self._changed_at = now
        self._is_settled = all(one.is_settled for one in sight.work)
        if self._share <= 0 or doubtful or self.next_at(now) is not None:
            return 0
        total = sum(not one.is_paused for one in sight.work)
        return max(1, int(self._share * total))

    def made(self, now: float, moves: int) -> None:
        """Note that a plan with so many moves was published."""
        if moves:
            self._moved_at = now
            self._is_settled = False

    def next_at(self, now: float) -> float | None:
        """When the next round may begin, if that is known and not past."""
        begins = self._changed_at + self._after
        if self._moved_at is not None:
            gap = min(ROUND_GAP, self._interval) if self._is_settled else self._interval
            begins = max(begins, self._moved_at + gap)
        return begins if begins > now else None
