"""From handlers to one step function per event class: state and event in, state out.

The rules, for every kind of fold:

* With at least one ``@create`` handler, documents begin only there; an event that finds no
  document and has no ``@create`` is passed over. Without any, a document begins as ``State()``.
* ``@create`` runs when there is no document, or when the event has no ``@apply``.
* ``@apply`` changes the document or returns a new one; then the ``@delete`` handlers are asked.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from strandline.errors import InvalidDefinition
from strandline.events.codec import EventTypes, decoder
from strandline.projections.handlers import Handler, event_classes

State = TypeVar("State")

Step = Callable[[Any, Any, Any], Any]
"""``(state or None, event object, envelope or None) -> state or None``"""


@dataclass(slots=True)
class Roles:
    """What a projection does with one event class."""

    create: tuple[Callable[..., Any], bool] | None = None
    apply: tuple[Callable[..., Any], bool] | None = None
    delete: tuple[Callable[..., Any], bool, bool] | None = None  # (call, envelope, takes state)


@dataclass(frozen=True, slots=True)
class Folder(Generic[State]):
    """The compiled fold of a projection.

    Attributes:
        steps: Event class → its step, and whether it wants the envelope.
        decode: JSON of a document → state.
    """

    state: type[State]
    steps: dict[type[Any], tuple[Step, bool]]
    decode: Callable[[str], State]


def state_class(projection: type, base: type) -> type[Any]:
    """The ``S`` of ``class P(Base[S])``.

    Raises:
        InvalidDefinition: It is missing.
    """
    for cls in projection.__mro__:
        for one in getattr(cls, "__orig_bases__", ()):
            if typing.get_origin(one) is base:
                (state,) = typing.get_args(one)
                if isinstance(state, type):
                    return state
    raise InvalidDefinition(
        f"{projection.__name__}: say what is folded, as in {base.__name__}[Account]"
    )


def compiled(
    state: type[State],
    handlers: Iterable[Handler],
    types: EventTypes,
    *,
    parts: Iterable[type[Any]] = (),
) -> Folder[State]:
    """The fold made of *handlers*.

    Raises:
        InvalidDefinition: A handler has the wrong shape, or two want the same event.
    """
    handlers = list(handlers)
    parts = tuple(parts)
    by_class: dict[type[Any], Roles] = {}
    ending: list[Callable[[Any], bool]] = []
    for handler in handlers:
        if handler.role in ("create", "apply", "delete"):
            _sort_in(handler, state, types, parts, by_class, ending)
    if not by_class:
        raise InvalidDefinition(f"a projection of {state.__name__} handles no event")
    is_created = any(roles.create for roles in by_class.values())
    begin = None if is_created else _beginning(state)
    steps = {
        cls: (_step(roles, begin, tuple(ending)), _wants_envelope(roles))
        for cls, roles in by_class.items()
    }
    return Folder(state, steps, decoder(state))


def _sort_in(
    handler: Handler,
    state: type[Any],
    types: EventTypes,
    parts: tuple[type[Any], ...],
    by_class: dict[type[Any], Roles],
    ending: list[Callable[[Any], bool]],
) -> None:
    takes_state, event = _shape(handler, state)
    if event is None:
        ending.append(handler.call)
        return
    classes, envelope = event_classes(handler.annotations[event], types, parts)
    for cls in classes:
        roles = by_class.setdefault(cls, Roles())
        if getattr(roles, handler.role) is not None:
            raise InvalidDefinition(
                f"{handler.name}: {cls.__name__} has a handler of role {handler.role} already"
            )
        if handler.role == "delete":
            roles.delete = (handler.call, envelope, takes_state)
        else:
            setattr(roles, handler.role, (handler.call, envelope))


def _shape(handler: Handler, state: type[Any]) -> tuple[bool, str | None]:
    """Whether the handler takes the state, and the name of its event parameter."""
    names = handler.parameters
    untyped = [name for name in names if name not in handler.annotations]
    if untyped:
        raise InvalidDefinition(f"{handler.name}: annotate {', '.join(untyped)}")
    if handler.role == "create" and len(names) == 1:
        return False, names[0]
    if handler.role == "apply" and len(names) == 2:
        return True, names[1]
    if handler.role == "delete" and len(names) == 2:
        return True, names[1]
    if handler.role == "delete" and len(names) == 1:
        return (True, None) if handler.annotations[names[0]] is state else (False, names[0])
    shapes = {"create": "(self, event)", "apply": "(self, state, event)"}
    wanted = shapes.get(handler.role, "(self, event), (self, state) or (self, state, event)")
    raise InvalidDefinition(f"{handler.name}: a {handler.role} handler is {wanted}")


def _beginning(state: type[Any]) -> Callable[[], Any]:
    try:
        state()
    except Exception as error:  # whatever the user's class raises
        raise InvalidDefinition(
            f"{state.__name__}() needs arguments, so a projection of it needs an @sl.create handler"
        ) from error
    return state


def _wants_envelope(roles: Roles) -> bool:
    return any(one is not None and one[1] for one in (roles.create, roles.apply, roles.delete))


def _step(  # noqa: C901 - the rules of the page above, in their order
    roles: Roles,
    begin: Callable[[], Any] | None,
    ending: tuple[Callable[[Any], bool], ...],
) -> Step:
    create, apply, delete = roles.create, roles.apply, roles.delete
    plain = create is None and delete is None and not ending
    if plain and apply is not None and not apply[1]:
        return _plain_step(apply[0], begin)

    def step(state: Any, event: Any, envelope: Any) -> Any:  # noqa: C901 - the same
        if create is not None and (state is None or apply is None):
            state = create[0](envelope if create[1] else event)
        elif apply is not None:
            if state is None:
                if begin is None:
                    return None
                state = begin()
            changed = apply[0](state, envelope if apply[1] else event)
            if changed is not None:
                state = changed
        if state is None:
            return None
        if delete is not None:
            call, wants, takes_state = delete
            given = envelope if wants else event
            if call(state, given) if takes_state else call(given) is not False:
                return None
        for ends in ending:
            if ends(state):
                return None
        return state

    return step


def _plain_step(apply: Callable[..., Any], begin: Callable[[], Any] | None) -> Step:
    """The commonest case, without the questions whose answer is known."""

    def step(state: Any, event: Any, _: Any) -> Any:
        if state is None:
            if begin is None:
                return None
            state = begin()
        changed = apply(state, event)
        return state if changed is None else changed

    return step
