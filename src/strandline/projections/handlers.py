"""Finds a projection's handlers: decorated methods, told apart by what they are annotated with.

    @sl.create   def opened(self, event: AccountOpened) -> Account
    @sl.apply    def deposited(self, account: Account, event: MoneyDeposited) -> None
    @sl.delete   def closed(self, event: AccountClosed) -> None
    @sl.delete   def empty(self, account: Account) -> bool
    @sl.key      def owner(self, event: AccountOpened) -> str | list[str]
    @sl.fan_out  def legs(self, event: Travelled) -> list[Leg]
    @sl.effects  async def told(self, changes: sl.Changes[Account], tx: sl.Transaction) -> None
    @sl.enrich   async def rates(self, events: Sequence[sl.RecordedEvent], look: sl.Lookup) -> ...

The event parameter may be annotated with a class, a union, a base class (then every registered
class below it is meant) or ``RecordedEvent[X]`` (then the handler gets the envelope). In a later
stage of a composite also with ``sl.Updated[S]`` or ``sl.Deleted[S]``: a document of an earlier one.
"""

from __future__ import annotations

import inspect
import types as builtin_types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from strandline.errors import InvalidDefinition
from strandline.events.codec import EventTypes
from strandline.events.event import RecordedEvent
from strandline.projections.upstream import Deleted, Updated, is_upstream, upstream_class

F = TypeVar("F", bound=Callable[..., Any])

_MARK = "__strandline_role__"
_WAITING = ("effects", "enrich")  # called once per batch or page, so that they may wait


@dataclass(frozen=True, slots=True)
class Handler:
    """One decorated method: its role, and which parameter is what."""

    name: str
    role: str
    call: Callable[..., Any]
    parameters: tuple[str, ...]
    annotations: Mapping[str, Any]


def create(function: F) -> F:
    """The method makes a new document from the event that begins it."""
    return _marked(function, "create")


def apply(function: F) -> F:
    """The method changes the document in place, or returns the changed one."""
    return _marked(function, "apply")


def delete(function: F) -> F:
    """The document ends: always at the event, or when the method answers True."""
    return _marked(function, "delete")


def key(function: F) -> F:
    """The method says which documents an event belongs to: one id, several, or None for none."""
    return _marked(function, "key")


def fan_out(function: F) -> F:
    """The method turns one event into several parts, each handled like an event of its own."""
    return _marked(function, "fan_out")


def effects(function: F) -> F:
    """The method acts on what a batch has changed, in the batch's transaction; see ``sl.Changes``."""
    return _marked(function, "effects")


def enrich(function: F) -> F:
    """The method looks up what a page of events needs, at once; see ``sl.Lookup``."""
    return _marked(function, "enrich")


def _marked(function: F, role: str) -> F:
    if role in _WAITING:
        if not inspect.iscoroutinefunction(function):
            raise InvalidDefinition(f"{function.__qualname__}: @sl.{role} is for `async def`")
        if len(inspect.signature(function).parameters) != 3:
            takes = "changes, tx" if role == "effects" else "events, look"
            raise InvalidDefinition(f"{function.__qualname__}: it takes (self, {takes})")
    elif inspect.iscoroutinefunction(function):
        raise InvalidDefinition(f"{function.__qualname__}: handlers are plain functions, not async")
    setattr(function, _MARK, role)
    return function


def handlers_of(projection: object, names: Mapping[str, Any] | None = None) -> list[Handler]:
    """Every decorated method of *projection*, base classes' first, in the order written.

    Args:
        projection: The instance.
        names: What annotations may mention besides globals: the locals of a function that
            declares events and projection together.
    """
    found: dict[str, Handler] = {}
    ours = _names_of_ours(type(projection))
    for cls in reversed(type(projection).__mro__):
        for name, function in vars(cls).items():
            role = getattr(function, _MARK, None)
            if role is None:
                found.pop(name, None)  # overridden without the decorator: switched off
                continue
            if name in ours:
                raise InvalidDefinition(
                    f"{cls.__name__}.{name}: projections use this name themselves; the handler"
                    " needs another name"
                )
            hints = {} if role in _WAITING else annotations_of(function, names)
            parameters = tuple(inspect.signature(function).parameters)[1:]
            found.pop(name, None)
            found[name] = Handler(name, role, getattr(projection, name), parameters, hints)
    return list(found.values())


def waiting_method(projection: type) -> str:
    """The name of a method of *projection* that is marked as effects or enrichment, or nothing."""
    for cls in projection.__mro__:
        for name, function in vars(cls).items():
            if getattr(function, _MARK, None) in _WAITING:
                return name
    return ""


def only_handler(handlers: typing.Iterable[Handler], role: str) -> Handler | None:
    """The handler of a role that a projection may have once.

    Raises:
        InvalidDefinition: There are several.
    """
    found = [one for one in handlers if one.role == role]
    if len(found) > 1:
        names = " and ".join(one.name for one in found)
        raise InvalidDefinition(f"{names}: a projection has one @sl.{role} method")
    return found[0] if found else None


def _names_of_ours(projection: type) -> set[str]:
    ours = [cls for cls in projection.__mro__ if cls.__module__.startswith(f"{__package__}.")]
    return {name for cls in ours for name in (*vars(cls), *vars(cls).get("__annotations__", {}))}


def annotations_of(function: Any, names: Mapping[str, Any] | None) -> dict[str, Any]:
    """The resolved annotations of *function*.

    Raises:
        InvalidDefinition: One names something that cannot be found.
    """
    try:
        return typing.get_type_hints(function, localns=dict(names or {}))
    except NameError as error:
        raise InvalidDefinition(f"{function.__qualname__}: annotation {error}") from error


def event_classes(
    annotation: Any, types: EventTypes, parts: typing.Iterable[type[Any]] = ()
) -> tuple[list[type[Any]], bool]:
    """The classes an annotation stands for, and whether the envelope is wanted.

    Raises:
        InvalidDefinition: Nothing registered fits it.
    """
    envelope = False
    chosen: list[type[Any]] = []
    parts = tuple(parts)
    stored = (*types.names, *(one for one in parts if not issubclass(one, Updated | Deleted)))
    for one in _members(annotation):
        origin = typing.get_origin(one)
        if one is RecordedEvent or origin is RecordedEvent:
            envelope = True
            inner = typing.get_args(one)
            members = _members(inner[0]) if inner else [object]
        else:
            members = [one]
        for member in members:
            if is_upstream(member):
                if envelope:
                    raise InvalidDefinition(f"{member}: only stored events have an envelope")
                chosen.append(_upstream(member, parts))
            else:
                chosen.extend(_below(member, stored))
    return list(dict.fromkeys(chosen)), envelope


def _members(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) in (typing.Union, builtin_types.UnionType):
        return [one for part in typing.get_args(annotation) for one in _members(part)]
    return [annotation]


def _upstream(annotation: Any, parts: tuple[type[Any], ...]) -> type[Any]:
    cls = upstream_class(annotation)
    if cls not in parts:
        raise InvalidDefinition(
            f"{cls.__name__}: no earlier stage of a composite has such documents"
        )
    return cls


def _below(cls: Any, known: tuple[type[Any], ...]) -> list[type[Any]]:
    if not isinstance(cls, type):
        raise InvalidDefinition(f"{cls!r} is not an event class")
    found = [one for one in known if issubclass(one, cls)]
    if not found:
        raise InvalidDefinition(
            f"{cls.__name__} is not a registered event: decorate it with @app.event first"
        )
    return found
