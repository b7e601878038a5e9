"""Table projections for tests, and the fold in Python that they are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any
from uuid import uuid4

from strandline.events.codec import EventTypes
from strandline.projections.table import TableRows
from strandline.projections.table_declaration import Table
from strandline.projections.table_rules import (
    Change,
    How,
    add,
    as_change,
    column,
    count,
    first,
    greatest,
    least,
    on,
    subtract,
)
from strandline.projections.table_values import (
    POSITION,
    RECORDED_AT,
    TENANT,
    TYPE,
    VERSION,
    Bucket,
    Constant,
    Fact,
    bucket,
    constant,
)

COLUMNS = ("position", "version", "recorded_at", "id", "tenant", "stream", "type", "data")
AT = datetime(2024, 12, 28, 21, 30, tzinfo=UTC)


@dataclass(frozen=True)
class Place:
    city: str | None = None


@dataclass(frozen=True)
class Noted:
    account: str | None
    amount: int | None = None
    price: Decimal | None = None
    ratio: float | None = None
    note: str | None = None
    at: datetime | None = None
    place: Place | None = None
    tags: list[str] | None = None


@dataclass(frozen=True)
class Transferred:
    source: str | None
    target: str | None
    amount: int


@dataclass(frozen=True)
class Restarted:
    account: str
    amount: int


@dataclass(frozen=True)
class Closed:
    account: str | None


@dataclass(frozen=True)
class Address:
    city: str | None = "Rome"


@dataclass(frozen=True)
class Joined:
    id: str
    points: int = 5
    address: Address | None = Address("Oslo")


class Everything(Table):
    """Every kind of change, and deletion."""

    account = column(str, key="account")
    total = column(int, default=0)
    debt = column(int)
    events = column(int, default=0)
    notes = column(int)
    price = column("numeric(12,2)")
    ratio = column(float, default=0.0)
    low = column(int)
    high = column(int, default=50)
    word = column(str)
    note = column(str, default="none")
    first_note = column(str)
    city = column(str)
    day = column(date)
    week = column(str)
    moment = column(datetime)
    tags = column(list)
    status = column(str)
    known = column(bool, default=False)
    version = column(int)
    last = column(int)
    rules = (
        on(
            Noted,
            total=add("amount"),
            debt=subtract("amount"),
            events=count(),
            notes=count(),
            price=add("price"),
            ratio=add("ratio"),
            low=least("amount"),
            high=greatest("amount"),
            word=greatest("note"),
            note="note",
            first_note=first("note"),
            city="place.city",
            day=bucket("month", "at"),
            week=bucket("week", "at"),
            moment="at",
            tags="tags",
            status=constant("noted"),
            version=VERSION,
            last=POSITION,
        ),
        on(
            Transferred,
            account="source",
            total=subtract("amount"),
            events=count(),
            status=constant("paid"),
            last=POSITION,
        ),
        on(
            Transferred,
            account="target",
            total=add("amount"),
            events=count(),
            status=constant("got"),
            known=True,
            last=POSITION,
        ),
        on(Restarted, delete=True),
        on(Restarted, total="amount", low="amount", events=10, last=POSITION),
        on(Closed, delete=True),
    )


class Simple(Table):
    """Nothing that needs a reset, and one rule for each class."""

    account = column(str, key="account")
    total = column(int, default=7)
    events = column(int)
    last = column(int)
    at = column(datetime)
    rules = (
        on(Noted, total=add("amount"), events=count(), last=POSITION, at=RECORDED_AT),
        on(Restarted, total=subtract("amount"), last=POSITION),
    )


class Ledger(Table):
    """Columns that are set by some events and changed by others, without deletion."""

    account = column(str, key="account")
    total = column(int, default=7)
    debt = column(int)
    low = column(int)
    high = column(int, default=0)
    events = column(int)
    rules = (
        on(
            Noted,
            total=add("amount"),
            debt=add("amount"),
            low=least("amount"),
            high=greatest("amount"),
            events=count(),
        ),
        on(Restarted, total="amount", debt=None, low="amount", high=None, events=0),
        on(Closed, total=3, low=None, events=count()),
    )


class Weekly(Table):
    """Composite keys of a bucket and a fact; a column set by one of two rules."""

    week = column(str, key=bucket("week", "at"))
    stream = column(str, key=True)
    type = column(str, default="?")
    amount = column(int, default=100)
    rules = (
        on(Noted, amount=add("amount"), type=TYPE),
        on(Transferred, week=bucket("week"), amount="amount"),
        on(Transferred, week=constant("all"), amount=add("amount"), type=TENANT),
    )


class Presence(Table):
    """Keys, and nothing else."""

    account = column(str, key="account")
    rules = (on(Noted), on(Restarted, delete=True), on(Closed, delete=True))


TABLES = (Everything, Simple, Ledger, Weekly, Presence)


@dataclass(frozen=True)
class Stored:
    """An event where it is stored."""

    position: int
    tenant: str
    stream: str
    version: int
    recorded_at: datetime
    event: Any


def types_of(*classes: type[Any]) -> EventTypes:
    types = EventTypes()
    for cls in classes:
        types.register(cls, cls.__name__)
    return types


TYPES = types_of(Noted, Transferred, Restarted, Closed)


def bound(table: type[Table], types: EventTypes = TYPES) -> TableRows:
    projection = table()
    projection.named(table.__name__.lower(), 1, "async")
    projection.bind(types, None)
    return TableRows(projection)


def record(stored: Stored) -> tuple[Any, ...]:
    name, data = TYPES.encode(stored.event)
    one = stored
    return (
        one.position,
        one.version,
        one.recorded_at,
        uuid4(),
        one.tenant,
        one.stream,
        name,
        data.decode(),
    )


async def store(connection: Any, *records: tuple[Any, ...]) -> None:
    await connection.copy_records_to_table(
        "events", schema_name="strandline", columns=COLUMNS, records=records
    )


def events(*given: Any, tenant: str = "t") -> list[Stored]:
    return [
        Stored(number, tenant, f"s{number % 3}", number, AT + timedelta(hours=number), event)
        for number, event in enumerate(given, 1)
    ]


def read(value: Any, one: Stored) -> Any:
    if isinstance(value, Constant):
        return value.value
    if isinstance(value, Fact):
        facts = {"type": TYPES.name_of(type(one.event))}
        return facts[value.column] if value.column in facts else getattr(one, value.column)
    if isinstance(value, Bucket):
        moment = read(value.of, one)
        return None if moment is None else (value.size, moment)
    found = one.event
    for name in value.path.split("."):
        found = None if found is None else getattr(found, name)
    if isinstance(found, datetime):
        found = found.replace(tzinfo=found.tzinfo or UTC).astimezone(UTC)
    return found


def fitted(value: Any, kind: str) -> Any:
    """*value* as a column of *kind* holds it."""
    if isinstance(value, tuple):
        size, moment = value
        if kind == "date":
            return moment.date().replace(day=1) if size == "month" else moment.date()
        return moment.strftime("%G-W%V")
    if kind == "decimal" and value is not None:
        return value.quantize(Decimal("0.01"), ROUND_HALF_UP)  # as PostgreSQL rounds
    return value


def changed(old: Any, change: Change, value: Any, default: Any) -> Any:
    if change.how is How.SET:
        return default if value is None else value
    if change.how is How.COUNT:
        return (old or 0) + 1
    if value is None:
        return old
    if change.how is How.FIRST:
        return value if old is None else old
    if change.how is How.ADD:
        value = -value if change.negative else value
        return value if old is None else old + value
    if old is None:
        return value
    by_bytes = (lambda text: text.encode()) if isinstance(value, str) else None
    return (min if change.how is How.LEAST else max)(old, value, key=by_bytes)


def python_fold(rows: TableRows, log: list[Stored]) -> dict[tuple[Any, ...], dict[str, Any]]:
    kinds = {one.name: one.type.kind for one in rows.columns}
    projection = rows.projection
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for one in log:
        for rule in projection.rules:
            if type(one.event) not in rule.events:
                continue
            sources = [
                as_change(rule.given.get(key.name, key.key)).value for key in projection.keys
            ]
            values = [
                fitted(read(value, one), kinds[key.name])
                for key, value in zip(projection.keys, sources, strict=True)
            ]
            if None in values:
                continue
            key = (one.tenant, *values)
            if rule.delete:
                found.pop(key, None)
                continue
            row = found.setdefault(key, {c.name: c.default for c in projection.values})
            for c in projection.values:
                if c.name in rule.given:
                    change = as_change(rule.given[c.name])
                    value = fitted(read(change.value, one), kinds[c.name])
                    row[c.name] = changed(row[c.name], change, value, c.default)
    return found
