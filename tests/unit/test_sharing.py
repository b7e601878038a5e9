"""Which events may be handed to several read models as one object."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Literal, NamedTuple
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest

from strandline.events.sharing import is_unchangeable


class Colour(Enum):
    RED = "red"


class Inner(msgspec.Struct, frozen=True):
    tags: tuple[str, ...] = ()


class Pair(NamedTuple):
    left: int
    right: str


@dataclass(frozen=True)
class Fixed:
    id: UUID
    at: datetime
    price: Decimal | None
    colour: Colour
    word: Literal["a", "b"]
    inner: Inner
    pair: Pair
    both: tuple[int, str]
    numbers: frozenset[int]


@dataclass(frozen=True)
class Tree:
    left: Tree | None = None


class Loose(msgspec.Struct):
    number: int = 0


@attrs.frozen
class Attrs:
    number: int = 0


class Model(pydantic.BaseModel):
    number: int = 0


def holder(annotation: Any) -> type[Any]:
    return msgspec.defstruct("Holder", [("value", annotation)], frozen=True)


def test_frozen_classes_of_unchangeable_values_are_unchangeable() -> None:
    assert is_unchangeable(Fixed)
    assert is_unchangeable(Tree)
    assert is_unchangeable(holder(Fixed | None))


@pytest.mark.parametrize(
    "annotation",
    [list[int], dict[str, int], set[int], Any, object, bytearray, Loose, tuple[Loose, ...],
     int | list[int], Model],
)  # fmt: skip
def test_one_changeable_part_makes_the_whole_changeable(annotation: Any) -> None:
    assert not is_unchangeable(holder(annotation))


@pytest.mark.parametrize("cls", [Loose, Attrs, Model])
def test_classes_that_may_change_or_cannot_be_told_are_changeable(cls: type[Any]) -> None:
    assert not is_unchangeable(cls)
