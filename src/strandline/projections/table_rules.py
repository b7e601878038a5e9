"""The words a table projection is declared with: columns, rules, and what a rule does to a column."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from strandline.errors import InvalidDefinition
from strandline.projections.column_types import (
    KEYS,
    NUMBERS,
    ORDERED,
    ColumnType,
    column_type,
    kind_of_constant,
)
from strandline.projections.event_fields import Kind
from strandline.projections.table_values import (
    STREAM,
    Constant,
    Value,
    as_value,
    refuse_misfit,
)

LONGEST = 63  # bytes in a PostgreSQL name
_SYSTEM = {"tableoid", "xmin", "cmin", "xmax", "cmax", "ctid", "oid"}
RESERVED = {"tenant", "delete", "rules", "indexes"} | _SYSTEM


class How(StrEnum):
    """What a change does to the column."""

    SET = "set"
    ADD = "add"
    COUNT = "count"
    FIRST = "first"
    LEAST = "least"
    GREATEST = "greatest"


@dataclass(frozen=True, slots=True)
class Change:
    """What an event does to a column."""

    how: How
    value: Value
    negative: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """A declared column."""

    name: str
    type: ColumnType
    default: Any
    key: Value | None

    @property
    def required(self) -> bool:
        """Whether the column is NOT NULL."""
        return self.key is not None or self.default is not None


@dataclass(frozen=True, slots=True)
class Declared:
    """What ``sl.column(...)`` answers, until it is known what the column is called."""

    type: Any
    default: Any
    key: Any


@dataclass(frozen=True, slots=True)
class Rule:
    """What events of some classes do to the row their keys name."""

    events: tuple[type[Any], ...]
    delete: bool
    given: dict[str, Any]


def column(type: Any, /, *, default: Any = None, key: Any = None) -> Any:  # noqa: A002 - as in field(type)
    """A column of a table projection.

    Args:
        type: int, float, Decimal, str, bool, datetime, date, UUID, dict or list; or PostgreSQL's
            own name of a type, as ``"numeric(12,2)"``.
        default: What a new row starts with; such a column is NOT NULL. Without it, it starts NULL.
        key: Makes it a key column: the field that says which row an event belongs to, a fact as
            ``sl.STREAM``, or ``sl.bucket(...)``. ``True`` means the stream's id. A rule may name
            another one.
    """
    return Declared(type, default, key)


def on(*events: type[Any], delete: bool = False, **columns: Any) -> Rule:
    """What *events* do to the row that their keys name; the row is made when it is not there.

    Args:
        events: Event classes.
        delete: The row ends. A later event makes it anew.
        columns: Column → what is done to it: a field's name, a constant, a fact as
            ``sl.POSITION`` or a bucket sets it; or ``sl.add``, ``sl.count`` and the like. For key
            columns: where the key comes from.
    """
    return Rule(events, delete, columns)


def add(value: Any) -> Change:
    """Add a field or a number; null adds nothing."""
    return Change(How.ADD, as_value(value))


def subtract(value: Any) -> Change:
    """Subtract a field or a number; null subtracts nothing."""
    return Change(How.ADD, as_value(value), negative=True)


def count() -> Change:
    """Count the events."""
    return Change(How.COUNT, Constant(1))


def first(value: Any) -> Change:
    """Set the column unless it is set: the first value in the order of positions stays."""
    return Change(How.FIRST, as_value(value))


def least(value: Any) -> Change:
    """Keep the least value; texts compare by their bytes."""
    return Change(How.LEAST, as_value(value))


def greatest(value: Any) -> Change:
    """Keep the greatest value; texts compare by their bytes."""
    return Change(How.GREATEST, as_value(value))


def as_change(given: Any) -> Change:
    """A value by itself sets the column."""
    return given if isinstance(given, Change) else Change(How.SET, as_value(given))


def declared_column(name: str, declared: Declared) -> Column:
    """The column, checked.

    Raises:
        InvalidDefinition: Its name, type, default or key cannot be used.
    """
    if name in RESERVED:
        raise InvalidDefinition(f"column {name!r}: the name is reserved")
    if not (name.isascii() and name.isidentifier() and name == name.lower() and name[0] != "_"):
        raise InvalidDefinition(f"column {name!r}: a name is made of a-z, 0-9 and _")
    if len(name) > LONGEST:
        raise InvalidDefinition(f"column {name!r}: a name has at most {LONGEST} characters")
    try:
        kind = column_type(declared.type)
        if declared.default is not None:
            refuse_misfit(kind, kind_of_constant(declared.default), repr(declared.default))
        return Column(name, kind, declared.default, _key(declared, kind))
    except InvalidDefinition as error:
        raise InvalidDefinition(f"column {name!r}: {error}") from None


def _key(declared: Declared, kind: ColumnType) -> Value | None:
    if declared.key in (None, False):
        return None
    if declared.default is not None:
        raise InvalidDefinition("a key column has no default")
    if kind.kind not in KEYS:
        raise InvalidDefinition(f"{kind.sql} cannot be a key")
    return STREAM if declared.key is True else as_value(declared.key)


def refuse_change(column: Column, change: Change, cls: type[Any]) -> None:
    """Refuse what cannot be done to *column* with events of *cls*.

    Raises:
        InvalidDefinition: Saying why.
    """
    how, kind = change.how, column.type.kind
    if how in (How.ADD, How.COUNT) and kind not in NUMBERS:
        raise InvalidDefinition(f"{how} needs a number, the column is {column.type.sql}")
    if how in (How.LEAST, How.GREATEST) and kind not in ORDERED:
        raise InvalidDefinition(f"{how} does not work on {column.type.sql}")
    if how is How.FIRST and column.default is not None:
        raise InvalidDefinition("first needs a column without a default: it stays until it is set")
    if change.negative and isinstance(change.value, Constant) and change.value.value is None:
        raise InvalidDefinition("subtract(None) does nothing")
    change.value.check(cls, column.type)


def refuse_mix(column: Column, changes: list[Change]) -> None:
    """Refuse changes to one column whose outcome would not be clear.

    Raises:
        InvalidDefinition: Naming them.
    """
    hows = {How.ADD if one.how is How.COUNT else one.how for one in changes}
    if len(hows - {How.SET}) > 1 or (How.FIRST in hows and len(hows) > 1):
        names = " and ".join(sorted({str(one.how) for one in changes}))
        raise InvalidDefinition(f"{names} cannot be mixed on one column: use a column for each")


def is_text(column: Column) -> bool:
    """Whether the column holds text."""
    return column.type.kind is Kind.TEXT
