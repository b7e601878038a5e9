"""What can be declared as a table, and what the refusals say."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal, NewType
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest

from strandline.errors import InvalidDefinition
from strandline.events.codec import EventTypes
from strandline.projections.column_types import column_type, constant_sql, safe_literal
from strandline.projections.event_fields import Kind, StoredField, kind_of, stored_field
from strandline.projections.table import TableRows
from strandline.projections.table_declaration import Table
from strandline.projections.table_rules import (
    add,
    column,
    count,
    first,
    greatest,
    least,
    on,
    subtract,
)
from strandline.projections.table_values import POSITION, RECORDED_AT, STREAM, bucket, constant


@dataclass(frozen=True)
class Place:
    city: str = "Rome"


@dataclass(frozen=True)
class Paid:
    account: UUID
    amount: int
    note: str = ""
    at: datetime | None = None
    day: date | None = None
    flag: bool = False
    price: float = 0.5
    place: Place = Place()
    tags: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Unregistered:
    account: UUID


def types() -> EventTypes:
    made = EventTypes()
    made.register(Paid, "paid")
    return made


def bound(table: type[Table], lifecycle: str = "async", known: EventTypes | None = None) -> Table:
    definition = table()
    definition.named("it", 1, lifecycle)
    definition.bind(known or types(), None)
    return definition


def with_rules(*rules: Any, **columns: Any) -> type[Table]:
    """A table keyed by the account, with *columns*."""
    members = {"account": column(UUID, key="account"), **columns, "rules": rules}
    return type("It", (Table,), members)


REFUSED = {
    "no key": (
        type("It", (Table,), {"n": column(int), "rules": (on(Paid),)}),
        "no key: say which row",
    ),
    "no rules": (with_rules(), "no rules: say what events do"),
    "a rule of its own making": (with_rules(Paid), r"rules are made by sl\.on\(EventClass"),
    "an event that is not registered": (
        with_rules(on(Unregistered)),
        "on Unregistered: it is not a registered event: decorate it",
    ),
    "a column that is not there": (
        with_rules(on(Paid, total=1)),
        "on Paid: no column 'total'; the columns: account",
    ),
    "a field that is not there": (
        with_rules(on(Paid, n=add("amuont")), n=column(int)),
        "on Paid: column 'n': Paid has no field 'amuont'; its fields: account, amount, note",
    ),
    "a field that is not there in a field": (
        with_rules(on(Paid, n="place.street"), n=column(str)),
        r"Paid has no field 'place.street' \(in Place\); its fields: city\. A constant text",
    ),
    "a field of a number": (with_rules(on(Paid, n="amount.x"), n=column(str)), "its fields: none"),
    "a key that is not there": (
        type("It", (Table,), {"k": column(str, key="x"), "rules": (on(Paid),)}),
        "on Paid: key 'k': Paid has no field 'x'",
    ),
    "a key that is counted": (
        with_rules(on(Paid, account=count())),
        "key 'account': a key is taken from the event",
    ),
    "adding to text": (
        with_rules(on(Paid, n=add("amount")), n=column(str)),
        "column 'n': add needs a number, the column is text",
    ),
    "adding text": (
        with_rules(on(Paid, n=add("note")), n=column(int)),
        "column 'n': Paid.note is text, the column is bigint",
    ),
    "a float in a column of int": (
        with_rules(on(Paid, n="price"), n=column(int)),
        "Paid.price is float, the column is bigint",
    ),
    "a day of a datetime": (
        with_rules(on(Paid, n="at"), n=column(date)),
        r'Paid.at is datetime, the column is date \(use sl.bucket\("day", ...\)\)',
    ),
    "the greatest flag": (
        with_rules(on(Paid, n=greatest("flag")), n=column(bool)),
        "greatest does not work on boolean",
    ),
    "first with a default": (
        with_rules(on(Paid, n=first("amount")), n=column(int, default=0)),
        "first needs a column without a default",
    ),
    "first and set": (
        with_rules(on(Paid, n=first("amount")), on(Paid, n=1), n=column(int)),
        "column 'n': first and set cannot be mixed on one column",
    ),
    "least and add": (
        with_rules(on(Paid, n=least("amount")), on(Paid, n=count()), n=column(int)),
        "count and least cannot be mixed",
    ),
    "setting what is deleted": (
        with_rules(on(Paid, delete=True, n=1), n=column(int)),
        "n: the row is deleted, nothing is set",
    ),
    "a text that fits no number": (
        with_rules(on(Paid, n=constant("x")), n=column(int)),
        "'x' is text, the column is bigint",
    ),
    "a bucket in a number": (
        with_rules(on(Paid, n=bucket("day", "at")), n=column(int)),
        "a day fits a column of date, datetime, text",
    ),
    "an hour in a date": (
        with_rules(on(Paid, n=bucket("hour", "at")), n=column(date)),
        "a hour fits a column of datetime, text",
    ),
    "a bucket of a number": (
        with_rules(on(Paid, n=bucket("day", "amount")), n=column(str)),
        "Paid.amount is int: a bucket is made of a datetime",
    ),
    "a bucket of a stream": (
        with_rules(on(Paid, n=bucket("day", STREAM)), n=column(str)),
        "a bucket is made of a datetime",
    ),
    "a type that is none": (
        with_rules(on(Paid), n=column(object)),
        "column 'n': .* is no column type",
    ),
    "a written type that is none": (
        with_rules(on(Paid), n=column("money")),
        "'money' is no column type",
    ),
    "sql in a type": (
        with_rules(on(Paid), n=column("int; --")),
        "is no column type; these can be used",
    ),
    "a default that does not fit": (
        with_rules(on(Paid), n=column(int, default="x")),
        "column 'n': 'x' is text, the column is bigint",
    ),
    "a key of json": (with_rules(on(Paid), n=column(dict, key="extra")), "jsonb cannot be a key"),
    "a key with a default": (
        with_rules(on(Paid), n=column(int, key="amount", default=0)),
        "a key column has no default",
    ),
    "a reserved name": (
        with_rules(on(Paid), tenant=column(str)),
        "column 'tenant': the name is reserved",
    ),
    "a system column": (
        with_rules(on(Paid), xmin=column(str)),
        "column 'xmin': the name is reserved",
    ),
    "a capital letter": (
        with_rules(on(Paid), Total=column(int)),
        "column 'Total': a name is made of a-z",
    ),
    "a long name": (
        with_rules(on(Paid), **{"n" * 64: column(int)}),
        "a name has at most 63 characters",
    ),
    "an index on nothing": (
        type("It", (with_rules(on(Paid)),), {"indexes": ("account, x",)}),
        "index 'account, x': no column 'x'",
    ),
    "indexes without a comma": (
        type("It", (with_rules(on(Paid)),), {"indexes": "account"}),
        r"indexes is a tuple, as in indexes = \('account',\)",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_run_is_refused_where_it_is_declared(what: str) -> None:
    table, message = REFUSED[what]

    with pytest.raises(InvalidDefinition, match=f"projection 'it': (.*){message}"):
        bound(table)


def test_a_table_cannot_be_folded_on_demand() -> None:
    with pytest.raises(
        InvalidDefinition, match="a table is stored; it is inline or async, not live"
    ):
        bound(with_rules(on(Paid)), "live")


def test_an_event_with_an_upcaster_cannot_have_its_fields_read() -> None:
    known = types()
    known.upcast("old paid", Paid, lambda data: data)

    with pytest.raises(InvalidDefinition, match="events stored as 'old paid' have an upcaster"):
        bound(with_rules(on(Paid)), known=known)

    by_stream = type(
        "It",
        (Table,),
        {"stream": column(str, key=True), "n": column(int), "rules": (on(Paid, n=count()),)},
    )
    assert bound(by_stream, known=known).event_classes == (Paid,)


def test_columns_may_be_called_like_what_a_projection_has() -> None:
    class Names(Table):
        name = column(str, key="note")
        version = column(int, default=0)
        kind = column(str)
        table = column(str)
        keys = column(list)
        order = column(str)
        rules = (on(Paid, version=add("amount"), keys="tags", kind=constant("{schema}")),)

    definition = bound(Names)

    assert (definition.name, definition.version, definition.table) == ("it", 1, "table_it_v1")
    assert [one.name for one in definition.columns_of_table] == [
        "name", "version", "kind", "table", "keys", "order",
    ]  # fmt: skip
    row = TableRows(definition).row(
        tenant="t", name="x", version=1, kind=None, table=None, keys=[], order=None
    )
    assert (row.name, row.version) == ("x", 1)


def test_columns_and_rules_are_inherited() -> None:
    class Base(Table):
        account = column(UUID, key="account")

    class Below(Base):
        n = column(int)
        rules = (on(Paid, n=count()),)

    assert [one.name for one in bound(Below).columns_of_table] == ["account", "n"]


def test_without_sets_and_deletions_events_are_read_in_one_pass() -> None:
    table = with_rules(
        on(Paid, n=add("amount"), m=count(), last=POSITION), on(Paid, m=subtract(1)),
        n=column(int, default=0), m=column(int), last=column(int),
    )  # fmt: skip
    sql = TableRows(bound(table)).fold.sql("s")

    assert "NOT MATERIALIZED" in sql
    assert "JOIN reset" not in sql
    assert sql.count("JOIN") == sql.count("JOIN LATERAL") + 1  # the two lanes
    assert "ORDER BY" not in sql


def test_a_field_used_twice_is_read_once() -> None:
    table = with_rules(
        on(Paid, n=add("amount"), m=greatest("amount")), n=column(int), m=column(int)
    )

    assert TableRows(bound(table)).fold.sql("s").count("'amount'") == 1


def test_no_name_of_a_statement_is_found_in_texts() -> None:
    assert safe_literal("it's {schema} \\ {") == r"U&'it''s \007Bschema} \\ \007B'"
    assert safe_literal("it's") == "'it''s'"
    with pytest.raises(InvalidDefinition, match="NUL"):
        safe_literal("\0")


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, Decimal("NaN"), datetime(2030, 1, 1), object()]
)
def test_a_constant_that_cannot_be_stored_is_refused(value: Any) -> None:
    kind = {float: float, Decimal: Decimal, datetime: datetime}.get(type(value), str)

    with pytest.raises(
        InvalidDefinition, match="is not finite|has no time zone|cannot be a constant"
    ):
        bound(with_rules(on(Paid, n=constant(value)), n=column(kind)))


def test_types_are_written_as_postgresql_writes_them() -> None:
    written = {
        "Numeric( 12 , 2 )": "numeric(12,2)",
        "varchar(9)": "character varying(9)",
        "timestamptz": "timestamp with time zone",
        "double  precision": "double precision",
        "int": "integer",
    }
    assert {one: column_type(one).sql for one in written} == written
    assert column_type(float | None).sql == "double precision"
    assert column_type("varchar(9)").cast == "text"
    assert constant_sql(Decimal("1.50"), column_type(Decimal)) == "'1.50'::numeric"
    assert constant_sql(True, column_type(bool)) == "'true'::boolean"


class Colour(Enum):
    RED = "red"


class Level(Enum):
    LOW = 1
    HIGH = "high"


@pytest.mark.parametrize(
    ("annotation", "kind"),
    [
        (int, Kind.INT),
        (bool, Kind.BOOL),
        (int | None, Kind.INT),
        (Annotated[int, msgspec.Meta(ge=0)], Kind.INT),
        (NewType("Id", UUID), Kind.UUID),
        (Literal["a", "b"], Kind.TEXT),
        (Colour, Kind.TEXT),
        (Level, Kind.ANY),
        (int | str, Kind.ANY),
        (int | msgspec.UnsetType, Kind.INT),
        (list[int], Kind.JSON),
        (dict[str, int], Kind.JSON),
        (Place, Kind.JSON),
        (Any, Kind.ANY),
        (datetime, Kind.DATETIME),
        (date, Kind.DATE),
    ],
)
def test_the_kind_of_a_field_is_told_by_its_annotation(annotation: Any, kind: Kind) -> None:
    assert kind_of(annotation) is kind


class AsStruct(msgspec.Struct, rename="camel"):
    first_name: str
    place: Place = Place("Oslo")
    tags: list[str] = []


@attrs.define
class AsAttrs:
    first_name: str
    place: Place = Place("Oslo")
    tags: list[str] = attrs.field(factory=list)


class AsModel(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(serialize_by_alias=True)
    first_name: str = pydantic.Field(alias="firstName")
    place: Place = Place("Oslo")
    tags: list[str] = pydantic.Field(default_factory=list)

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def length(self) -> int:
        return len(self.first_name)


@pytest.mark.parametrize("cls", [AsStruct, AsAttrs, AsModel])
def test_fields_are_found_in_every_kind_of_event_class(cls: type[Any]) -> None:
    key = "first_name" if cls is AsAttrs else "firstName"

    assert stored_field(cls, "first_name") == StoredField((key,), Kind.TEXT, (None,))
    assert stored_field(cls, "place.city") == StoredField(
        ("place", "city"), Kind.TEXT, ("Oslo", "Rome")
    )
    assert stored_field(cls, "tags") == StoredField(("tags",), Kind.JSON, ([],))
    with pytest.raises(InvalidDefinition, match="has no field 'last_name'"):
        stored_field(cls, "last_name")


def test_a_computed_field_is_stored_too() -> None:
    assert stored_field(AsModel, "length") == StoredField(("length",), Kind.INT, (None,))


def test_any_key_may_be_in_a_dict() -> None:
    assert stored_field(Paid, "extra.a.b") == StoredField(
        ("extra", "a", "b"), Kind.ANY, (None, None, None)
    )


def test_a_bucket_has_a_known_size() -> None:
    with pytest.raises(InvalidDefinition, match="it is one of hour, day, week, month, year"):
        bucket("minute", RECORDED_AT)  # type: ignore[arg-type]
