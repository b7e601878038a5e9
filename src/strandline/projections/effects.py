"""What a batch has changed, for an ``@sl.effects`` method to act on.

    @sl.effects
    async def raised(self, changes: sl.Changes[Account], tx: sl.Transaction) -> None:
        for change in changes:
            if change.of(Overdrawn):
                await tx.append(f"letter-{change.id}", LetterDue(change.id))

It is called once per batch, in the transaction that writes the documents and moves the checkpoint,
behind the fence: what it does by ``tx`` takes effect exactly once, or not at all. It is not called
by a rebuild, nor by a version that runs beside an older one which still speaks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from strandline.events.codec import encoded
from strandline.events.event import RecordedEvent
from strandline.projections.documents import Document, Key
from strandline.projections.fold import Piece

S = TypeVar("S")
E = TypeVar("E")


@dataclass(frozen=True, slots=True)
class Change(Generic[S]):
    """A document that events of a batch belong to.

    Attributes:
        tenant: Of the document.
        id: Of the document.
        state: The document after the batch, a copy; None: there is none (any more).
        version: Of the last event that it includes.
        position: Of the last event that it includes.
        events: The batch's events that belong to it, in order; none if only documents of earlier
            stages of a composite changed it.
    """

    tenant: str
    id: str
    state: S | None
    version: int
    position: int
    events: tuple[RecordedEvent[Any], ...]

    def of(self, cls: type[E]) -> list[RecordedEvent[E]]:
        """The events whose data is a *cls*."""
        return [event for event in self.events if isinstance(event.data, cls)]


@dataclass(frozen=True, slots=True)
class Changes(Generic[S]):
    """The documents of one batch.

    Attributes:
        changes: One for each document, in the order of their first events.
        ceiling: With this batch, everything up to this position is applied.
    """

    changes: tuple[Change[S], ...]
    ceiling: int

    def __iter__(self) -> Iterator[Change[S]]:
        """Iterate over the changes."""
        return iter(self.changes)

    def __len__(self) -> int:
        """How many documents there are."""
        return len(self.changes)


def changes_of(
    pieces: Iterable[Piece],
    documents: Mapping[Key, Document[S]],
    decode: Callable[[str], S],
    *,
    after: int,
) -> tuple[Change[S], ...]:
    """What *pieces*, applied to *documents* by now, have changed.

    Args:
        pieces: With envelopes.
        documents: They are folded on while the effects are under way, so their states are copied.
        decode: JSON of a document → state.
        after: Only events beyond this position count.
    """
    events: dict[Key, list[RecordedEvent[Any]]] = {}
    for key, _, _, envelope, _, position in pieces:
        if position > after:
            known = events.setdefault(key, [])
            # parts of one event come one after the other
            if envelope is not None and (not known or known[-1].position != position):
                known.append(envelope)
    return tuple(
        Change(*key, copied(document.state, decode), document.version, document.position, tuple(of))
        for key, of in events.items()
        for document in [documents[key]]
    )


def copied(state: S | None, decode: Callable[[str], S]) -> S | None:
    """*state* as it is read after it was stored."""
    return None if state is None else decode(encoded(state, "document").decode())
