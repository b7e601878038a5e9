"""A projection made ready for a scenario, with the event classes that its handlers mention."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping
from typing import Any

from strandline.events.codec import EventTypes, encoded, is_event_class
from strandline.events.event import RecordedEvent
from strandline.projections.handlers import handlers_of
from strandline.projections.multi_stream import MultiStream
from strandline.projections.single_stream import SingleStream
from strandline.testing.differences import words

Definition = SingleStream[Any] | MultiStream[Any]


def bound(
    projection: type[Any],
    happened: Iterable[type[Any]],
    *,
    app: Any,
    names: Mapping[str, Any],
) -> tuple[Definition, EventTypes]:
    """The definition of *projection*, and the event types it is bound to.

    With an *app*, its own; else types made of the classes that handlers mention and those that
    *happened*.
    """
    if app is not None:
        app.registry.bind()
        return app.registry.projection(projection), app.registry.types
    definition: Definition = projection()
    definition.named("scenario", 1, "async")
    types = EventTypes()
    for cls in dict.fromkeys([*_mentioned(definition, names), *happened]):
        if is_event_class(cls):
            types.register(cls, f"{cls.__module__}.{cls.__qualname__}/{len(types.names)}")
    definition.bind(types, names)
    return definition, types


def survived(definition: Definition, name: str, state: Any) -> Any:
    """*state* as it is read after it was stored.

    Raises:
        AssertionError: It is not what was stored: it would change whenever it is loaded again.
    """
    __tracebackhide__ = True
    read = definition.folder.decode(encoded(state, f"document {name}").decode())
    plain = "__eq__" not in {name for cls in type(state).__mro__[:-1] for name in vars(cls)}
    if words(read) != words(state) if plain else read != state:
        raise AssertionError(
            f"document {name!r} does not survive storage. In memory:\n{state!r}\n{words(state)}\n"
            f"stored and read again:\n{read!r}\n{words(read)}"
        )
    return state


def _mentioned(definition: Definition, names: Mapping[str, Any]) -> list[type[Any]]:
    """The classes in annotations of handlers, and those below base classes there."""
    found: list[type[Any]] = []
    for one in definition.members or (definition,):
        for handler in handlers_of(one, names):
            for parameter in handler.parameters:
                found += _classes(handler.annotations.get(parameter))
    return found


def _classes(annotation: Any) -> list[type[Any]]:
    if annotation is RecordedEvent or annotation in (object, Any, None):
        return []
    arguments = typing.get_args(annotation)
    if arguments:
        return [cls for one in arguments for cls in _classes(one)]
    if not isinstance(annotation, type):
        return []
    below: list[type[Any]] = annotation.__subclasses__()
    return [annotation, *(cls for one in below for cls in _classes(one))]
