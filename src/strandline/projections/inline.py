"""Inline projections: brought up to date in the transaction of the append.

Single-stream documents are safe by the stream's row lock, which the append holds. Everything else
gathers from many streams, so appends that touch such a projection take turns: a lock per
projection, taken before positions are drawn, makes commit order and position order the same.

Who keeps a projection can change while old code still appends to it (see ``lifecycles``). So every
append asks, in the statement that takes the turns, which of its projections are inline still, and
leaves the others to the nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from strandline.postgres.operations import Call, Op, Rows, many
from strandline.postgres.statements import SqlFile
from strandline.projections.documents import Documents
from strandline.projections.fold import PageFold, Row


@dataclass(frozen=True, slots=True)
class StillInline:
    """A projection that appends bring up to date."""

    label: str


_sql = SqlFile(__name__)
TAKE_PART = _sql.many("take_part", StillInline)
APPENDED_ROWS = _sql.many("appended_rows", tuple)


class Inline(Protocol):
    """An inline projection, ready to follow appends."""

    label: str
    takes_turns: bool

    def wants(self, types: Iterable[str]) -> bool:
        """Whether events of any of these stored names concern it."""
        ...

    def follow(self, rows: Sequence[Row]) -> Op[None]:
        """Bring it up to date with *rows*, just appended in the same transaction."""
        ...


class InlineDocuments:
    """A single- or multi-stream projection kept inline."""

    def __init__(self, documents: Documents[Any], fold: PageFold, *, takes_turns: bool) -> None:
        self.label = documents.projection.label
        self.takes_turns = takes_turns
        self._documents = documents
        self._fold = fold

    def wants(self, types: Iterable[str]) -> bool:
        """See ``Inline``."""
        return any(name in self._fold.wanted for name in types)

    def follow(self, rows: Sequence[Row]) -> Op[None]:
        """See ``Inline``.

        Raises:
            EventFailure: A handler raised, so the append fails with it: nothing is written.
        """
        pieces = self._fold.group(rows)
        if pieces:
            keys = list(dict.fromkeys(piece[0] for piece in pieces))
            found = yield from self._documents.load(keys, lock=True)
            self._fold.apply(pieces, found)
            yield from self._documents.save(found)


def take_part(inlines: Sequence[Inline]) -> Op[list[Inline]]:
    """Those of *inlines* that this append must bring up to date; run it before it draws positions.

    Waits until no other append to those that take turns is under way, in one order for everybody.
    """
    if not inlines:
        return []
    labels = [one.label for one in inlines]
    turns = [one.label for one in inlines if one.takes_turns]
    found = {one.label for one in (yield from many(TAKE_PART, labels, turns))}
    return [one for one in inlines if one.label in found]


def appended_rows(tenant: str, stream: str, *, after: int, up_to: int) -> Op[Rows]:
    """The rows of versions *after* < version ≤ *up_to* of a stream."""
    return (yield Call(APPENDED_ROWS, (tenant, stream, after, up_to)))
