"""Whether one decoded event may be handed to several read models at once.

Only where nothing in it can change: a handler that keeps an event's list and adds to it must not
show in another read model. Everything else is decoded again for each.
"""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Any

import msgspec
from msgspec import inspect

_CHANGE = (
    inspect.AnyType,
    inspect.ByteArrayType,
    inspect.CustomType,
    inspect.DictType,
    inspect.ListType,
    inspect.MemoryViewType,
    inspect.SetType,
    inspect.TypedDictType,
)


def is_unchangeable(cls: type[Any]) -> bool:
    """Whether objects of *cls*, and all they hold by its annotations, cannot change."""
    try:
        return _unchangeable(inspect.type_info(cls), set())
    except Exception:  # annotations that cannot be resolved, or a kind msgspec does not know
        return False


def _unchangeable(kind: Any, seen: set[int]) -> bool:
    if id(kind) in seen:
        return True  # a recursive type: decided by the rest of it
    seen.add(id(kind))
    if isinstance(kind, _CHANGE):
        return False
    if isinstance(kind, inspect.StructType | inspect.DataclassType) and not _frozen(kind.cls):
        return False
    return all(_unchangeable(one, seen) for one in _inside(kind))


def _frozen(cls: type[Any]) -> bool:
    if issubclass(cls, msgspec.Struct):
        return cls.__struct_config__.frozen
    if is_dataclass(cls):
        frozen: bool = cls.__dataclass_params__.frozen  # type: ignore[attr-defined]  # every dataclass has it
        return frozen
    return False


def _inside(kind: Any) -> list[Any]:
    """The types that a type is made of."""
    if isinstance(kind, inspect.UnionType):
        return list(kind.types)
    if isinstance(kind, inspect.TupleType):
        return list(kind.item_types)
    if isinstance(kind, inspect.VarTupleType | inspect.FrozenSetType):
        return [kind.item_type]
    if isinstance(kind, inspect.Metadata):
        return [kind.type]
    fields = getattr(kind, "fields", ())
    return [one.type for one in fields]
