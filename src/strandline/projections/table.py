"""The table of a table projection: making it, folding events into it, reading its rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from strandline.errors import ApplyFailed, InvalidDefinition, InvalidEvent, InvalidInput
from strandline.postgres.faults import sqlstate
from strandline.postgres.operations import Call, Op, many, none, one
from strandline.postgres.statements import SqlFile, Statement, moved_up, quoted
from strandline.projections.column_types import constant_sql
from strandline.projections.event_fields import Kind
from strandline.projections.slice import WHOLE, Slice
from strandline.projections.table_declaration import Line, Table, index_columns
from strandline.projections.table_fold import Fold, array, in_slice
from strandline.projections.table_rules import Column
from strandline.projections.table_values import Value


@dataclass(frozen=True, slots=True)
class ColumnRow:
    """A column as it is in the database."""

    name: str
    type: str
    required: bool


@dataclass(frozen=True, slots=True)
class Count:
    """How many there are."""

    count: int


@dataclass(frozen=True, slots=True)
class Fault:
    """An event whose value does not fit a column."""

    position: int
    column: str
    reason: str


_sql = SqlFile(__name__)
_CREATE = _sql.none("create_table")
_INDEX = _sql.none("create_table_index")
_COLUMNS = _sql.many("table_columns", ColumnRow)
_EMPTY = _sql.none("empty_table")
_DROP = _sql.none("drop_table")
_FOLD = _sql.none("fold_events")
_PROBE = _sql.one("probe_value", Count)
_QUERY = _sql.many("query_rows", tuple)
_COUNT = _sql.one("count_rows", Count)

_CANNOT_STORE = ("22", "23", "54")  # bad data, constraints, limits such as the size of a key


class TableRows:
    """The rows of one table projection. All methods answer operations for a session to run.

    Attributes:
        takes_turns: Inline, appends to it take turns: rows gather from many streams.
        names: The stored names of the events it handles.
        row: The class of its rows: ``tenant`` and the declared columns.
    """

    takes_turns = True

    def __init__(self, projection: Table) -> None:
        self.projection = projection
        self.label = projection.label
        self.names = tuple(dict.fromkeys(name for one in projection.lines for name in one.names))
        self.columns = projection.columns_of_table
        self.row = _row_class(projection)
        self.table = quoted(projection.table)
        self._create = [_created(projection, self.table), *_indexes(projection, self.table)]
        self._columns = _COLUMNS.about(table=self.table)
        self._empty = _EMPTY.about(table=self.table)
        self._drop = _DROP.about(table=self.table)
        fold = Fold(projection)
        fragments = fold.fragments()
        winners = fragments.pop("winners")  # first: it names others
        self._fold = _FOLD.about(winners=winners, table=self.table, **fragments)
        self._slice = fold.slice
        self._folds: dict[Slice, Statement[Any]] = {}
        self.fold = self.fold_of(WHOLE)
        self._selected = ", ".join(["tenant", *(_selected(column) for column in self.columns)])

    def create(self) -> Op[None]:
        """Make the table and its indexes, unless they are there.

        Raises:
            InvalidDefinition: It is there with other columns: the projection was changed without
                a new version.
        """
        for statement in self._create:
            yield from none(statement)
        yield from self._refuse_other_columns()

    def empty(self) -> Op[None]:
        """Delete every row."""
        yield from none(self._empty)

    def drop(self) -> Op[None]:
        """Drop the table."""
        yield from none(self._drop)

    def fold_of(self, part: Slice) -> Statement[Any]:
        """The statement that folds events into the rows of *part*. No operation."""
        found = self._folds.get(part)
        if found is None:
            found = self._folds[part] = self._fold.about(slice=self._slice(part))
        return found

    def apply(self, floor: int, ceiling: int, part: Slice = WHOLE) -> Op[None]:
        """Fold the events after *floor*, up to *ceiling*, into the rows of *part*, in one statement.

        One writer of a slice at a time: run it behind the fence of a checkpoint, in the same
        transaction.

        Raises:
            ApplyFailed: PostgreSQL cannot store an outcome; ``find_fault`` says which.
        """
        yield from self._applied(self.fold_of(part), floor, ceiling, None)

    def apply_positions(self, positions: Sequence[int]) -> Op[None]:
        """Fold the events at *positions*, appended in the same transaction.

        Raises:
            ApplyFailed: PostgreSQL cannot store an outcome, so the append fails with it.
        """
        if positions:
            floor, ceiling = min(positions) - 1, max(positions)
            yield from self._applied(self.fold, floor, ceiling, list(positions))

    def wants(self, types: Iterable[str]) -> bool:
        """Whether events of any of these stored names concern it."""
        return any(name in self.names for name in types)

    def follow(self, rows: Sequence[Sequence[Any]]) -> Op[None]:
        """Bring it up to date with *rows*, just appended; their first column is the position."""
        yield from self.apply_positions([row[0] for row in rows])

    def find_fault(self, floor: int, ceiling: int, part: Slice = WHOLE) -> Op[Fault | None]:
        """The first value of these events that fits no column of a row of *part*, if any.

        Run it outside a transaction: it finds out by letting statements fail.
        """
        faults: list[Fault] = []
        for line in self.projection.lines:
            types = array(line.names)
            keys = [
                line.keys[one.name].sql(line.cls, one.type, "e") for one in self.projection.keys
            ]
            mine = in_slice(part, types, keys)
            top = ceiling  # behind a key that cannot be read, nobody knows whose the others are
            for column, value in _values(line, self.columns):
                probe = _PROBE.about(
                    value=value.sql(line.cls, column.type, "e"),
                    types=types,
                    slice="" if column.key is not None else mine,
                )
                reason = (yield from _reason(probe, floor, top)) if top > floor else None
                if reason is not None:
                    found = yield from _first(probe, (floor, top), column, reason)
                    faults.append(found)
                    if column.key is not None:
                        top = found.position - 1
        return min(faults, key=lambda one: one.position, default=None)

    def find(self, key: Any, *, tenant: str) -> Op[Any | None]:
        """The row under *key*, a tuple when there are several key columns; None without one."""
        keys = self.projection.keys
        values = key if isinstance(key, tuple) else (key,)
        if len(values) != len(keys):
            names = ", ".join(column.name for column in keys)
            raise InvalidInput(f"{self.label} has the key ({names}), not {key!r}")
        where = {column.name: value for column, value in zip(keys, values, strict=True)}
        rows = yield from self.query(where, (), tenant=tenant, limit=1)
        return rows[0] if rows else None

    def query(
        self,
        where: Mapping[str, Any] | str | None,
        arguments: Sequence[Any],
        *,
        tenant: str,
        order_by: str | None = None,
        limit: int | None = None,
    ) -> Op[list[Any]]:
        """The rows that fit *where*: column → value, or SQL with ``$1`` and *arguments*."""
        condition, values = self._condition(where, arguments)
        statement = _QUERY.about(
            table=self.table,
            selected=self._selected,
            condition=condition,
            order=order_by or ", ".join(quoted(one.name) for one in self.projection.keys),
            limit="ALL" if limit is None else str(int(limit)),
        )
        rows = yield Call(statement, (tenant, *values))
        return [self._made(row) for row in rows]

    def count(
        self, where: Mapping[str, Any] | str | None, arguments: Sequence[Any], *, tenant: str
    ) -> Op[int]:
        """How many rows fit *where*."""
        condition, values = self._condition(where, arguments)
        found = yield from one(_COUNT.about(table=self.table, condition=condition), tenant, *values)
        return found.count if found else 0

    def _refuse_other_columns(self) -> Op[None]:
        found = yield from many(self._columns)
        wanted = [ColumnRow("tenant", "text", required=True)]
        wanted += [ColumnRow(one.name, one.type.sql, one.required) for one in self.columns]
        differing = set(found) ^ set(wanted)
        if differing:
            names = ", ".join(sorted({one.name for one in differing}))
            raise InvalidDefinition(
                f"projection {self.label}: its table is declared differently from what is stored"
                f" ({names}): raise the version"
            )

    def _applied(
        self, fold: Statement[Any], floor: int, ceiling: int, positions: list[int] | None
    ) -> Op[None]:
        try:
            yield from none(fold, floor, ceiling, positions)
        except Exception as error:  # the driver's too
            reason = _unstorable(error)
            if reason is None:
                raise
            raise ApplyFailed(self.label, reason) from error

    def _condition(
        self, where: Mapping[str, Any] | str | None, arguments: Sequence[Any]
    ) -> tuple[str, list[Any]]:
        """SQL and arguments of a where-clause; its parameters move up by one, behind the tenant."""
        if where is None:
            return "true", []
        if isinstance(where, str):
            return moved_up(where), list(arguments)
        known = {column.name: column for column in self.columns}
        parts: list[str] = []
        values: list[Any] = []
        for name, value in where.items():
            if name not in known:
                raise InvalidInput(f"{self.label} has no column {name!r}: {', '.join(known)}")
            if value is None:
                parts.append(f"{quoted(name)} IS NULL")
                continue
            is_json = known[name].type.kind is Kind.JSON
            values.append(msgspec.json.encode(value).decode() if is_json else value)
            number = f"${len(values) + 1}" + ("::text::jsonb" if is_json else "")
            parts.append(f"{quoted(name)} = {number}")
        return " AND ".join(parts) or "true", values

    def _made(self, row: Sequence[Any]) -> Any:
        tenant, *values = row
        return self.row(
            tenant,
            *(
                msgspec.json.decode(value)
                if value is not None and column.type.kind is Kind.JSON
                else value
                for column, value in zip(self.columns, values, strict=True)
            ),
        )


def _row_class(projection: Table) -> type[Any]:
    members: list[tuple[str, Any]] = [("tenant", str)]
    for column in projection.columns_of_table:
        python = column.type.python
        members.append((column.name, python if column.required else python | None))
    return msgspec.defstruct(f"{type(projection).__name__}Row", members, frozen=True)


def _definitions(projection: Table) -> str:
    made = []
    for column in projection.columns_of_table:
        definition = f"{quoted(column.name)} {column.type.sql}"
        if column.default is not None:
            definition += f" DEFAULT {constant_sql(column.default, column.type)}"
        made.append(definition + " NOT NULL" * column.required)
    return ",\n    ".join(made)


def _created(projection: Table, table: str) -> Statement[Any]:
    return _CREATE.about(
        table=table,
        definitions=_definitions(projection),
        key=quoted(f"{projection.table}_pkey"),
        key_columns=", ".join(quoted(column.name) for column in projection.keys),
    )


def _indexes(projection: Table, table: str) -> Iterable[Statement[Any]]:
    for number, index in enumerate(projection.indexes, 1):
        yield _INDEX.about(
            table=table,
            index=quoted(f"{projection.table}_{number}_idx"),
            index_columns=", ".join(quoted(name) for name in index_columns(index)),
        )


def _selected(column: Column) -> str:
    name = quoted(column.name)
    return f"{name}::text AS {name}" if column.type.kind is Kind.JSON else name


def _values(line: Line, columns: Iterable[Column]) -> Iterable[tuple[Column, Value]]:
    """What a line reads from the data, and for which column; keys first."""
    for column in sorted(columns, key=lambda one: one.key is None):
        change = line.changes.get(column.name)
        value = line.keys.get(column.name) or (change.value if change else None)
        if value is not None and value.reads_data:
            yield column, value


def _unstorable(error: Exception) -> str | None:
    """Why PostgreSQL cannot store an outcome; None when *error* is about something else."""
    told: BaseException = error.__cause__ or error if isinstance(error, InvalidEvent) else error
    return " ".join(str(told).split()) if sqlstate(told)[:2] in _CANNOT_STORE else None


def _reason(probe: Statement[Count], floor: int, ceiling: int) -> Op[str | None]:
    try:
        yield from one(probe, floor, ceiling)
    except InvalidEvent as error:
        return _unstorable(error)
    return None


def _first(
    probe: Statement[Count], within: tuple[int, int], column: Column, reason: str
) -> Op[Fault]:
    """The first event that the probe fails for; it is known to fail in this range."""
    floor, ceiling = within
    while ceiling - floor > 1:
        middle = (floor + ceiling) // 2
        found = yield from _reason(probe, floor, middle)
        if found is None:
            floor = middle
        else:
            ceiling, reason = middle, found
    return Fault(ceiling, column.name, reason)
