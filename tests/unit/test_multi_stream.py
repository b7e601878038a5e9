"""Documents that gather events of many streams."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any
from uuid import UUID

import pytest
from declared import declared, folded

from strandline.errors import ApplyFailed, InvalidDefinition
from strandline.events.event import RecordedEvent
from strandline.projections.fold import PageFold
from strandline.projections.handlers import apply, create, delete, fan_out, key
from strandline.projections.multi_stream import MultiStream


@dataclass(frozen=True)
class Sold:
    shop: Any
    amount: int = 1


@dataclass(frozen=True)
class Order:
    lines: list[str]


@dataclass(frozen=True)
class Line:
    product: str


@dataclass(frozen=True)
class Gift:
    product: str


@dataclass
class Total:
    count: int = 0
    amount: int = 0


class Shops(MultiStream[Total]):
    @key
    def shop(self, event: Sold) -> Any:
        return event.shop

    @apply
    def sold(self, total: Total, event: Sold) -> None:
        total.count += 1
        total.amount += event.amount


def test_events_of_many_streams_meet_under_their_key() -> None:
    it = declared(Shops, Sold)

    found = folded(*it, ("a", Sold("x", 5)), ("b", Sold("y", 1)), ("c", Sold("x", 2)))

    assert found == {"x": Total(2, 7), "y": Total(1, 1)}


def test_an_event_may_have_several_keys_and_counts_once_for_each() -> None:
    it = declared(Shops, Sold)

    assert folded(*it, Sold(["x", "y", "x"])) == {"x": Total(1, 1), "y": Total(1, 1)}
    assert folded(*it, Sold(())) == {}


def test_an_event_without_a_key_belongs_to_no_document() -> None:
    assert folded(*declared(Shops, Sold), Sold(None)) == {}


@pytest.mark.parametrize(
    ("given", "name"),
    [(7, "7"), (date(2030, 1, 2), "2030-01-02"), (UUID(int=1), str(UUID(int=1)))],
)
def test_keys_may_be_numbers_dates_and_uuids(given: Any, name: str) -> None:
    definition, _ = declared(Shops, Sold)

    assert definition.keys_of(Sold(given), None) == (name,)


@pytest.mark.parametrize("given", [1.5, b"x", {"a": 1}, ["x", None], [["x"]]])
def test_a_key_that_is_no_plain_value_fails_with_its_position(given: Any) -> None:
    definition, _ = declared(Shops, Sold)

    with pytest.raises(TypeError, match="a key is a text, number, UUID or date, not"):
        definition.keys_of(Sold(given), None)


def test_a_key_method_that_raises_is_the_projections_fault() -> None:
    class Bad(Shops):
        @key
        def shop(self, event: Sold) -> Any:
            return event.shop["missing"]

    with pytest.raises(ApplyFailed, match=r"it:v1 at position 1: KeyError\('missing'\)"):
        folded(*declared(Bad, Sold), Sold({}))


class Products(MultiStream[Total]):
    @fan_out
    def lines(self, event: Order) -> Iterator[Line | Gift]:
        for name in event.lines:
            yield Gift(name[1:]) if name.startswith("*") else Line(name)

    @key
    def product(self, part: Line | Gift) -> str:
        return part.product

    @apply
    def sold(self, total: Total, part: Line) -> None:
        total.count += 1

    @apply
    def given(self, total: Total, part: Gift) -> None:
        total.amount -= 1


def test_an_event_is_fanned_out_into_parts_with_keys_of_their_own() -> None:
    it = declared(Products, Order)

    found = folded(*it, Order(["pen", "ink", "pen", "*ink"]), Order([]))

    assert found == {"pen": Total(2), "ink": Total(1, -1)}


def test_an_event_may_be_handled_itself_before_its_parts() -> None:
    class Both(Products):
        @key
        def every(self, event: Order) -> str:
            return "pen"

        @create
        def order(self, event: Order) -> Total:
            return Total(amount=100)

    assert folded(*declared(Both, Order), Order(["pen"])) == {"pen": Total(1, 100)}


def test_deletion_by_state_and_a_new_beginning() -> None:
    class Sales(Shops):
        @delete
        def enough(self, total: Total) -> bool:
            return total.count == 2

    assert folded(*declared(Sales, Sold), Sold("x"), Sold("x"), Sold("x", 9)) == {"x": Total(1, 9)}


def test_key_fan_out_and_handlers_may_take_the_envelope() -> None:
    class Streams(MultiStream[Total]):
        @key
        def stream(self, event: RecordedEvent[Order]) -> str:
            return event.stream

        @key
        def part(self, part: Line) -> str:
            return part.product

        @fan_out
        def lines(self, event: RecordedEvent[Order]) -> list[Line]:
            return [Line(f"{event.stream} {name}") for name in event.data.lines]

        @apply
        def order(self, total: Total, event: RecordedEvent[Order]) -> None:
            total.amount = event.position

        @apply
        def line(self, total: Total, part: Line) -> None:
            total.count += 1

    it = declared(Streams, Order)

    assert PageFold(*it).wants_envelope
    assert folded(*it, ("s1", Order(["a"]))) == {"s1": Total(0, 1), "s1 a": Total(1, 0)}


# ---- definitions that cannot work


def test_every_handled_class_needs_a_key() -> None:
    class Keyless(MultiStream[Total]):
        @apply
        def sold(self, total: Total, event: Sold) -> None: ...

    class KeylessPart(MultiStream[Total]):
        @fan_out
        def lines(self, event: Order) -> list[Line]:
            return []

        @apply
        def line(self, total: Total, part: Line) -> None: ...

    with pytest.raises(InvalidDefinition, match="projection 'it': no @sl.key for Sold"):
        declared(Keyless, Sold)
    with pytest.raises(InvalidDefinition, match="no @sl.key for Line"):
        declared(KeylessPart, Order)


def test_a_class_has_one_key_method_and_one_fan_out() -> None:
    class TwoKeys(Shops):
        @key
        def also(self, event: Sold) -> str:
            return ""

    class TwoFans(Products):
        @fan_out
        def also(self, event: Order) -> list[Line]:
            return []

    with pytest.raises(InvalidDefinition, match="also: Sold has a key already"):
        declared(TwoKeys, Sold)
    with pytest.raises(InvalidDefinition, match="also: Order is fanned out already"):
        declared(TwoFans, Order)


def test_a_fan_out_says_what_its_parts_are() -> None:
    class Silent(MultiStream[Total]):
        @fan_out
        def lines(self, event: Order): ...

    with pytest.raises(InvalidDefinition, match=r"lines: annotate what it returns, as in -> list"):
        declared(Silent, Order)


def test_a_key_method_takes_one_annotated_event() -> None:
    class Bare(Shops):
        @key
        def shop(self, event): ...

    class Two(Shops):
        @key
        def shop(self, total: Total, event: Sold) -> str:  # type: ignore[override]  # that is the mistake
            return ""

    for projection in (Bare, Two):
        with pytest.raises(InvalidDefinition, match=r"shop: a key method is \(self, event\)"):
            declared(projection, Sold)
