"""Under which right a duty writes: a term of leadership, or none where there is no cluster.

Every write of a duty share-locks the leader's lease under (holder, epoch) in its own statement, or
as the last thing of its transaction: our own beats renew that row, and wait for such a lock.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from strandline.cluster.leading import Term
from strandline.cluster.lease import LEADER
from strandline.errors import LeaseLost


@dataclass(frozen=True, slots=True)
class Right:
    """What the statements of a duty name; both None: alone, nothing is asked."""

    me: UUID | None = None
    epoch: int | None = None

    @classmethod
    def of(cls, term: Term) -> Right:
        """The right of the leader of *term*."""
        return cls(term.me, term.epoch)

    def check(self, what: str, *, held: bool) -> None:
        """Raise what a statement that the lease's row refused means.

        Raises:
            LeaseLost: It was not *held*.
        """
        if not held:
            reason = f"{what}: another one leads, or nobody"
            raise LeaseLost(LEADER, epoch=self.epoch or 0, reason=reason)
