"""The keys of one shard whose events wait behind one that failed, and what that does to a page.

``going_on`` and ``of_slice`` are for processors whose keys are streams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from strandline.daemon.letters import PARKED, Due, Letter, behind
from strandline.errors import ApplyFailed, EventFailure
from strandline.projections.documents import Key
from strandline.projections.fold import POSITION, STREAM, TENANT, Piece, Row
from strandline.projections.slice import Slice


class Parking:
    """Tenant and key (stream, document or row) of what is parked.

    Read from the database when the shard is claimed and before a replay; what a committed batch
    parks is added after the commit. It may hold keys of other slices, for which nobody asks.
    """

    __slots__ = ("_keys",)

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self._keys = set(keys)

    def __bool__(self) -> bool:
        """Whether anything is parked; asked for every batch."""
        return bool(self._keys)

    def __contains__(self, key: Key) -> bool:
        """Whether events of *key* wait."""
        return key in self._keys

    @property
    def keys(self) -> frozenset[Key]:
        """All of them."""
        return frozenset(self._keys)

    def replace(self, keys: Iterable[Key]) -> None:
        """Keep exactly *keys*."""
        self._keys = set(keys)

    def add(self, keys: Iterable[Key]) -> None:
        """Park *keys* too."""
        self._keys.update(keys)

    def learn(self, letters: Iterable[Letter]) -> None:
        """*letters* are committed: their keys wait. An empty key blocks nothing."""
        self._keys.update(
            (one.tenant, one.key) for one in letters if one.status == PARKED and one.key
        )

    def remove(self, key: Key) -> None:
        """*key* waits no longer."""
        self._keys.discard(key)


def going_on(
    rows: Sequence[Row],
    parking: Parking,
    only: frozenset[Key] | None,
    concerns: Callable[[Row], bool],
) -> tuple[Sequence[Row], tuple[Letter, ...]]:
    """Those of *rows* that are to be processed, and letters for those that wait.

    Args:
        rows: Of a page.
        parking: The streams that are parked.
        only: Nothing but these streams, parked or not.
        concerns: Whether a row means anything to the processor.
    """
    if only is not None:
        return [row for row in rows if (row[TENANT], row[STREAM]) in only], ()
    going, letters = [], []
    for row in rows:
        key = (row[TENANT], row[STREAM])
        if key not in parking:
            going.append(row)
        elif concerns(row):
            letters.append(behind(row, key))
    return going, tuple(letters)


def failing(rows: Sequence[Row], error: EventFailure, concerns: Callable[[Row], bool]) -> Row:
    """The one of *rows* that fails with *error*.

    Raises:
        EventFailure: *error*, as nobody knows which of several it is.
    """
    position = getattr(error, "position", 0)
    some = [row for row in rows if concerns(row)]
    chosen = [row for row in some if row[POSITION] == position] or some
    if len(chosen) != 1:
        raise error
    return chosen[0]


def refuse_lost(label: str, rows: Sequence[Row], pieces: Sequence[Piece]) -> None:
    """Refuse replayed *rows* that yield none of *pieces*, which are those of the letters' key.

    Raises:
        ApplyFailed: The event is another document's since it was edited, or the code was.
    """
    applied = {piece[-1] for piece in pieces}
    for row in rows:
        if row[POSITION] not in applied:
            reason = (
                "it belongs to another document by now, or to none: rebuild that one, or all of it"
            )
            raise ApplyFailed(label, reason, position=row[POSITION])


def of_slice(letters: Sequence[Due], part: Slice) -> Sequence[Due]:
    """Those of *letters* whose streams are in *part*."""
    if part.parts == 1:
        return letters
    return [one for one in letters if one.hash % part.parts == part.part - 1]
