"""The plan: which node should run which work. A pure function of what is there.

    plan(places, items, moves=...)  →  for every item the node that should run it, or None

Rules, the stronger first:

1. *Paused* work has no node. *Pinned* work runs on nodes of one name or not at all. A node has
   all labels that work *needs*. What nobody can run is unplaced, and the plan says why.
2. Work *avoids* the nodes it failed on as long as another one can run it.
3. Work of one *together* key runs on one node, if there is one that can run all of it; if not, it
   is cut into as few parts as the labels and pins ask for.
4. Work *stays*: on its target, or with its owner, while that node may run it; and it returns to a
   node of the name it waits for.
5. Work without a node (an *orphan*) is placed at once, wherever it can run.
6. Work of one *apart* key is spread over as many nodes as possible, and over those as evenly as
   their capacity allows.
7. Load is in proportion to capacity: no node has more than ``(1 + slack) / (1 - slack)`` times the
   load of another that could take some of it, unless moving one piece would not help.

Only the last two, and the return to a name, move work away from where it could stay; they obey
``moves``. Each such move lowers, in this order, the number of apart pieces that share a node, their
unevenness, and the unevenness of the load; so planning ends, and a plan made from its own result
changes nothing. The rule for load compares two nodes and no average: nodes whose labels differ have
different averages, and when a node joins, a shifted average would make old nodes trade among
themselves. So a node that joins is given its fair share at the most, and nothing else moves; only
where several apart keys meet, spreading one may take from a node that then gets something back.
Single pieces are moved, and two are never swapped.

The same input in another order gives the same plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from strandline.cluster.evenness import Board, Budget, bring_home, level, spread
from strandline.cluster.units import Item, Place, Unit, divided

__all__ = ["Item", "Place", "Plan", "plan"]


MOST_PASSES = 50  # few are needed; a plan must end also if rounding should fool the rules
NOTHING_NEW = "the nodes that could run it take nothing new at the moment"


@dataclass(frozen=True, slots=True)
class Plan:
    """Where everything should run.

    Attributes:
        targets: Of every item, by the name of its work: the node, or None.
        unplaced: Why work that is not paused has no node, by its name.
        moves: Items moved although they could have stayed: to return, to spread, or for load.
    """

    targets: dict[str, UUID | None]
    unplaced: dict[str, str]
    moves: int


def plan(
    places: Sequence[Place], items: Sequence[Item], *, moves: int | None, slack: float = 0.1
) -> Plan:
    """Decide where every item should run.

    Args:
        places: Nodes that run work.
        items: All work, with where it is now.
        moves: How many items may leave a node on which they could stay; None: as many as
            evenness asks for. What runs together is moved as one, also if it is more than that.
        slack: Share by which a node's load may differ without anything being moved; below 1.
    """
    places = sorted(places, key=lambda place: (place.name, place.id.int))
    items = sorted(items, key=lambda item: item.work.name)
    targets: dict[str, UUID | None] = {item.work.name: None for item in items}
    units, unplaced = divided(places, items)
    budget = Budget(moves)
    board = Board(places, units, budget, slack=slack)

    orphans = []
    for unit in units:
        if unit.place is None:
            orphans.append(unit)
        else:
            board.put(unit, unit.place)
    orphans.sort(key=_hardest_first)
    for unit in orphans:
        if unit.where.takers:
            board.put(unit, board.best(unit))
        else:
            unplaced.update((item.work.name, NOTHING_NEW) for item in unit.items)

    bring_home(board, units)
    for _ in range(MOST_PASSES):
        if not spread(board) and not level(board):
            break

    for unit in units:
        if unit.place is not None:
            node = places[unit.place].id
            targets.update((item.work.name, node) for item in unit.items)
    return Plan(targets, unplaced, budget.spent)


def _hardest_first(unit: Unit) -> tuple[int, float, int]:
    return len(unit.where.takers), -unit.weight, unit.number
