"""What fails in a table projection: which event, which of its rows, and what waits behind them.

Rows are named as ``table_fold.row_name`` says; with the tenant a name is the key of dead letters.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from strandline.errors import ApplyFailed, InvalidEvent
from strandline.postgres.faults import sqlstate
from strandline.postgres.operations import Answer, Op, many, none, one
from strandline.postgres.statements import SqlFile, Statement
from strandline.projections.documents import Key
from strandline.projections.slice import WHOLE, Slice
from strandline.projections.table_declaration import Line, Table
from strandline.projections.table_fold import Fold, array, named_rows, row_name
from strandline.projections.table_rules import Column
from strandline.projections.table_values import Value


@dataclass(frozen=True, slots=True)
class Count:
    """How many there are."""

    count: int


@dataclass(frozen=True, slots=True)
class Fault:
    """An event that fails; ``column`` is empty where it is not one value that does not fit."""

    position: int
    column: str
    reason: str


@dataclass(frozen=True, slots=True)
class Touched:
    """A row that an event is about; not ``keyed``: a key is null, so there is none."""

    position: int
    tenant: str
    key: str
    keyed: bool


@dataclass(frozen=True, slots=True)
class LetterRow:
    """The row that a letter is of."""

    id: int
    tenant: str
    key: str
    position: int


@dataclass(frozen=True, slots=True)
class EventPlace:
    """What a letter says of an event."""

    tenant: str
    stream: str
    version: int
    type: str
    position: int


@dataclass(frozen=True, slots=True)
class ParkedLine:
    """An event of a row that is parked."""

    tenant: str
    key: str
    position: int
    stream: str
    version: int
    type: str


@dataclass(frozen=True, slots=True)
class UnknownType:
    """An event whose type is not known."""

    type: str
    position: int


Folding = Callable[[int, int, Slice, Collection[Key], Collection[Key] | None], Op[None]]
"""Folds a range of a slice into rows: all but those spared, only those named."""

_sql = SqlFile(__name__)
_PROBE = _sql.one("probe_value", Count)
_BEGIN = _sql.none("begin_trial")
_UNDO = _sql.none("undo_trial")
_END = _sql.none("end_trial")
_TOUCHED = _sql.many("touched_rows", Touched)
_PARKED = _sql.many("parked_lines", ParkedLine)
_LETTERS = _sql.many("letter_rows", LetterRow)
_EVENT = _sql.one("event_at", EventPlace)
_UNKNOWN = _sql.one("first_unknown", UnknownType)

_CANNOT_STORE = ("22", "23", "54")  # bad data, constraints, limits such as the size of a key


class TableFaults:
    """Finds out about failures of one table's fold. Methods answer operations, unless they say so."""

    def __init__(self, projection: Table, fold: Fold, folding: Folding) -> None:
        self._projection = projection
        self._fold = fold
        self._folding = folding
        touched = fold.touched()
        self._touched = _TOUCHED.about(**touched)
        self._parked = _PARKED.about(parked=fold.named(3), **touched)

    def find(
        self,
        floor: int,
        ceiling: int,
        part: Slice = WHOLE,
        *,
        spared: Collection[Key] = (),
    ) -> Op[Fault | None]:
        """The first value of these events that fits no column of a row of *part*, if any.

        Run it outside a transaction: it finds out by letting statements fail.
        """
        faults: list[Fault] = []
        for line in self._projection.lines:
            types = array(line.names)
            keys = [
                line.keys[one.name].sql(line.cls, one.type, "e") for one in self._projection.keys
            ]
            mine = self._fold.mine(part, types, keys)
            rest = self._spared(3, types, keys) if spared else ""
            top = ceiling  # behind a key that cannot be read, nobody knows whose the others are
            for column, value in _values(line, self._projection.columns_of_table):
                is_key = column.key is not None
                probe = _PROBE.about(
                    value=value.sql(line.cls, column.type, "e"),
                    types=types,
                    slice="" if is_key else mine + rest,
                )
                names = () if is_key or not spared else columns_of(spared)
                reason = (yield from _reason(probe, floor, top, names)) if top > floor else None
                if reason is not None:
                    found = yield from _first(probe, (floor, top), names, column, reason)
                    faults.append(found)
                    if is_key:
                        top = found.position - 1
        return min(faults, key=lambda one: one.position, default=None)

    def find_by_trial(
        self,
        floor: int,
        ceiling: int,
        part: Slice = WHOLE,
        *,
        spared: Collection[Key] = (),
    ) -> Op[Fault | None]:
        """The event at which folding in order fails, whatever the reason is; None if it does not.

        Run it inside a transaction: it folds in earnest, in halves, and undoes it.
        """
        yield from none(_BEGIN)
        reason = yield from self._tried(floor, ceiling, part, spared, None)
        if reason is None:
            yield from _undone()
            return None
        while ceiling - floor > 1:
            middle = (floor + ceiling) // 2
            found = yield from self._tried(floor, middle, part, spared, None)
            if found is None:
                floor = middle  # what has been folded stays, until all of it is undone
            else:
                ceiling, reason = middle, found
        yield from _undone()
        return Fault(ceiling, "", reason)

    def failing_rows(
        self, position: int, part: Slice = WHOLE, *, spared: Collection[Key] = ()
    ) -> Op[list[Touched]]:
        """The rows for which the event at *position* fails, apart from those *spared*.

        Run it inside a transaction; see ``find_by_trial``.

        Raises:
            ApplyFailed: Not even its keys can be read.
        """
        touched = yield from self.touched([position], part)
        known = frozenset(spared)
        rows = [one for one in dict.fromkeys(touched) if (one.tenant, one.key) not in known]
        if len(rows) == 1:
            return rows  # whatever fails, it is this one
        failing = []
        yield from none(_BEGIN)
        for row in rows:
            only = [(row.tenant, row.key)]
            if (yield from self._tried(position - 1, position, part, (), only)) is not None:
                failing.append(row)
        yield from _undone()
        return failing

    def touched(self, positions: Sequence[int], part: Slice = WHOLE) -> Op[list[Touched]]:
        """The rows of *part* that the events at *positions* are about.

        Raises:
            ApplyFailed: A key cannot be read.
        """
        statement = self._touched.about(slice=self._fold.slice(part))
        return (yield from self._read(many(statement, list(positions))))

    def parked(
        self, floor: int, ceiling: int, part: Slice, keys: Collection[Key]
    ) -> Op[list[ParkedLine]]:
        """The events after *floor*, up to *ceiling*, of rows that are parked: of *keys*.

        Raises:
            ApplyFailed: A key cannot be read.
        """
        statement = self._parked.about(slice=self._fold.slice(part))
        return (yield from self._read(many(statement, floor, ceiling, *columns_of(keys))))

    def owned(self, letters: Sequence[int], part: Slice) -> Op[set[int]]:
        """Those of *letters*, by id, whose rows are in *part*.

        The first part has those, too, whose events are no longer about the rows they were parked for.
        """
        found: set[int] = set()
        for letter in (yield from many(_LETTERS, list(letters))):
            key = (letter.tenant, letter.key)
            try:
                anywhere = yield from self.touched([letter.position])
                here = yield from self.touched([letter.position], part)
            except ApplyFailed:
                anywhere = here = []
            if any((one.tenant, one.key) == key for one in here) or (
                part.part == 1 and all((one.tenant, one.key) != key for one in anywhere)
            ):
                found.add(letter.id)
        return found

    def event(self, position: int) -> Op[EventPlace | None]:
        """The event at *position*."""
        return (yield from one(_EVENT, position))

    def first_unknown(
        self, floor: int, ceiling: int, known: Collection[str]
    ) -> Op[UnknownType | None]:
        """The first event whose type is not among *known*."""
        return (yield from one(_UNKNOWN, floor, ceiling, list(known)))

    def _spared(self, number: int, types: str, keys: list[str]) -> str:
        name = row_name(self._projection.keys, keys)
        return named_rows(number, types, name, spared=True)

    def _read(self, reading: Op[Answer]) -> Op[Answer]:
        try:
            return (yield from reading)
        except Exception as error:  # the driver's too
            reason = unstorable(error)
            if reason is None:
                raise
            raise ApplyFailed(self._projection.label, reason) from error

    def _tried(
        self,
        floor: int,
        ceiling: int,
        part: Slice,
        spared: Collection[Key],
        only: Collection[Key] | None,
    ) -> Op[str | None]:
        """Fold; why it failed, and then nothing of it is left."""
        yield from none(_BEGIN)
        try:
            yield from self._folding(floor, ceiling, part, spared, only)
        except ApplyFailed as error:
            yield from _undone()
            cause = error.__cause__
            return (unstorable(cause) if isinstance(cause, Exception) else None) or str(error)
        yield from none(_END)
        return None


def columns_of(keys: Iterable[Key]) -> tuple[list[str], list[str]]:
    """Tenants and names, as the parameters of a statement."""
    listed = list(keys)
    return [tenant for tenant, _ in listed], [name for _, name in listed]


def unstorable(error: Exception) -> str | None:
    """Why PostgreSQL cannot store an outcome; None when *error* is about something else."""
    told: BaseException = error.__cause__ or error if isinstance(error, InvalidEvent) else error
    return " ".join(str(told).split()) if sqlstate(told)[:2] in _CANNOT_STORE else None


def _undone() -> Op[None]:
    yield from none(_UNDO)
    yield from none(_END)


def _values(line: Line, columns: Iterable[Column]) -> Iterable[tuple[Column, Value]]:
    """What a line reads from the data, and for which column; keys first."""
    for column in sorted(columns, key=lambda one: one.key is None):
        change = line.changes.get(column.name)
        value = line.keys.get(column.name) or (change.value if change else None)
        if value is not None and value.reads_data:
            yield column, value


def _reason(
    probe: Statement[Count], floor: int, ceiling: int, names: tuple[Any, ...]
) -> Op[str | None]:
    try:
        yield from one(probe, floor, ceiling, *names)
    except InvalidEvent as error:
        return unstorable(error)
    return None


def _first(
    probe: Statement[Count],
    within: tuple[int, int],
    names: tuple[Any, ...],
    column: Column,
    reason: str,
) -> Op[Fault]:
    """The first event that the probe fails for; it is known to fail in this range."""
    floor, ceiling = within
    while ceiling - floor > 1:
        middle = (floor + ceiling) // 2
        found = yield from _reason(probe, floor, middle, names)
        if found is None:
            floor = middle
        else:
            ceiling, reason = middle, found
    return Fault(ceiling, column.name, reason)
