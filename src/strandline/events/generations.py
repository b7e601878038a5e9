"""The pure half of the high-water proof: which heads are pending, and which are proved."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from uuid import UUID

MOST = 256  # pending generations kept; more would only make settling a little finer


@dataclass(frozen=True, slots=True)
class Generation:
    """A head that was seen, and who might then still have filled a number below it.

    Attributes:
        highest: The highest position that was visible.
        head: Id of the event there.
        holders: Keys of the transactions that held ``streams`` afterwards, read by a later
            statement than the one that saw ``highest``.
        count: How many transactions these keys belong to.
        taken: Monotonic seconds.
    """

    highest: int
    head: UUID
    holders: frozenset[str]
    count: int
    taken: float


class Generations:
    """A queue of generations; knows no database and no clock.

    It rests on one fact: a transaction that has drawn a position is a holder until it ends.
    ``holders`` of a generation must be read after its ``highest``, and what ``settled`` answers
    may be acted on only from a snapshot taken after ``present`` was read. Forgetting a generation
    is always safe: it only delays the mark.
    """

    __slots__ = ("_pending",)

    def __init__(self) -> None:
        self._pending: list[Generation] = []

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def oldest(self) -> Generation | None:
        """The generation that has waited longest."""
        return self._pending[0] if self._pending else None

    def add(self, generation: Generation) -> None:
        """Queue *generation*, unless its head is queued already (with holders that are older)."""
        if self._pending and generation.highest <= self._pending[-1].highest:
            return
        if len(self._pending) >= MOST:  # thin out the middle; keep the oldest and the newest
            self._pending = [self._pending[0], *self._pending[2:-1:2], self._pending[-1]]
        self._pending.append(generation)

    def settled(self, present: AbstractSet[str]) -> Generation | None:
        """The newest generation of which no holder is *present* any more, or None."""
        for generation in reversed(self._pending):
            if generation.holders.isdisjoint(present):
                return generation
        return None

    def taken_before(self, moment: float) -> Generation | None:
        """The newest generation taken at *moment* or earlier, or None."""
        for generation in reversed(self._pending):
            if generation.taken <= moment:
                return generation
        return None

    def passed(self, mark: int, highest: int) -> None:
        """Forget what is at or below *mark*, and heads above *highest*: they have vanished."""
        self._pending = [one for one in self._pending if mark < one.highest <= highest]

    def clear(self) -> None:
        """Forget all."""
        self._pending.clear()


def all_keys(holders: Iterable[Iterable[str]]) -> frozenset[str]:
    """Every key of every holder."""
    return frozenset(key for keys in holders for key in keys)
