"""What can be spread over nodes: work by name, and who runs it on a node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Work:
    """Something that runs on one node at a time.

    Attributes:
        name: Unique in the cluster, e.g. ``orders:v2:3/8``.
        needs: Labels that a node must have; ``orders:v2`` is a label of nodes whose code has it.
        together: All work of one such key runs on one node; empty for none.
        apart: Work of one such key is spread over as many nodes as possible; empty for none.
        weight: How much of a node's capacity it takes.
    """

    name: str
    needs: frozenset[str] = frozenset()
    together: str = ""
    apart: str = ""
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Grant:
    """The right to run *work* on node *owner*, good while no later epoch exists."""

    work: str
    owner: UUID
    epoch: int


Ended = Callable[[str, BaseException | None], None]
"""Called with the name of work that ended by itself, and why."""


class Worker(Protocol):
    """What runs work on this node. The reconciler alone calls ``run`` and ``stop``."""

    async def offers(self) -> Sequence[Work]:
        """The work that this node's code can run; asked again when a node starts or is told to."""
        ...

    async def run(self, grant: Grant, ended: Ended) -> None:
        """Start *grant*'s work and return; *ended* is told if it ends without ``stop``."""
        ...

    async def stop(self, work: str, *, timeout: float) -> bool:
        """End it after the batch under way; whether it ended by itself within *timeout* seconds.

        Returns in *timeout* seconds and a little, whatever hangs. Unknown work is True.
        """
        ...

    def stuck(self) -> Sequence[str]:
        """Work that runs, has something to do, and has made no progress for too long."""
        ...

    def progress(self) -> int:
        """A number that grows while anything here gets on."""
        ...
