"""What a table projection's columns are filled from: fields, constants, facts, buckets of time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from strandline.errors import InvalidDefinition
from strandline.projections.column_types import (
    TAKES,
    ColumnType,
    constant_sql,
    kind_of_constant,
    safe_literal,
)
from strandline.projections.event_fields import Kind, StoredField, stored_field

Size: TypeAlias = Literal["hour", "day", "week", "month", "year"]

_FORMATS: dict[str, str] = {
    "hour": 'YYYY-MM-DD"T"HH24',
    "day": "YYYY-MM-DD",
    "week": 'IYYY-"W"IW',
    "month": "YYYY-MM",
    "year": "YYYY",
}
_ISO = 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'


class Value(Protocol):
    """Where a value comes from."""

    @property
    def reads_data(self) -> bool:
        """Whether it reads the event's data."""
        ...

    def check(self, cls: type[Any], column: ColumnType) -> None:
        """Refuse what the column cannot take from events of *cls*."""
        ...

    def sql(self, cls: type[Any], column: ColumnType, row: str) -> str:
        """The SQL for it, of the column's type; *row* stands for the event."""
        ...


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the event's data, e.g. ``"amount"`` or ``"address.city"``."""

    path: str
    reads_data: bool = True

    def check(self, cls: type[Any], column: ColumnType) -> None:
        """See ``Value``."""
        found = stored_field(cls, self.path)
        refuse_misfit(column, found.kind, f"{cls.__name__}.{self.path}")

    def sql(self, cls: type[Any], column: ColumnType, row: str) -> str:
        """See ``Value``."""
        found = stored_field(cls, self.path)
        if column.kind is Kind.JSON:
            return f"nullif({_json(found, row)}, 'null'::jsonb)"
        text = _text(found, row)
        if column.kind is Kind.DATETIME:
            return _moment(text)
        return f"({text})" if column.cast == "text" else f"({text})::{column.cast}"


@dataclass(frozen=True, slots=True)
class Constant:
    """Always the same value."""

    value: Any
    reads_data: bool = False

    def check(self, cls: type[Any], column: ColumnType) -> None:
        """See ``Value``."""
        kind = kind_of_constant(self.value)
        if self.value is not None:
            refuse_misfit(column, kind, repr(self.value))

    def sql(self, cls: type[Any], column: ColumnType, row: str) -> str:
        """See ``Value``."""
        return constant_sql(self.value, column)


@dataclass(frozen=True, slots=True)
class Fact:
    """What is known of an event besides its data."""

    column: str
    kind: Kind
    reads_data: bool = False

    def check(self, cls: type[Any], column: ColumnType) -> None:
        """See ``Value``."""
        refuse_misfit(column, self.kind, f"sl.{self.column.upper()}")

    def sql(self, cls: type[Any], column: ColumnType, row: str) -> str:
        """See ``Value``."""
        name = f"{row}.{self.column}"
        if self.kind is Kind.DATETIME and column.kind in (Kind.TEXT, Kind.JSON):
            name = f"to_char({name} AT TIME ZONE 'UTC', {safe_literal(_ISO)})"
        return f"to_jsonb({name})" if column.kind is Kind.JSON else f"{name}::{column.cast}"


@dataclass(frozen=True, slots=True)
class Bucket:
    """The hour, day, week, month or year that a time falls in, in UTC."""

    size: Size
    of: Field | Fact

    @property
    def reads_data(self) -> bool:
        """See ``Value``."""
        return self.of.reads_data

    def check(self, cls: type[Any], column: ColumnType) -> None:
        """See ``Value``."""
        if isinstance(self.of, Field):
            kind = stored_field(cls, self.of.path).kind
            what = f"{cls.__name__}.{self.of.path}"
        else:
            kind, what = self.of.kind, f"sl.{self.of.column.upper()}"
        if kind not in (Kind.DATETIME, Kind.DATE, Kind.TEXT, Kind.ANY) or what == "sl.STREAM":
            raise InvalidDefinition(f"{what} is {kind}: a bucket is made of a datetime or date")
        wanted = {Kind.TEXT, Kind.DATETIME} | ({Kind.DATE} if self.size != "hour" else set())
        if column.kind not in wanted:
            raise InvalidDefinition(f"a {self.size} fits a column of {_listed(wanted)}")

    def sql(self, cls: type[Any], column: ColumnType, row: str) -> str:
        """See ``Value``."""
        if isinstance(self.of, Field):
            moment = _moment(_text(stored_field(cls, self.of.path), row))
        else:
            moment = f"{row}.{self.of.column}"
        utc = f"({moment} AT TIME ZONE 'UTC')"
        if column.kind is Kind.TEXT:
            return f"to_char{utc[:-1]}, {safe_literal(_FORMATS[self.size])})"
        start = f"date_trunc('{self.size}', {utc})"
        return f"{start}::date" if column.kind is Kind.DATE else f"({start} AT TIME ZONE 'UTC')"


POSITION = Fact("position", Kind.INT)
"""The event's place among all events."""
VERSION = Fact("version", Kind.INT)
"""The event's place in its stream."""
STREAM = Fact("stream", Kind.TEXT)
"""The id of the event's stream."""
TENANT = Fact("tenant", Kind.TEXT)
"""Whose event it is."""
TYPE = Fact("type", Kind.TEXT)
"""The name the event is stored under."""
RECORDED_AT = Fact("recorded_at", Kind.DATETIME)
"""When the event was stored."""


def constant(value: Any) -> Constant:
    """Always *value*; needed for texts only, since a plain text names a field."""
    return Constant(value)


def bucket(size: Size, of: str | Fact = RECORDED_AT) -> Bucket:
    """The hour, day, week, month or year, in UTC, that a time falls in.

    In a column of ``str`` it is ``2025-01-15T13``, ``2025-01-15``, ``2025-W03`` (ISO week),
    ``2025-01`` or ``2025``; in one of ``date`` or ``datetime`` it is where the time span begins.

    Args:
        size: How long it is.
        of: A field that holds a datetime or date; times without a time zone are taken as UTC.
    """
    if size not in _FORMATS:
        raise InvalidDefinition(f"bucket({size!r}): it is one of {', '.join(_FORMATS)}")
    return Bucket(size, Field(of) if isinstance(of, str) else of)


def as_value(given: Any) -> Value:
    """A text names a field, anything else that is not a value already is a constant."""
    if isinstance(given, Field | Constant | Fact | Bucket):
        return given
    return Field(given) if isinstance(given, str) else Constant(given)


def refuse_misfit(column: ColumnType, kind: Kind, what: str) -> None:
    """Refuse a value that the column cannot take."""
    if kind is Kind.ANY or kind in TAKES[column.kind]:
        return
    hint = (
        ' (use sl.bucket("day", ...))' if (kind, column.kind) == (Kind.DATETIME, Kind.DATE) else ""
    )
    raise InvalidDefinition(f"{what} is {kind}, the column is {column.sql}{hint}")


def _listed(kinds: set[Kind]) -> str:
    return ", ".join(sorted(kinds))


def _path(keys: tuple[str, ...]) -> str:
    quoted = ",".join('"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"' for key in keys)
    return f"({safe_literal('{' + quoted + '}')})::text[]"


def _at(keys: tuple[str, ...], row: str, *, text: bool) -> str:
    last = ">>" if text else ">"
    if len(keys) == 1:
        return f"{row}.data-{last}{safe_literal(keys[0])}"
    return f"{row}.data#{last}{_path(keys)}"


def _json(field: StoredField, row: str) -> str:
    return _or_default(field, row, _at(field.keys, row, text=False), "jsonb")


def _text(field: StoredField, row: str) -> str:
    return _or_default(field, row, _at(field.keys, row, text=True), "text")


def _or_default(field: StoredField, row: str, found: str, kind: str) -> str:
    """*found*, or the class's default where a key on the path is missing: not where it is null."""
    cases = []
    for depth, default in enumerate(field.missing, 1):
        if default is None:
            continue
        here = f"{_at(field.keys[:depth], row, text=False)} IS NULL"
        if depth > 1:
            parent = _at(field.keys[: depth - 1], row, text=False)
            here += f" AND jsonb_typeof({parent}) = 'object'"
        column = ColumnType(Kind.JSON, "jsonb")
        value = constant_sql(default, column)
        if kind == "text":
            value = f"{value}#>>'{{}}'"
        cases.append(f"WHEN {here} THEN {value}")
    return f"CASE {' '.join(cases)} ELSE {found} END" if cases else found


def _moment(text: str) -> str:
    """A timestamptz whatever the session's TimeZone is: what has no offset is UTC."""
    return rf"regexp_replace({text}, '^([0-9-]+([T ][0-9:.]+)?)$', '\1Z')::timestamptz"
