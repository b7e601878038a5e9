"""What a rebuild would have to do, counted without doing any of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from strandline.daemon.comparing import fragments
from strandline.daemon.scope import Scope
from strandline.postgres.operations import Op, one
from strandline.postgres.statements import SqlFile, literal
from strandline.projections.shadow import Pair

WINDOW = 1_000_000  # positions counted by one statement: none may take longer than a minute


@dataclass(frozen=True, slots=True)
class RebuildPlan:
    """What a rebuild would do, were it begun now.

    Attributes:
        label: Of the projection.
        scope: Of which part of it, in words.
        position: Up to where it would read at least.
        events: That it would read: of the types that the projection wants, in that part. A shard of a
            multi-stream projection looks at all of them.
        documents: Documents or rows that are live in that part now, and would be replaced.
        bytes: Size on disk of the live tables; a whole build needs about as much beside them.
        parts: Shards it would be built by.
        letters: Open dead letters that would be gone: their events are tried anew.
        seconds: How long, judged by the last build of the whole projection; None if there was none.
        suppressed: What it would not do, though a running projection does: side effects.
    """

    label: str
    scope: str
    position: int
    events: int
    documents: int
    bytes: int
    parts: int
    letters: int
    seconds: float | None
    suppressed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EventCount:
    """How many events."""

    events: int


@dataclass(frozen=True, slots=True)
class Measured:
    """A live table."""

    documents: int
    bytes: int


@dataclass(frozen=True, slots=True)
class LetterCount:
    """How many letters."""

    letters: int


@dataclass(frozen=True, slots=True)
class Rate:
    """Positions a second."""

    rate: float


_sql = SqlFile(__name__)
_WANTED = _sql.one("count_wanted", EventCount)
_OF_STREAMS = _sql.one("count_of_streams", EventCount)
_MEASURE = _sql.one("measure_table", Measured)
_LETTERS = _sql.one("count_open_letters", LetterCount)
_RATE = _sql.one("last_rate", Rate)


def count_events(names: Sequence[str] | None, scope: Scope, *, up_to: int) -> Op[int]:
    """The events up to *up_to* that a build of *scope* reads; *names* None: of all types."""
    types = None if names is None else list(names)
    if scope.streams:
        found = yield from one(_OF_STREAMS, up_to, types, scope.tenant, list(scope.streams))
        return found.events if found else 0
    total = 0
    for after, end in _windows(up_to):
        found = yield from one(_WANTED, after, end, types, scope.tenant)
        total += found.events if found else 0
    return total


def measure(tables: Sequence[Pair], scope: Scope) -> Op[Measured]:
    """How much of *tables* is live in *scope*, and their size as a whole."""
    documents = size = 0
    for pair in tables:
        made = fragments(pair)
        statement = _MEASURE.about(
            live=pair.live, regclass=literal(pair.live), tenant=made["tenant"], key=made["key"]
        )
        found = yield from one(statement, scope.tenant, scope.ids)
        if found is not None:
            documents += found.documents
            size += found.bytes
    return Measured(documents, size)


def open_letters(label: str, scope: Scope) -> Op[int]:
    """The open dead letters of *label* in *scope*."""
    found = yield from one(_LETTERS, label, scope.tenant, scope.ids)
    return found.letters if found else 0


def last_rate(label: str) -> Op[float | None]:
    """Positions a second of the last build of the whole of *label*; None if there was none."""
    found = yield from one(_RATE, label)
    return found.rate if found else None


def _windows(up_to: int) -> Iterator[tuple[int, int]]:
    for after in range(0, up_to, WINDOW):
        yield after, min(after + WINDOW, up_to)
