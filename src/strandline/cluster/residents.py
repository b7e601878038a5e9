"""What runs on every node, and what runs where the leader is: neither is spread by a plan."""

from __future__ import annotations

from typing import Protocol

from strandline.cluster.leading import Term
from strandline.cluster.node import Identity


class Resident(Protocol):
    """What runs on every node as long as it is one."""

    async def joined(self, node: Identity, number: int) -> None:
        """This process is *node* from now on; its row has *number*. Called anew after an eviction.

        What it raises is what joining raises.
        """
        ...

    def draining(self) -> None:
        """Take nothing new: the node gives its work away. Called as often as anybody likes."""
        ...

    async def out(self, *, timeout: float) -> None:
        """The node was declared dead: end everything within *timeout* seconds, hand nothing over.

        Never raises. Also called where ``joined`` was not.
        """
        ...


class Office(Protocol):
    """Further duties of the leader, begun and ended with the balancer's."""

    def begin(self, term: Term) -> None:
        """Begin the duties of *term*; those of an earlier one have ended or end now."""
        ...

    def serves(self, epoch: int) -> bool:
        """Whether the duties of the term *epoch* are being done."""
        ...

    def end(self, epoch: int) -> None:
        """Begin nothing more in the term *epoch*, or an earlier one."""
        ...

    async def stop(self, *, timeout: float) -> None:
        """End the duties: what is under way has *timeout* seconds, and is cut then. Never raises."""
        ...

    def wake(self) -> None:
        """Something in the cluster has changed: a node may have died."""
        ...
