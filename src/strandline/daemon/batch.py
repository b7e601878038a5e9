"""What a batch is, and what makes and commits the batches of one shard, fenced.

States of a batch: *prepared* (folded in memory, nothing written) → *committed*, or thrown away.

Invariant (I1, I3): what a batch writes and the move of its checkpoint are one transaction, and the
move names epoch, owner and the position it starts from. So a batch is applied exactly once or not
at all, and never by somebody who no longer owns the shard, whatever crashes in between.

What can go wrong, and what then:

* The fence answers no row: ``CheckpointMoved``; the transaction rolls back, the agent stops.
* The connection breaks during the commit: nobody knows. The agent re-reads its checkpoint: it is at
  the batch's ceiling (committed), at its floor (not), or another epoch's (stop).
* The fold raises: nothing was written; in-memory documents are half changed and thrown away.

The next batch may be prepared while this one commits; its documents then build on states that are
not committed yet. That is sound because a failed commit throws both away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from strandline.daemon.checkpoint import Checkpoint
from strandline.daemon.feed import Appetite, Page
from strandline.daemon.letters import Closed, Due, Letter
from strandline.daemon.parking import Parking
from strandline.errors import EventFailure
from strandline.projections.documents import Key
from strandline.projections.failure_policy import Decide
from strandline.projections.slice import WHOLE, Slice


@dataclass(frozen=True, slots=True)
class Batch:
    """A page, ready to be committed.

    Attributes:
        page: What it was made of.
        work: What the processor is to write.
        letters: Dead letters that are written with it.
        closed: Dead letters that are resolved by it.
        told: What its side effects are told.
        began: When it was begun, by the monotonic clock; None for a part of one.
    """

    page: Page
    work: Any = None
    letters: tuple[Letter, ...] = ()
    closed: tuple[Closed, ...] = ()
    told: tuple[Any, ...] = ()
    began: float | None = None

    @property
    def writes_letters(self) -> bool:
        """Whether dead letters change with it."""
        return bool(self.letters or self.closed)


class Processor(Protocol):
    """Makes and commits the batches of one shard.

    Attributes:
        label: Of the projection or subscription.
        appetite: What it wants in its pages.
        reads_pages: Whether events pass through here; else PostgreSQL folds them, and a page is a range.
        is_pure: The same events fail the same way: nothing is gained by trying them again.
        parking: The keys whose events wait behind one that failed; kept by the agent.
        keys_are_streams: An event has one key, its stream; so several keys can be replayed together.
    """

    label: str
    appetite: Appetite
    reads_pages: bool
    is_pure: bool
    parking: Parking
    keys_are_streams: bool

    async def prepare(
        self, page: Page, *, only: frozenset[Key] | None = None, within: Slice = WHOLE
    ) -> Batch:
        """Do everything that can be done before the transaction.

        Events of parked keys become letters behind the one that failed.

        Args:
            page: Events.
            only: Nothing but these keys, parked or not: their letters are being replayed.
            within: The slice whose documents a letter without a key stands for.

        Raises:
            EventFailure: An event cannot be processed; its ``position`` is 0 if it is not known which.
                Also a letter's event that belongs to another key by now: it would be lost.
        """
        ...

    async def aside(self, page: Page, error: EventFailure, decide: Decide) -> Batch:
        """A batch of *page*, which holds one event that fails with *error*: put it aside.

        The rest of what the event does (to other documents) is done. Parked, later events of the keys
        that failed wait behind it; skipped, they go on. Which it is, *decide* says for each failure:
        the event may fail differently for each of its keys.

        Raises:
            EventFailure: For one of them the policy says ``pause``.
        """
        ...

    async def commit(self, batch: Batch, checkpoint: Checkpoint) -> None:
        """Write the batch, its letters, and move the checkpoint to its ceiling, in one transaction.

        Raises:
            CheckpointMoved: Another epoch owns the shard; nothing was written.
            EventFailure: As ``prepare``; nothing was written.
        """
        ...

    async def owned(self, letters: Sequence[Due]) -> Sequence[Due]:
        """Those of *letters*, which are of all shards of the label, that are this shard's to replay."""
        ...

    def forget(self) -> None:
        """Drop what is kept in memory: it may not be what is committed."""
        ...
