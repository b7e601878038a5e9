"""What the leader sees in one look: nodes and work, as values that a plan can be made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

import msgspec

from strandline.cluster.node import NodeState
from strandline.cluster.units import Item, Place
from strandline.cluster.work import Work


class SeenNode(msgspec.Struct, frozen=True, array_like=True):
    """A node, or one that has gone lately.

    Attributes:
        beats: How often it has beaten; what is judged later must find the same number.
        is_fresh: Its beats have not expired.
        is_late: It is silent for more than half its ttl; never the leader itself.
        is_due: It may be declared dead now.
        due_in: Seconds until it is, if it stays silent; None for the leader itself and the gone.
        gone: Seconds since it left or died, or None.
    """

    id: UUID
    name: str
    state: str
    labels: frozenset[str]
    capacity: float
    beats: int
    is_fresh: bool
    is_late: bool
    is_due: bool
    due_in: float | None
    gone: float | None

    @property
    def is_place(self) -> bool:
        """Whether it runs work. With late beats it keeps what it has and gets nothing new."""
        return self.state == NodeState.ACTIVE


class SeenWork(msgspec.Struct, frozen=True, array_like=True):
    """Work, with where it should run and does."""

    name: str
    needs: frozenset[str]
    together: str
    apart: str
    weight: float
    pinned_to: str | None
    is_paused: bool
    target: UUID | None
    owner: UUID | None
    owner_name: str
    avoid: frozenset[str]

    @property
    def is_settled(self) -> bool:
        """Whether it runs where it should."""
        return self.target is None or self.target == self.owner


@dataclass(frozen=True, slots=True)
class Sight:
    """One look."""

    nodes: Mapping[UUID, SeenNode]
    work: Sequence[SeenWork]

    @classmethod
    def of(cls, nodes: str, work: str) -> Sight:
        """What a look answered, decoded."""
        return cls({node.id: node for node in _NODES.decode(nodes)}, _WORK.decode(work))

    @property
    def present(self) -> list[SeenNode]:
        """Nodes that are there, in whatever state."""
        return [node for node in self.nodes.values() if node.gone is None]

    def places(self) -> list[Place]:
        """Where work may run."""
        return [
            Place(node.id, node.name, node.labels, node.capacity, node.is_fresh)
            for node in self.nodes.values()
            if node.is_place
        ]

    def items(self, homes: Mapping[str, str]) -> list[Item]:
        """What is to be placed; *homes* are the names of nodes that work returns to."""
        return [
            Item(
                Work(one.name, one.needs, one.together, one.apart, one.weight),
                owner=one.owner,
                target=one.target,
                last_name=homes.get(one.name, one.owner_name),
                pinned_to=one.pinned_to,
                is_paused=one.is_paused,
                avoid=one.avoid,
                waits_for_name=one.name in homes,
            )
            for one in self.work
        ]


_NODES = msgspec.json.Decoder(list[SeenNode])
_WORK = msgspec.json.Decoder(list[SeenWork])
