"""Where a field of an event class stands in the stored JSON, what kind it is, what it is when missing."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Any
from uuid import UUID

import msgspec

from strandline.errors import InvalidDefinition
from strandline.events.codec import is_event_class


class Kind(StrEnum):
    """What a value is, as far as columns must know."""

    INT = "int"
    FLOAT = "float"
    DECIMAL = "decimal"
    TEXT = "text"
    BOOL = "bool"
    DATETIME = "datetime"
    DATE = "date"
    UUID = "uuid"
    JSON = "json"
    ANY = "any"  # not known before it is read


_KINDS: dict[Any, Kind] = {
    int: Kind.INT,
    float: Kind.FLOAT,
    Decimal: Kind.DECIMAL,
    str: Kind.TEXT,
    bytes: Kind.TEXT,
    bool: Kind.BOOL,
    datetime: Kind.DATETIME,
    date: Kind.DATE,
    UUID: Kind.UUID,
}


@dataclasses.dataclass(frozen=True, slots=True)
class StoredField:
    """A field of an event class as it is stored.

    Attributes:
        keys: The path in the JSON.
        missing: For each key of the path, the JSON of what the field is when that key is missing:
            the class's default; None where that is null or cannot be told.
    """

    keys: tuple[str, ...]
    kind: Kind
    missing: tuple[Any, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class _Member:
    key: str
    annotation: Any
    default: Any


def stored_field(cls: type[Any], path: str) -> StoredField:
    """The field of *cls* at *path*, e.g. ``"amount"`` or ``"address.city"``.

    Raises:
        InvalidDefinition: There is no such field.
    """
    keys: list[str] = []
    missing: list[Any] = []
    names = path.split(".")
    inside: Any = cls
    for depth, name in enumerate(names):
        members = _members(inside)
        if members is None:  # a dict, or not known: any key may be there
            keys += names[depth:]
            missing += [None] * (len(names) - depth)
            return StoredField(tuple(keys), Kind.ANY, tuple(missing))
        if name not in members:
            raise InvalidDefinition(_unknown(cls, path, inside, members))
        keys.append(members[name].key)
        missing.append(_dug(members[name].default, names[depth + 1 :]))
        inside = _bare(members[name].annotation)
    return StoredField(tuple(keys), kind_of(inside), tuple(missing))


def kind_of(annotation: Any) -> Kind:
    """The kind of values with this annotation."""
    inside = _bare(annotation)
    origin = typing.get_origin(inside) or inside
    if origin is typing.Literal:
        return _common(type(one) for one in typing.get_args(inside))
    if origin in (typing.Union, types.UnionType):
        return _common(typing.get_args(inside))
    return _kind_of_class(origin) if isinstance(origin, type) else Kind.ANY


def _kind_of_class(cls: type[Any]) -> Kind:
    if issubclass(cls, Enum):
        return _common(type(one.value) for one in cls)
    if is_event_class(cls) or issubclass(cls, list | tuple | set | frozenset | dict | Mapping):
        return Kind.JSON
    return next((_KINDS[base] for base in cls.__mro__ if base in _KINDS), Kind.ANY)


def _common(annotations: Iterable[Any]) -> Kind:
    kinds = {kind_of(one) for one in annotations if one not in (None, types.NoneType)}
    return kinds.pop() if len(kinds) == 1 else Kind.ANY


def _bare(annotation: Any) -> Any:
    """*annotation* without Annotated, NewType, and the None of an optional one."""
    while True:
        origin = typing.get_origin(annotation)
        if origin is typing.Annotated:
            annotation = typing.get_args(annotation)[0]
        elif isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        elif origin in (typing.Union, types.UnionType):
            nothing = (types.NoneType, msgspec.UnsetType)
            rest = [one for one in typing.get_args(annotation) if one not in nothing]
            if len(rest) != 1:
                return annotation
            annotation = rest[0]
        else:
            return annotation


def _members(cls: Any) -> dict[str, _Member] | None:
    """The fields of a class by name; None where any may be there."""
    origin = typing.get_origin(cls) or cls
    if not isinstance(origin, type) or not is_event_class(origin):
        known = origin in _KINDS or (isinstance(origin, type) and issubclass(origin, Enum))
        return {} if known else None
    if hasattr(origin, "model_fields"):
        return _model_members(origin)
    if issubclass(origin, msgspec.Struct):
        return {
            one.name: _Member(one.encode_name, one.type, _value(one.default, one.default_factory))
            for one in msgspec.structs.fields(origin)
        }
    hints = _hints(origin)
    declared = (
        dataclasses.fields(origin) if dataclasses.is_dataclass(origin) else origin.__attrs_attrs__  # type: ignore[attr-defined]  # what makes it an attrs class
    )
    return {
        one.name: _Member(one.name, hints.get(one.name, Any), _value(one.default, _factory(one)))
        for one in declared
    }


def _factory(declared: Any) -> Any:
    """The factory of a dataclass's field, or the one that attrs keeps in the default."""
    return getattr(declared, "default_factory", getattr(declared.default, "factory", None))


def _model_members(model: Any) -> dict[str, _Member]:
    by_alias = bool(model.model_config.get("serialize_by_alias"))
    found = {
        name: _Member(
            (one.serialization_alias or name) if by_alias else name,
            one.annotation,
            _value(one.default, one.default_factory),
        )
        for name, one in model.model_fields.items()
    }
    for name, one in model.model_computed_fields.items():
        found[name] = _Member(name, one.return_type, None)
    return found


def _hints(cls: type[Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except NameError:
        return {}  # nothing is known of its types then


def _value(default: Any, factory: Any) -> Any:
    """What a missing field is, if that is the same each time."""
    if factory in (list, tuple, set, frozenset):
        return []
    if factory is dict:
        return {}
    return None if type(default).__module__.startswith("attr") else default  # attrs.NOTHING


def _dug(default: Any, names: Iterable[str]) -> Any:
    """The JSON of *default*, or of what stands in it under *names*; None where there is none."""
    try:
        dump = getattr(default, "model_dump", None)
        found = (
            dump(mode="json") if dump is not None else msgspec.to_builtins(default, str_keys=True)
        )
    except Exception:  # a marker for "required", or what has no JSON form
        return None
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _unknown(cls: type[Any], path: str, inside: Any, members: Mapping[str, _Member]) -> str:
    where = "" if inside is cls else f" (in {getattr(inside, '__name__', inside)})"
    known = ", ".join(members) or "none"
    return (
        f"{cls.__name__} has no field {path!r}{where}; its fields: {known}."
        f" A constant text is written sl.constant({path!r})"
    )
