"""The table of a table projection: making it, folding events into it, reading its rows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from strandline.errors import ApplyFailed, InvalidDefinition, InvalidInput
from strandline.postgres.operations import Call, Op, many, none, one
from strandline.postgres.statements import Parameter, SqlFile, Statement, moved_up, quoted
from strandline.projections.column_types import constant_sql
from strandline.projections.documents import Key
from strandline.projections.event_fields import Kind
from strandline.projections.shadow import LIVE, Pair
from strandline.projections.slice import WHOLE, Slice
from strandline.projections.table_declaration import Table, index_columns
from strandline.projections.table_faults import Fault, TableFaults, columns_of, unstorable
from strandline.projections.table_fold import EVERY_ROW, Fold, Within, row_name
from strandline.projections.table_rules import Column


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


_sql = SqlFile(__name__)
_CREATE = _sql.none("create_table")
_INDEX = _sql.none("create_table_index")
_COLUMNS = _sql.many("table_columns", ColumnRow)
_EMPTY = _sql.none("empty_table")
_DROP = _sql.none("drop_table")
_FOLD = _sql.none("fold_events")
_QUERY = _sql.many("query_rows", tuple)
_COUNT = _sql.one("count_rows", Count)

NAMES = (Parameter("tenants", "text[]"), Parameter("names", "text[]"))


class TableRows:
    """The rows of one table projection. All methods answer operations for a session to run.

    Attributes:
        takes_turns: Inline, appends to it take turns: rows gather from many streams.
        names: The stored names of the events it handles.
        row: The class of its rows: ``tenant`` and the declared columns.
        place: The schema of the table, as SQL.
        table: The table with its schema, as SQL.
        faults: Finds out what fails, and puts aside what waits for it.
    """

    takes_turns = True

    def __init__(self, projection: Table, place: str = LIVE, within: Within = EVERY_ROW) -> None:
        self.projection = projection
        self.place = place
        self.label = projection.label
        self.names = tuple(dict.fromkeys(name for one in projection.lines for name in one.names))
        self.columns = projection.columns_of_table
        self.row = _row_class(projection)
        self.table = f"{place}.{quoted(projection.table)}"
        self._create = [_created(projection, self.table), *_indexes(projection, self.table)]
        self._columns = _COLUMNS.about(table=self.table)
        self._empty = _EMPTY.about(table=self.table)
        self._drop = _DROP.about(table=self.table)
        self._fragments = Fold(projection, within)
        fragments = self._fragments.fragments()
        winners = fragments.pop("winners")  # first: it names others
        self._fold = _FOLD.about(winners=winners, table=self.table, **fragments)
        self._folds: dict[tuple[Slice, bool, bool], Statement[Any]] = {}
        self.fold = self.fold_of(WHOLE)
        self.faults = TableFaults(projection, self._fragments, self._folded)
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

    def fold_of(self, part: Slice, *, spared: bool = False, only: bool = False) -> Statement[Any]:
        """The statement that folds events into the rows of *part*. No operation.

        With *spared* and *only* it has parameters more: tenants and names of rows that it leaves
        alone, and of the only ones.
        """
        which = (part, spared, only)
        found = self._folds.get(which)
        if found is None:
            found = self._folds[which] = self._made_fold(*which)
        return found

    def apply(
        self,
        floor: int,
        ceiling: int,
        part: Slice = WHOLE,
        *,
        spared: Collection[Key] = (),
        only: Collection[Key] | None = None,
    ) -> Op[None]:
        """Fold the events after *floor*, up to *ceiling*, into the rows of *part*, in one statement.

        One writer of a slice at a time: run it behind the fence of a checkpoint, in the same
        transaction.

        Args:
            floor: Events after this position.
            ceiling: Up to this position.
            part: Whose rows.
            spared: Tenants and names of rows that are left as they are.
            only: Tenants and names of the only rows that are touched; None for any.

        Raises:
            ApplyFailed: PostgreSQL cannot store an outcome; ``find_fault`` and ``faults`` say which.
        """
        fold = self.fold_of(part, spared=bool(spared), only=only is not None)
        yield from self._applied(fold, floor, ceiling, None, *_further(spared, only))

    def apply_again(
        self, positions: Sequence[int], only: Collection[Key], part: Slice = WHOLE
    ) -> Op[None]:
        """Fold the events at *positions* into the rows *only*, which they were kept from.

        Raises:
            ApplyFailed: As ``apply``.
        """
        if positions:
            floor, ceiling = min(positions) - 1, max(positions)
            fold = self.fold_of(part, only=True)
            yield from self._applied(fold, floor, ceiling, list(positions), *_further((), only))

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

    def tables(self) -> Sequence[Pair]:
        """See ``Swappable``. No operation."""
        live = f"{LIVE}.{quoted(self.projection.table)}"
        keys = ("tenant", *(column.name for column in self.projection.keys))
        name = row_name(
            self.projection.keys, [f"d.{quoted(column.name)}" for column in self.projection.keys]
        )
        return (Pair(live, self.table, keys, name),)

    def find_fault(
        self, floor: int, ceiling: int, part: Slice = WHOLE, *, spared: Collection[Key] = ()
    ) -> Op[Fault | None]:
        """The first value of these events that fits no column of a row of *part*, if any.

        Run it outside a transaction. Of other failures, as a sum out of range, it knows nothing:
        ``faults.find_by_trial`` does.
        """
        return (yield from self.faults.find(floor, ceiling, part, spared=spared))

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

    def _made_fold(self, part: Slice, spared: bool, only: bool) -> Statement[Any]:
        condition, number = self._fragments.slice(part), len(self._fold.parameters) + 1
        further: list[Parameter] = []
        for wanted, is_spared in ((spared, True), (only, False)):
            if wanted:
                condition += self._fragments.named(number + len(further), spared=is_spared)
                further += NAMES
        made = self._fold.about(slice=condition)
        return replace(made, parameters=(*made.parameters, *further), rendered={})

    def _folded(
        self,
        floor: int,
        ceiling: int,
        part: Slice,
        spared: Collection[Key],
        only: Collection[Key] | None,
    ) -> Op[None]:
        yield from self.apply(floor, ceiling, part, spared=spared, only=only)

    def _applied(
        self,
        fold: Statement[Any],
        floor: int,
        ceiling: int,
        positions: list[int] | None,
        *further: Any,
    ) -> Op[None]:
        try:
            yield from none(fold, floor, ceiling, positions, *further)
        except Exception as error:  # the driver's too
            reason = unstorable(error)
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


def _further(spared: Collection[Key], only: Collection[Key] | None) -> list[Any]:
    """The parameters that ``fold_of`` adds."""
    found: list[Any] = [*columns_of(spared)] if spared else []
    return found if only is None else [*found, *columns_of(only)]
