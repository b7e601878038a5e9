"""How even a plan is: who carries what, and the moves that make it more even."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from typing import TypeAlias

from strandline.cluster.units import Place, Unit

TINY = 1e-9  # relative; what differs less is equal, whatever the rounding of sums

Aparts: TypeAlias = tuple[str, ...]
Pile: TypeAlias = list[tuple[float, int, Unit]]  # lightest first


class Budget:
    """How many items may still leave the place where they were.

    ``spent`` is how many have left it: one that moves twice counts once, one that comes back not
    at all, and one that had no place may go anywhere.
    """

    def __init__(self, moves: int | None) -> None:
        self.spent = 0
        self._moves = moves

    def allows(self, unit: Unit) -> bool:
        """Whether *unit* may move. The first one may be larger than all there is to spend."""
        if self._moves is None or unit.origin is None or unit.place != unit.origin:
            return True
        left = self._moves - self.spent
        return left > 0 and (self.spent == 0 or len(unit.items) <= left)

    @property
    def is_spent(self) -> bool:
        """Whether nothing more may leave its place."""
        return self._moves is not None and self.spent >= self._moves

    def spend(self, unit: Unit, new: int) -> None:
        """Count that *unit* is about to move to *new*."""
        if unit.origin is not None:
            self.spent += len(unit.items) * ((unit.place == unit.origin) - (new == unit.origin))


class Board:
    """Who carries what. A *score* is load for capacity; the most capable place has capacity 1."""

    def __init__(
        self, places: Sequence[Place], units: Sequence[Unit], budget: Budget, *, slack: float
    ) -> None:
        self.budget = budget
        self.moved = 0
        largest = max((place.capacity for place in places), default=1.0)
        self.share = [largest / place.capacity for place in places]
        self.score = [0.0] * len(places)
        self.takers = [number for number, place in enumerate(places) if place.takes_new]
        self.most_ratio = (1 + slack) / (1 - slack) * (1 + TINY)
        # apart key → place → its pieces there
        self.held: dict[str, dict[int, list[Unit]]] = {}
        for unit in units:
            for key in unit.aparts:
                self.held.setdefault(key, {})
        # place → where its units may run → their apart keys → the units
        self.piles: list[dict[int, dict[Aparts, Pile]]] = [{} for _ in places]

    def put(self, unit: Unit, place: int) -> None:
        """Add *unit* to what *place* carries."""
        unit.place = place
        self.score[place] += unit.weight * self.share[place]
        for key in unit.aparts:
            insort(self.held[key].setdefault(place, []), unit, key=_number)
        piles = self.piles[place].setdefault(unit.where.number, {})
        insort(piles.setdefault(unit.aparts, []), (unit.weight, unit.number, unit))

    def move(self, unit: Unit, place: int) -> None:
        """Take *unit* from where it is to *place*."""
        old = unit.place
        assert old is not None
        self.budget.spend(unit, place)
        self.moved += 1
        self.score[old] -= unit.weight * self.share[old]
        for key in unit.aparts:
            held = self.held[key]
            held[old].remove(unit)
            if not held[old]:
                del held[old]
        piles = self.piles[old][unit.where.number]
        pile = piles[unit.aparts]
        pile.pop(bisect_left(pile, (unit.weight, unit.number)))
        if not pile:
            del piles[unit.aparts]
        if not piles:
            del self.piles[old][unit.where.number]
        self.put(unit, place)

    def best(self, unit: Unit) -> int:
        """Where a new *unit* goes: as far apart as possible, then where the load is least."""
        among: Sequence[int] = unit.where.takers
        for key in unit.aparts:
            among = self._farthest(key, among)
        score, share, weight = self.score, self.share, unit.weight
        loads = [score[one] + weight * share[one] for one in among]
        return among[loads.index(min(loads))]

    def _farthest(self, key: str, among: Sequence[int]) -> Sequence[int]:
        """Those of *among* to which one more of *key* makes the spread the least worse."""
        held, share = self.held[key], self.share
        free = [one for one in among if one not in held]
        if free:
            return free
        costs = [(2 * len(held[one]) + 1) * share[one] for one in among]
        least = min(costs) * (1 + TINY)
        return [one for one, cost in zip(among, costs, strict=True) if cost <= least]

    def crowding(self, aparts: Aparts, old: int, new: int) -> int:
        """What moving a unit from *old* to *new* does to its spread: -1 better, 0 nothing, 1 worse.

        Fewer nodes that have any of a key are worse; then, a larger sum of squares of how many
        each node has, by capacity.
        """
        lost = 0
        more = less = 0.0
        for key in aparts:
            held = self.held[key]
            here, there = len(held[old]), len(held.get(new, ()))
            lost += (here == 1) - (there == 0)
            more += self.share[new] * (2 * there + 1) if there else 0.0
            less += self.share[old] * (2 * here - 1) if here > 1 else 0.0
        if lost:
            return lost
        change = more - less
        return 0 if abs(change) <= TINY * (more + less) else -1 if change < 0 else 1


# ---- moves that make it more even; each answers whether it has moved anything


def bring_home(board: Board, units: Sequence[Unit]) -> bool:
    """Return units to the name they wait for, where that leaves nothing less even."""
    before = board.moved
    score = board.score
    for unit in units:
        old, home = unit.place, unit.home
        if old is None or home is None or not board.budget.allows(unit):
            continue
        fits = score[home] + unit.weight * board.share[home] <= score[old] * (1 + TINY)
        if fits and board.crowding(unit.aparts, old, home) <= 0:
            board.move(unit, home)
    return board.moved > before


def spread(board: Board) -> bool:
    """Move units that share a node with others of their apart key."""
    before = board.moved
    for key in sorted(board.held):
        while not board.budget.is_spent and _spread_one(board, key):
            pass
    return board.moved > before


def _spread_one(board: Board, key: str) -> bool:
    held, share, score = board.held[key], board.share, board.score
    gains = {one: (2 * len(here) - 1) * share[one] for one, here in held.items() if len(here) > 1}
    lines: dict[int, list[tuple[float, float, int]]] = {}
    for old in sorted(gains, key=lambda one: (-gains[one], -score[one], one)):
        tried = set()
        for unit in held[old]:
            kind = (unit.where.number, unit.aparts, len(unit.items))
            if kind in tried or not board.budget.allows(unit):
                continue
            tried.add(kind)
            line = lines.get(unit.where.number)
            if line is None:
                line = lines[unit.where.number] = _by_cost(board, key, unit.where.takers)
            for cost, _, new in line:
                if cost >= gains[old]:
                    break
                if new != old and board.crowding(unit.aparts, old, new) < 0:
                    board.move(unit, new)
                    return True
    return False


def _by_cost(board: Board, key: str, takers: Sequence[int]) -> list[tuple[float, float, int]]:
    """*takers*, those first to which one more of *key* should go: what it costs, score, place."""
    held, share, score = board.held[key], board.share, board.score
    return sorted(
        ((2 * len(held[one]) + 1) * share[one] if one in held else 0.0, score[one], one)
        for one in takers
    )


def level(board: Board) -> bool:
    """Move units from nodes with more load to nodes with less, the highest first."""
    before = board.moved
    while not board.budget.is_spent:
        begun = board.moved
        lowest = min((board.score[one] for one in board.takers), default=0.0)
        active = [one for one, piles in enumerate(board.piles) if piles]
        while active and not board.budget.is_spent:
            high = max(active, key=board.score.__getitem__)
            if board.score[high] <= board.most_ratio * lowest:
                break  # nobody is above the lowest by too much
            if not _give(board, high):
                active.remove(high)
        if board.moved == begun:
            break
    return board.moved > before


def _give(board: Board, high: int) -> bool:
    """Move one unit away from *high*, if that is worth it."""
    score = board.score
    most = score[high] / board.most_ratio
    offers = []
    for piles in board.piles[high].values():
        takers = next(iter(piles.values()))[0][2].where.takers
        low = min(takers, key=score.__getitem__, default=high)
        if score[low] >= most:
            continue
        unit = _lightener(board, high, low, piles)
        if unit is None:
            for low in sorted(takers, key=lambda one: (score[one], one)):
                if score[low] >= most:
                    break
                unit = _lightener(board, high, low, piles)
                if unit is not None:
                    break
        if unit is not None:
            offers.append((score[low], low, unit.number, unit))
    if not offers:
        return False
    _, low, _, unit = min(offers)
    board.move(unit, low)
    return True


def _lightener(board: Board, high: int, low: int, piles: dict[Aparts, Pile]) -> Unit | None:
    """The unit of *piles* whose move from *high* to *low* evens the load most, if any does."""
    gap = board.score[high] - board.score[low]
    per_weight = board.share[high] + board.share[low]
    ideal = gap / per_weight
    best: tuple[float, int, Unit] | None = None
    for aparts, pile in piles.items():
        if aparts and board.crowding(aparts, high, low) > 0:
            continue
        at = bisect_right(pile, ideal, key=_weight)
        for weight, number, unit in pile[max(0, at - 1) : at + 1]:
            gain = weight * (2 * ideal - weight)
            if gain <= TINY * ideal * ideal or not board.budget.allows(unit):
                continue
            if best is None or (gain, -number) > (best[0], -best[1]):
                best = (gain, number, unit)
    return best[2] if best is not None else None


def _number(unit: Unit) -> int:
    return unit.number


def _weight(entry: tuple[float, int, Unit]) -> float:
    return entry[0]
