"""What a plan changes, for the database and for people."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from strandline.cluster.assignment import Plan
from strandline.cluster.node import NodeState
from strandline.cluster.sight import SeenWork, Sight

SHOWN = 50  # changes that a log entry names
UNPLACED_SHOWN = 500  # works without a node, for one reason, that a log entry names


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a plan changes.

    Attributes:
        changes: The new target by name of the work.
        names: The names of the targets.
        kinds: How many were ``placed`` (had no node), ``moved`` and ``withdrawn`` (have none now).
        unplaced: Names of work that no node can run, by reason.
        moves: Work moved for balance.
    """

    changes: Mapping[str, UUID | None]
    names: Mapping[UUID, str]
    kinds: Mapping[str, int]
    unplaced: Mapping[str, Sequence[str]]
    moves: int

    @classmethod
    def of(cls, sight: Sight, plan: Plan) -> Outcome:
        """The difference between *plan* and what was seen.

        Work of a stalled node that nobody else can run stays where it is: taken away, it would
        not run either, and had to be started anew when the node comes to.
        """
        changes: dict[str, UUID | None] = {}
        kinds: Counter[str] = Counter(placed=0, moved=0, withdrawn=0)
        unplaced: dict[str, list[str]] = {}
        for one in sight.work:
            target = plan.targets[one.name]
            reason = plan.unplaced.get(one.name)
            if reason is not None:
                if _is_stalled(sight, one):
                    continue
                unplaced.setdefault(reason, []).append(one.name)
            if target != one.target:
                changes[one.name] = target
                kinds[_kind(sight, one, target)] += 1
        names = {node.id: node.name for node in sight.nodes.values()}
        return cls(changes, names, kinds, unplaced, plan.moves)

    @property
    def unplaced_count(self) -> int:
        """How much work no node can run."""
        return sum(len(names) for names in self.unplaced.values())

    @property
    def words(self) -> str:
        """In words, for the log."""
        return ", ".join(f"{count} {kind}" for kind, count in self.kinds.items() if count)

    def detail(self, *, with_unplaced: bool) -> str:
        """For the node log, as JSON."""
        detail: dict[str, Any] = {kind: count for kind, count in self.kinds.items() if count}
        shown = list(self.changes.items())[:SHOWN]
        if shown:
            detail["to"] = {
                work: None if node is None else self.names[node] for work, node in shown
            }
        if with_unplaced:
            detail["unplaced"] = {
                reason: names[:UNPLACED_SHOWN] for reason, names in self.unplaced.items()
            }
        return json.dumps(detail)


def _is_stalled(sight: Sight, one: SeenWork) -> bool:
    node = sight.nodes.get(one.target) if one.target is not None else None
    return node is not None and node.state == NodeState.STALLED


def _kind(sight: Sight, one: SeenWork, target: UUID | None) -> str:
    if target is None:
        return "withdrawn"
    node = sight.nodes.get(one.target) if one.target is not None else None
    return "moved" if node is not None and node.is_place else "placed"
