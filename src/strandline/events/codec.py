"""Between event objects and JSON: names, aliases, upcasters.

An event's name is what is stored; its class may be renamed or moved at will. msgspec structs,
dataclasses and attrs classes are encoded and decoded by msgspec, pydantic models by themselves.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, is_dataclass
from typing import Any, TypeAlias

import msgspec

from strandline.errors import (
    InvalidDefinition,
    InvalidEvent,
    UndecodableEvent,
    UnknownEventType,
    UnregisteredEvent,
)
from strandline.events.event import MAX_TYPE_BYTES, Unknown

Decode: TypeAlias = Callable[[str], Any]
Upcast: TypeAlias = Callable[[dict[str, Any]], Any]

_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class EventTypes:
    """The event classes of an app and the names they are stored under."""

    names: dict[type[Any], str] = field(default_factory=dict)
    classes: dict[str, type[Any]] = field(default_factory=dict)
    decoders: dict[str, Decode] = field(default_factory=dict)
    aliases: dict[type[Any], tuple[str, ...]] = field(default_factory=dict)
    upcast_names: set[str] = field(default_factory=set)

    def register(self, cls: type[Any], name: str, aliases: Iterable[str] = ()) -> None:
        """Store events of *cls* under *name*; read those stored under *aliases* as *cls* too.

        Raises:
            InvalidDefinition: The class cannot be encoded, or a name is taken or not one.
        """
        if not is_event_class(cls):
            raise InvalidDefinition(
                f"{cls!r} is not a dataclass, msgspec.Struct, attrs class or pydantic model"
            )
        if cls in self.names:
            raise InvalidDefinition(f"{cls.__name__} is registered as {self.names[cls]!r} already")
        aliases = tuple(aliases)
        for one in (name, *aliases):
            if not _is_name(one):
                raise InvalidDefinition(f"event name {one!r} has not 1 to {MAX_TYPE_BYTES} bytes")
            if one in self.classes:
                raise InvalidDefinition(
                    f"event name {one!r} is taken by {self.classes[one].__name__}"
                )
        decode = _decoder(cls)
        self.names[cls] = name
        self.aliases[cls] = aliases
        for one in (name, *aliases):
            self.classes[one] = cls
            self.decoders[one] = decode

    def upcast(self, name: str, cls: type[Any], change: Upcast) -> None:
        """Read events stored under *name* through *change*: old JSON in, new JSON or object out.

        Raises:
            InvalidDefinition: *cls* is not registered, or *name* belongs to another class.
        """
        if cls not in self.names:
            raise InvalidDefinition(f"register {cls.__name__} with app.event before its upcasters")
        if self.classes.get(name, cls) is not cls:
            raise InvalidDefinition(
                f"event name {name!r} is taken by {self.classes[name].__name__}"
            )
        self.classes[name] = cls
        if name not in (self.names[cls], *self.aliases[cls]):
            self.aliases[cls] = (*self.aliases[cls], name)
        self.upcast_names.add(name)
        self.decoders[name] = _upcasting(cls, change)

    def name_of(self, cls: type[Any]) -> str:
        """The name events of *cls* are stored under.

        Raises:
            UnregisteredEvent: ``app.event`` was not called for it.
        """
        name = self.names.get(cls)
        if name is None:
            raise UnregisteredEvent(
                f"{cls.__module__}.{cls.__qualname__} is not registered:"
                ' decorate it with @app.event("its-name")'
            )
        return name

    def stored_names(self, cls: type[Any]) -> tuple[str, ...]:
        """Every name under which events of *cls* may be stored."""
        return (self.name_of(cls), *self.aliases[cls])

    def encode(self, event: Any) -> tuple[str, bytes]:
        """Name and JSON of *event*.

        Raises:
            UnregisteredEvent: Its class has no name.
            InvalidEvent: It holds what JSON or PostgreSQL cannot: NUL characters, NaN, lone
                surrogates, objects without a JSON form.
        """
        name = self.names.get(type(event)) or self.name_of(type(event))
        return name, encoded(event, name)

    def decode(self, name: str, data: str, *, position: int = 0) -> Any:
        """The object stored as *data* under *name*.

        Raises:
            UnknownEventType: No class has this name or alias.
            UndecodableEvent: The JSON does not fit the class.
        """
        decode = self.decoders.get(name)
        if decode is None:
            raise UnknownEventType(name, position=position)
        try:
            return decode(data)
        except Exception as error:  # msgspec, pydantic and the user's upcasters raise anything
            raise UndecodableEvent(name, str(error), position=position) from error

    def decode_or_unknown(self, name: str, data: str, *, position: int = 0) -> Any:
        """Like ``decode``, with an ``Unknown`` for a type that is not registered."""
        if name not in self.decoders:
            return Unknown(name, data)
        return self.decode(name, data, position=position)


def _is_name(name: Any) -> bool:
    if not isinstance(name, str) or "\0" in name:
        return False
    try:
        return 1 <= len(name.encode()) <= MAX_TYPE_BYTES
    except UnicodeEncodeError:  # a lone surrogate
        return False


def is_event_class(cls: Any) -> bool:
    """Whether objects of *cls* can be events."""
    return isinstance(cls, type) and (
        is_dataclass(cls)
        or issubclass(cls, msgspec.Struct)
        or hasattr(cls, "__attrs_attrs__")
        or hasattr(cls, "model_validate_json")
    )


def encoded(value: Any, what: str) -> bytes:
    """*value* as JSON that PostgreSQL can store.

    Raises:
        InvalidEvent: It has no JSON form, or holds NUL characters, NaN or infinity.
    """
    try:
        dump = getattr(value, "model_dump_json", None)
        data = dump().encode() if dump is not None else _encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidEvent(f"{what!r} has no JSON form: {error}") from error
    if b"\\u0000" in data and _NUL.search(data):
        raise InvalidEvent(f"{what!r} holds a NUL character, which PostgreSQL cannot store")
    if b"null" in data and _has_odd_float(value):
        raise InvalidEvent(f"{what!r} holds NaN or infinity, which JSON cannot tell from null")
    return data


def _has_odd_float(value: Any) -> bool:
    """Whether a float in *value* was written as null."""
    if hasattr(value, "model_dump"):
        value = value.model_dump()
    waiting = [msgspec.to_builtins(value)]
    while waiting:
        one = waiting.pop()
        if isinstance(one, float) and not math.isfinite(one):
            return True
        if isinstance(one, dict):
            waiting.extend(one.values())
        elif isinstance(one, list | tuple | set | frozenset):
            waiting.extend(one)
    return False


def decoder(cls: type[Any]) -> Decode:
    """JSON text → object of *cls*, for documents and events."""
    return _decoder(cls)


def _decoder(cls: type[Any]) -> Decode:
    validate = getattr(cls, "model_validate_json", None)
    if validate is not None:
        found: Decode = validate
        return found
    try:
        return msgspec.json.Decoder(cls).decode
    except (TypeError, NameError) as error:
        raise InvalidDefinition(f"{cls.__name__} cannot be read from JSON: {error}") from error


def _upcasting(cls: type[Any], change: Upcast) -> Decode:
    plain = msgspec.json.Decoder(dict[str, Any]).decode
    validate = getattr(cls, "model_validate", None)

    def decode(data: str) -> Any:
        changed = change(plain(data))
        if isinstance(changed, cls):
            return changed
        return validate(changed) if validate is not None else msgspec.convert(changed, cls)

    return decode
