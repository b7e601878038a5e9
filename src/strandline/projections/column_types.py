"""Types of a table projection's columns: which Python values they take, casts and constants in SQL."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec

from strandline.errors import InvalidDefinition
from strandline.postgres.statements import literal
from strandline.projections.event_fields import Kind, kind_of

_SQL = {
    Kind.INT: "bigint",
    Kind.FLOAT: "double precision",
    Kind.DECIMAL: "numeric",
    Kind.TEXT: "text",
    Kind.BOOL: "boolean",
    Kind.DATETIME: "timestamp with time zone",
    Kind.DATE: "date",
    Kind.UUID: "uuid",
    Kind.JSON: "jsonb",
}
_WRITTEN = {
    **{sql: kind for kind, sql in _SQL.items()},
    "smallint": Kind.INT,
    "integer": Kind.INT,
    "real": Kind.FLOAT,
    "character varying": Kind.TEXT,
}
_SHORT = {
    "int": "integer",
    "bool": "boolean",
    "decimal": "numeric",
    "varchar": "character varying",
    "timestamptz": "timestamp with time zone",
    "json": "jsonb",
}
_EXPLICIT = re.compile(r"(?P<base>[a-z][a-z ]*[a-z])(?P<size>\(\d+(?:,\d+)?\))?")
_SIZED = ("numeric", "character varying")

TAKES: dict[Kind, frozenset[Kind]] = {
    Kind.INT: frozenset({Kind.INT}),
    Kind.FLOAT: frozenset({Kind.INT, Kind.FLOAT, Kind.DECIMAL}),
    Kind.DECIMAL: frozenset({Kind.INT, Kind.FLOAT, Kind.DECIMAL}),
    Kind.TEXT: frozenset(Kind) - {Kind.JSON},
    Kind.BOOL: frozenset({Kind.BOOL}),
    Kind.DATETIME: frozenset({Kind.DATETIME, Kind.DATE}),
    Kind.DATE: frozenset({Kind.DATE}),
    Kind.UUID: frozenset({Kind.UUID, Kind.TEXT}),
    Kind.JSON: frozenset(Kind),
}
"""Column kind → kinds of values it takes, apart from those not known before."""

NUMBERS = frozenset({Kind.INT, Kind.FLOAT, Kind.DECIMAL})
ORDERED = NUMBERS | {Kind.TEXT, Kind.DATETIME, Kind.DATE}
KEYS = frozenset(_SQL) - {Kind.FLOAT, Kind.JSON}

_PYTHON: dict[Kind, Any] = {
    Kind.INT: int,
    Kind.FLOAT: float,
    Kind.DECIMAL: Decimal,
    Kind.TEXT: str,
    Kind.BOOL: bool,
    Kind.DATETIME: datetime,
    Kind.DATE: date,
    Kind.UUID: UUID,
    Kind.JSON: Any,
}


@dataclass(frozen=True, slots=True)
class ColumnType:
    """The type of a column: its kind, and how PostgreSQL writes it."""

    kind: Kind
    sql: str

    @property
    def cast(self) -> str:
        """What values are cast to; text is not cut off silently, as a cast to varchar does."""
        return "text" if self.kind is Kind.TEXT else self.sql

    @property
    def python(self) -> Any:
        """What a value read from the column is."""
        return _PYTHON[self.kind]


def column_type(declared: Any) -> ColumnType:
    """The type that ``sl.column(declared)`` means.

    Raises:
        InvalidDefinition: There is none.
    """
    if isinstance(declared, str):
        return _explicit(declared)
    kind = kind_of(declared)
    if declared in (Any, None) or kind is Kind.ANY:
        raise InvalidDefinition(
            f"{declared!r} is no column type: int, float, Decimal, str, bool, datetime, date, UUID,"
            ' dict, list, or PostgreSQL\'s name of one, as "numeric(12,2)"'
        )
    return ColumnType(kind, _SQL[kind])


def _explicit(declared: str) -> ColumnType:
    text = re.sub(r"\s*([(),])\s*", r"\1", " ".join(declared.lower().split()))
    found = _EXPLICIT.fullmatch(text)
    base = found and _SHORT.get(found["base"], found["base"])
    if not found or base not in _WRITTEN or (found["size"] and base not in _SIZED):
        known = ", ".join(sorted(_WRITTEN))
        raise InvalidDefinition(f"{declared!r} is no column type; these can be used: {known}")
    return ColumnType(_WRITTEN[base], base + (found["size"] or ""))


def kind_of_constant(value: Any) -> Kind:
    """The kind of a constant.

    Raises:
        InvalidDefinition: It cannot be one.
    """
    kind = Kind.ANY if value is None else kind_of(type(value))
    if kind is Kind.ANY and value is not None:
        raise InvalidDefinition(f"{value!r} cannot be a constant")
    if kind is Kind.DATETIME and value.tzinfo is None:
        raise InvalidDefinition(f"{value!r} has no time zone")
    if kind in (Kind.FLOAT, Kind.DECIMAL) and not math.isfinite(value):
        raise InvalidDefinition(f"{value!r} is not finite")
    return kind


def constant_sql(value: Any, column: ColumnType) -> str:
    """*value* as a constant of the column's type."""
    if value is None:
        return f"NULL::{column.cast}"
    if column.kind is Kind.JSON:
        text = msgspec.json.encode(value).decode()
    elif isinstance(value, datetime):
        text = value.astimezone(UTC).isoformat()
    else:
        text = (
            str(msgspec.to_builtins(value)) if not isinstance(value, bool) else str(value).lower()
        )
    return f"{safe_literal(text)}::{column.cast}"


def safe_literal(text: str) -> str:
    """An SQL string constant that no ``{name}`` of a statement is found in.

    Raises:
        InvalidDefinition: It holds a NUL character.
    """
    if "\0" in text:
        raise InvalidDefinition(f"{text!r} holds a NUL character, which PostgreSQL cannot store")
    if "{" not in text:
        return literal(text)
    escaped = text.replace("\\", "\\\\").replace("{", "\\007B")
    return f"U&{literal(escaped)}"
