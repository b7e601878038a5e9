"""Projection of documents that gather events of many streams under keys of their own."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Generic

from strandline.errors import InvalidDefinition, InvalidStream
from strandline.events.codec import EventTypes
from strandline.events.event import MAX_STREAM_BYTES, checked_stream
from strandline.projections.folding import Folder, State, compiled, state_class
from strandline.projections.handlers import Handler, event_classes, handlers_of
from strandline.projections.projection import Projection

Keys = Callable[[Any], Any]


class MultiStream(Projection, Generic[State]):
    """One document per key. ``@sl.key`` methods say which keys an event has.

    With ``@sl.fan_out`` an event becomes several parts; each part has its own key and handlers,
    and so may the event itself, which is handled before its parts.
    """

    kind: ClassVar[str] = "multi stream"
    folder: Folder[State]
    keys: dict[type[Any], tuple[Keys, bool]]
    fans: dict[type[Any], tuple[Callable[[Any], Iterable[Any]], bool]]

    @property
    def table(self) -> str:
        """See ``Projection``."""
        return f"doc_{self.name}_v{self.version}"

    def bind(self, types: EventTypes, names: Mapping[str, Any] | None) -> None:
        """See ``Projection``."""
        state = state_class(type(self), MultiStream)
        handlers = handlers_of(self, names)
        self.take_waiting_handlers(handlers)
        self.fans = {}
        parts: list[type[Any]] = list(self.upstream)
        for handler in handlers:
            if handler.role == "fan_out":
                parts.extend(self._fan(handler, types))
        self.folder = compiled(state, handlers, types, parts=parts)
        self.keys = {}
        for handler in handlers:
            if handler.role == "key":
                classes, envelope = event_classes(_only(handler), types, parts)
                for cls in classes:
                    if cls in self.keys:
                        raise InvalidDefinition(f"{handler.name}: {cls.__name__} has a key already")
                    self.keys[cls] = (handler.call, envelope)
        missing = [cls.__name__ for cls in self.folder.steps if cls not in self.keys]
        if missing:
            raise InvalidDefinition(
                f"projection {self.name!r}: no @sl.key for {', '.join(sorted(missing))}"
            )

    @property
    def hears_upstream(self) -> bool:
        """See ``Projection``."""
        return any(cls in self.upstream for cls in self.event_classes)

    @property
    def event_classes(self) -> tuple[type[Any], ...]:
        """The event classes it handles, those it only fans out included."""
        return tuple(dict.fromkeys((*self.folder.steps, *self.fans)))

    def pieces(self, event: Any, envelope: Any) -> Iterable[Any]:
        """*event* itself if it is handled, then the parts it fans out into."""
        cls = type(event)
        if cls in self.folder.steps:
            yield event
        fan = self.fans.get(cls)
        if fan is not None:
            yield from fan[0](envelope if fan[1] else event)

    def keys_of(self, piece: Any, envelope: Any) -> tuple[str, ...]:
        """The ids of the documents that *piece* belongs to, each once.

        Raises:
            TypeError: A key is neither a text nor an int, UUID, date or the like.
            ValueError: It cannot be stored: it is too long for an index, or holds a NUL.
        """
        call, wants = self.keys[type(piece)]
        found = call(envelope if wants else piece)
        if found is None:
            return ()
        if isinstance(found, str):
            return (_storable(found),)
        if isinstance(found, list | tuple | set | frozenset):
            return tuple(dict.fromkeys(_text(one) for one in found))
        return (_text(found),)

    def _fan(self, handler: Handler, types: EventTypes) -> list[type[Any]]:
        classes, envelope = event_classes(_only(handler), types, self.upstream)
        for cls in classes:
            if cls in self.fans:
                raise InvalidDefinition(f"{handler.name}: {cls.__name__} is fanned out already")
            self.fans[cls] = (handler.call, envelope)
        return _part_classes(handler)


def _only(handler: Handler) -> Any:
    if len(handler.parameters) != 1 or handler.parameters[0] not in handler.annotations:
        raise InvalidDefinition(
            f"{handler.name}: a {handler.role} method is (self, event) with the event annotated"
        )
    return handler.annotations[handler.parameters[0]]


def _part_classes(handler: Handler) -> list[type[Any]]:
    """The classes in the return annotation: ``list[Leg]``, ``Iterator[Leg | Stop]``."""
    inner = typing.get_args(handler.annotations.get("return"))
    found: list[type[Any]] = []
    for one in inner:
        members = typing.get_args(one) or (one,)
        found.extend(cls for cls in members if isinstance(cls, type) and cls is not type(None))
    if not found:
        raise InvalidDefinition(f"{handler.name}: annotate what it returns, as in -> list[Leg]")
    return found


def _text(value: Any) -> str:
    if value is None or isinstance(value, float | dict | list | bytes):
        raise TypeError(f"a key is a text, number, UUID or date, not {value!r}")
    return _storable(value if isinstance(value, str) else str(value))


def _storable(key: str) -> str:
    """*key*, within the limits of stream ids; only that it may be empty."""
    if not key or (key.isascii() and "\0" not in key and len(key) <= MAX_STREAM_BYTES):
        return key
    try:
        return checked_stream(key)
    except InvalidStream:
        raise ValueError(
            f"a document's id has up to {MAX_STREAM_BYTES} bytes of UTF-8 and no NUL;"
            f" got {key[:80]!r} ({len(key)} characters)"
        ) from None
