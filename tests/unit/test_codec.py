"""Between event objects and JSON: kinds of classes, names, aliases, upcasters, bad values."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest

from strandline.errors import (
    InvalidDefinition,
    InvalidEvent,
    UndecodableEvent,
    UnknownEventType,
    UnregisteredEvent,
)
from strandline.events.codec import EventTypes
from strandline.events.event import Unknown


class Colour(Enum):
    RED = "red"


@dataclass(frozen=True)
class Inner:
    at: datetime
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AsDataclass:
    id: UUID
    price: Decimal
    colour: Colour
    inner: Inner
    note: str | None = None


class AsStruct(msgspec.Struct, frozen=True):
    id: UUID
    price: Decimal
    colour: Colour
    inner: Inner
    note: str | None = None


@attrs.frozen
class AsAttrs:
    id: UUID
    price: Decimal
    colour: Colour
    inner: Inner
    note: str | None = None


class PydanticInner(pydantic.BaseModel):
    at: datetime
    tags: tuple[str, ...] = ()


class AsPydantic(pydantic.BaseModel):
    id: UUID
    price: Decimal
    colour: Colour
    inner: PydanticInner
    note: str | None = None


AT = datetime(2030, 1, 2, 3, 4, 5, 678, tzinfo=UTC)


@pytest.mark.parametrize("cls", [AsDataclass, AsStruct, AsAttrs, AsPydantic])
def test_every_kind_of_class_survives_storage(cls: Any) -> None:
    types = EventTypes()
    types.register(cls, "thing")
    inner = (PydanticInner if cls is AsPydantic else Inner)(at=AT, tags=("a", "ü", "\\u0000"))
    event = cls(
        id=UUID(int=1), price=Decimal("1.10"), colour=Colour.RED, inner=inner, note='"\\"\n😀'
    )

    name, data = types.encode(event)

    assert name == "thing"
    assert types.decode(name, data.decode()) == event
    assert json.loads(data)["price"] == "1.10", "a decimal is not squeezed into a float"


@dataclass(frozen=True)
class Paid:
    amount: Any = 1


@dataclass(frozen=True)
class Opened:
    owner: str
    vip: bool = False


def paid() -> EventTypes:
    types = EventTypes()
    types.register(Paid, "paid")
    return types


# ---- values that cannot be stored


class Model(pydantic.BaseModel):
    value: Any = None


@pytest.mark.parametrize("text", ["\0", "a\0b", {"\0": 1}, ["x", {"y": "z\0"}], "\\\0"])
def test_a_nul_character_is_refused_wherever_it_is(text: Any) -> None:
    types = paid()
    types.register(Model, "model")

    for event in (Paid(text), Model(value=text)):
        with pytest.raises(InvalidEvent, match="holds a NUL character"):
            types.encode(event)


@pytest.mark.parametrize("text", ["\\u0000", "\\\\u0000", "u0000"])
def test_text_that_only_looks_like_a_nul_character_is_kept(text: str) -> None:
    types = paid()

    assert types.decode("paid", types.encode(Paid(text))[1].decode()) == Paid(text)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "where", [lambda x: x, lambda x: [1.5, x], lambda x: {"null": {"a": (x,)}}]
)
def test_nan_and_infinity_are_refused_wherever_they_are(number: float, where: Any) -> None:
    types = paid()
    types.register(Model, "model")

    for event in (Paid(where(number)), Model(value=where(number))):
        with pytest.raises(InvalidEvent, match="NaN or infinity"):
            types.encode(event)


def test_null_and_the_word_null_are_kept() -> None:
    types = paid()

    for value in (None, "null", [None, 1.5]):
        assert types.decode("paid", types.encode(Paid(value))[1].decode()) == Paid(value)


def test_a_lone_surrogate_is_refused() -> None:
    types = paid()
    types.register(Model, "model")

    for event in (Paid("\ud800"), Model(value="\ud800")):
        with pytest.raises(InvalidEvent, match="has no JSON form"):
            types.encode(event)


def test_an_object_without_a_json_form_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)

    for value in (object(), {object(): 1}, endless):
        with pytest.raises(InvalidEvent, match="'paid' has no JSON form"):
            paid().encode(Paid(value))


def test_an_object_of_an_unregistered_class_is_refused() -> None:
    for event in (Opened("Ada"), {"amount": 1}, "paid", None):
        with pytest.raises(UnregisteredEvent, match="is not registered"):
            paid().encode(event)


def test_an_object_of_a_class_below_a_registered_one_is_refused() -> None:
    class Special(Paid):
        pass

    with pytest.raises(UnregisteredEvent, match="Special is not registered"):
        paid().encode(Special())


# ---- names


def test_aliases_are_read_and_the_name_is_written() -> None:
    types = EventTypes()
    types.register(Paid, "paid", aliases=("payment", "money-in"))

    assert types.encode(Paid(1))[0] == "paid"
    assert types.decode("payment", '{"amount": 2}') == Paid(2)
    assert types.stored_names(Paid) == ("paid", "payment", "money-in")


@pytest.mark.parametrize("name", ["", "x" * 201, "ä" * 101, "a\0b", None, 7, "\ud800"])
def test_a_name_that_cannot_be_stored_is_refused(name: Any) -> None:
    with pytest.raises(InvalidDefinition, match="has not 1 to 200 bytes"):
        EventTypes().register(Paid, name)
    with pytest.raises(InvalidDefinition, match="has not 1 to 200 bytes"):
        EventTypes().register(Paid, "paid", aliases=[name])


def test_a_name_or_alias_belongs_to_one_class_and_a_class_has_one_name() -> None:
    types = EventTypes()
    types.register(Paid, "paid", aliases=["payment"])

    with pytest.raises(InvalidDefinition, match="event name 'payment' is taken by Paid"):
        types.register(Opened, "opened", aliases=["payment"])
    with pytest.raises(InvalidDefinition, match="Paid is registered as 'paid' already"):
        types.register(Paid, "again")
    assert Opened not in types.names, "a refused class leaves nothing behind"


@pytest.mark.parametrize("cls", [int, dict, object, "Paid", None, type("Plain", (), {})])
def test_only_classes_with_fields_can_be_events(cls: Any) -> None:
    with pytest.raises(InvalidDefinition, match="is not a dataclass, msgspec.Struct, attrs class"):
        EventTypes().register(cls, "thing")


def test_a_class_whose_fields_json_cannot_hold_is_refused() -> None:
    class Odd:
        pass

    @dataclass
    class Holder:
        odd: dict[Odd, int] = field(default_factory=dict)

    with pytest.raises(InvalidDefinition, match="Holder cannot be read from JSON"):
        EventTypes().register(Holder, "holder")


# ---- reading


def test_a_type_that_is_not_registered_is_told_or_stands_as_unknown() -> None:
    with pytest.raises(UnknownEventType, match="'sold' at position 9 is not registered") as caught:
        paid().decode("sold", "{}", position=9)

    assert (caught.value.event_type, caught.value.position) == ("sold", 9)
    assert paid().decode_or_unknown("sold", '{"a": 1}') == Unknown("sold", '{"a": 1}')


def test_json_that_does_not_fit_its_class_is_told_with_the_position() -> None:
    types = EventTypes()
    types.register(Opened, "opened")

    with pytest.raises(
        UndecodableEvent, match="'opened' at position 3 cannot be decoded"
    ) as caught:
        types.decode("opened", '{"vip": true}', position=3)

    assert "owner" in caught.value.reason


def test_a_new_field_with_a_default_reads_old_events() -> None:
    types = EventTypes()
    types.register(Opened, "opened")

    assert types.decode("opened", '{"owner": "Ada", "dropped": 1}') == Opened("Ada")


# ---- upcasters


def test_an_upcaster_reads_what_was_stored_under_an_old_name() -> None:
    types = EventTypes()
    types.register(Opened, "opened")
    types.upcast("account-made", Opened, lambda old: {"owner": old["name"]})

    assert types.decode("account-made", '{"name": "Ada"}') == Opened("Ada")
    assert types.decode("opened", '{"owner": "Bo", "vip": true}') == Opened("Bo", vip=True)
    assert types.stored_names(Opened) == ("opened", "account-made")


def test_an_upcaster_of_todays_name_or_an_alias_sees_every_event_under_it() -> None:
    types = EventTypes()
    types.register(Opened, "opened", aliases=["made"])
    types.upcast("opened", Opened, lambda old: {"vip": True, **old})
    types.upcast("made", Opened, lambda old: Opened("made " + old["owner"]))

    assert types.decode("opened", '{"owner": "Ada"}') == Opened("Ada", vip=True)
    assert types.decode("made", '{"owner": "Bo"}') == Opened("made Bo")
    assert types.stored_names(Opened) == ("opened", "made")


def test_an_upcaster_may_lead_to_a_pydantic_model() -> None:
    types = EventTypes()
    types.register(Model, "model")
    types.upcast("old", Model, lambda old: {"value": old["v"]})

    assert types.decode("old", '{"v": [1]}') == Model(value=[1])


def test_an_upcaster_that_fails_makes_the_event_undecodable() -> None:
    types = EventTypes()
    types.register(Opened, "opened")
    types.upcast("old", Opened, lambda old: {"owner": old["missing"]})
    types.upcast("odd", Opened, lambda old: {"owner": 7})

    with pytest.raises(UndecodableEvent, match="missing"):
        types.decode("old", "{}")
    with pytest.raises(UndecodableEvent, match="Expected `str`, got `int`"):
        types.decode("odd", "{}")


def test_an_upcaster_needs_a_registered_class_and_a_name_of_its_own() -> None:
    types = paid()

    with pytest.raises(InvalidDefinition, match="register Opened with app.event before"):
        types.upcast("old", Opened, lambda old: old)
    types.register(Opened, "opened")
    with pytest.raises(InvalidDefinition, match="event name 'paid' is taken by Paid"):
        types.upcast("paid", Opened, lambda old: old)
