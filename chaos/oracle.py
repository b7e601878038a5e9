"""Says what is wrong with what the cluster has done: an own fold of the events, and own rules.

It shares no code with strandline: events and read models come as plain rows (``evidence.py``). The
fold goes on from check to check, so that a long run reads every event once.

Invariants, as in the design: I1 every event applied exactly once and in order; I2 nothing becomes visible at
or below the mark; I3 only the owner commits under a shard; I4 the mark never moves back; I5 all work has
an owner again in time; I6 who is told to stop is gone in time; I7 control goes on while pools are
exhausted; I9 what was put aside is replayed. Besides: *acknowledged* (what was acknowledged is stored, once), *epochs*, *membership*.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

CHAIN = 2_147_483_647
IN_ORDER_OF_STREAMS = ("notes",)  # lists in which a stream may wait while others go on
SHOWN = 3  # differences of one kind that are told one by one


class Violation(NamedTuple):
    """Something that must not happen."""

    invariant: str
    words: str
    at: float | None = None  # time of day, where it is known


class Event(NamedTuple):
    """A stored event."""

    position: int
    stream: str
    version: int
    type: str
    number: int
    amount: int
    branch: str


class Sample(NamedTuple):
    """One look at the mark: how many events were visible above the last mark, up to this one."""

    before: int
    mark: int
    visible: int


@dataclass
class Book:
    """What a document must hold."""

    events: int = 0
    balance: int = 0
    last: int = 0
    chain: int = 0
    wrong: int = 0

    def add(self, number: int, event: Event) -> None:
        """Count *event* in under *number*."""
        self.events += 1
        self.balance += event.amount if event.type == "deposited" else -event.amount
        self.last = number
        self.chain = (self.chain * 1_000_003 + number) % CHAIN

    def fields(self) -> dict[str, int]:
        """As it is stored."""
        return dict(vars(self))


@dataclass
class Evidence:
    """What a check has found in the database: what is new since the last, and whole read models.

    Attributes:
        events: New events, by position.
        documents: Per projection the stored documents, each with ``version`` and ``position``.
        turnover: Per branch (bookings, balance, latest).
        lists: Per list (``ledger``, ``journal``) its new rows (position, stream, number), in the
            order in which they were inserted.
        gaps: All settled gaps (first, last).
        mark: The mark.
        accusations: New violations that triggers have noted.
        acknowledged: New acknowledged appends (stream, number, position).
        samples: New looks at the mark.
        open_letters: Events that were put aside, and not replayed yet.
        jobs: What became of the jobs, for ``job_oracle``.
    """

    events: Sequence[Event] = ()
    documents: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    turnover: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    lists: Mapping[str, Sequence[tuple[int, str, int]]] = field(default_factory=dict)
    gaps: Sequence[tuple[int, int]] = ()
    mark: int = 0
    accusations: Sequence[Violation] = ()
    acknowledged: Sequence[tuple[str, int, int]] = ()
    samples: Sequence[Sample] = ()
    open_letters: int = 0
    jobs: Any = None


class Oracle:
    """Folds the events by itself and compares."""

    def __init__(self) -> None:
        self.positions: list[int] = []
        self.streams: dict[str, Book] = {}
        self.branches: dict[str, Book] = {}
        self.last_of_stream: dict[str, Event] = {}
        self.last_of_branch: dict[str, Event] = {}
        self.latest: dict[str, int] = {}
        self.where: dict[tuple[str, int], int] = {}
        self.acknowledged = 0

    def judge(self, found: Evidence) -> list[Violation]:
        """What is wrong. Writers must rest, and every shard must be at the end."""
        violations = [*found.accusations, *self._fold(found.events)]
        violations += self._acknowledged(found.acknowledged)
        for name, stored in found.documents.items():
            violations += self._documents(name, stored)
        violations += self._turnover(found.turnover)
        for name, rows in found.lists.items():
            violations += self._list(name, rows, found.events)
        violations += self._samples(found.samples)
        violations += self._gaps(found.gaps, found.mark)
        if found.open_letters:
            violations.append(Violation("I9", f"{found.open_letters} letters are open in the end"))
        return violations

    def _fold(self, events: Iterable[Event]) -> list[Violation]:
        wrong = Wrong("I1", "event")
        for event in events:
            self.positions.append(event.position)
            book = self.streams.setdefault(event.stream, Book())
            if (event.version, event.number) != (book.last + 1, book.last + 1):
                wrong.add(
                    f"{event.stream} has number {event.number} at version {event.version}"
                    f" (position {event.position}), {book.last + 1} was next",
                    "acknowledged",
                )
            if event.stream.endswith("never"):
                wrong.add(f"{event.stream} was rolled back, and is stored", "acknowledged")
            book.add(event.number, event)
            self.branches.setdefault(event.branch, Book()).add(event.position, event)
            self.last_of_stream[event.stream] = self.last_of_branch[event.branch] = event
            self.latest[event.branch] = max(self.latest.get(event.branch, 0), event.number)
            self.where[event.stream, event.number] = event.position
        return wrong.told()

    def _acknowledged(self, appends: Iterable[tuple[str, int, int]]) -> list[Violation]:
        wrong = Wrong("acknowledged", "append")
        for stream, number, position in appends:
            self.acknowledged += 1
            stored = self.where.get((stream, number))
            if stored != position:
                wrong.add(
                    f"{stream} {number} was acknowledged at {position}, and is stored at {stored}"
                )
        return wrong.told()

    def _documents(self, name: str, stored: Mapping[str, Mapping[str, Any]]) -> list[Violation]:
        by_branch = "branches" in name
        books = self.branches if by_branch else self.streams
        last = self.last_of_branch if by_branch else self.last_of_stream
        wrong = Wrong("I1", f"document of {name}")
        for key in sorted(books.keys() | stored.keys()):
            wanted = None
            if key in books:
                newest = last[key]
                wanted = books[key].fields()
                wanted |= {"version": newest.version, "position": newest.position}
            if wanted != stored.get(key):
                wrong.add(f"{key} is {stored.get(key)}, not {wanted}")
        return wrong.told()

    def _turnover(self, stored: Mapping[str, tuple[int, int, int]]) -> list[Violation]:
        wrong = Wrong("I1", "row of turnover")
        for key in sorted(self.branches.keys() | stored.keys()):
            book = self.branches.get(key)
            wanted = book and (book.events, book.balance, self.latest[key])
            if wanted != stored.get(key):
                wrong.add(f"{key} is {stored.get(key)}, not {wanted}")
        return wrong.told()

    def _list(
        self, name: str, rows: Sequence[tuple[int, str, int]], events: Sequence[Event]
    ) -> list[Violation]:
        wanted = [(one.position, one.stream, one.number) for one in events]
        if list(rows) == wanted:
            return []
        wrong = Wrong("I1", f"row of {name}")
        counts: dict[tuple[int, str, int], int] = {}
        for row in rows:
            counts[row] = counts.get(row, 0) + 1
        expected = set(wanted)
        for row in wanted:
            if counts.get(row, 0) != 1:
                wrong.add(f"{row} is there {counts.get(row, 0)} times")
        for row in counts.keys() - expected:
            wrong.add(f"{row} is there, and no such event is new")
        last: dict[str, int] = {}
        for position, stream, _ in rows:
            of = stream if name in IN_ORDER_OF_STREAMS else ""
            if position < last.get(of, 0):
                wrong.add(f"position {position} comes after {last[of]}")
            last[of] = position
        return wrong.told()

    def _samples(self, samples: Iterable[Sample]) -> list[Violation]:
        wrong = Wrong("I2", "look at the mark")
        highest = 0
        for before, mark, visible in samples:
            if mark < highest:
                wrong.add(f"the mark was {highest}, then {mark}", "I4")
            highest = max(highest, mark)
            there = bisect_right(self.positions, mark) - bisect_right(self.positions, before)
            if there != visible:
                wrong.add(
                    f"{visible} events were visible above {before} up to the mark {mark},"
                    f" now there are {there}"
                )
        return wrong.told()

    def _gaps(self, gaps: Iterable[tuple[int, int]], mark: int) -> list[Violation]:
        wrong = Wrong("I2", "gap")
        before, missing = 0, set()
        for position in self.positions:
            missing.update(range(before + 1, position))
            before = position
        missing.update(range(before + 1, mark + 1))
        settled = {number for first, last in gaps for number in range(first, last + 1)}
        for number in sorted(settled - missing):
            wrong.add(f"position {number} is settled as missing, and an event is there")
        for number in sorted(one for one in missing - settled if one <= mark):
            wrong.add(f"position {number} is below the mark {mark}, missing, and not settled")
        return wrong.told()


class Wrong:
    """Differences of one kind: a few in full, the rest as a number."""

    def __init__(self, invariant: str, what: str) -> None:
        self.invariant = invariant
        self.what = what
        self.found: dict[str, list[str]] = {}

    def add(self, words: str, invariant: str = "") -> None:
        """Note one."""
        self.found.setdefault(invariant or self.invariant, []).append(words)

    def told(self) -> list[Violation]:
        """All of them as violations."""
        told = []
        for invariant, words in self.found.items():
            told += [Violation(invariant, f"{self.what}: {one}") for one in words[:SHOWN]]
            if len(words) > SHOWN:
                told.append(Violation(invariant, f"{self.what}: {len(words) - SHOWN} more"))
        return told
