"""The declaring side of an app: events, upcasters, projections, subscriptions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from strandline.errors import InvalidDefinition
from strandline.projections.failure_policy import ErrorPolicy
from strandline.projections.projection import Projection
from strandline.projections.registry import Registry
from strandline.projections.subscription import Handle, subscription

C = TypeVar("C", bound=type[Any])
P = TypeVar("P", bound=type[Projection])
F = TypeVar("F", bound=Callable[..., Any])


class Registration:
    """Decorators that fill a registry."""

    registry: Registry

    def event(self, name: str, *, aliases: Iterable[str] = ()) -> Callable[[C], C]:
        """Store events of the decorated class under *name*, whatever the class is called.

        Args:
            name: What is stored; never change it. 1 to 200 bytes.
            aliases: Older names; events stored under them are read as this class.

        Raises:
            InvalidDefinition: The class is not a dataclass, msgspec struct, attrs class or pydantic
                model, or a name is taken.
        """

        def register(cls: C) -> C:
            self.registry.types.register(cls, name, aliases)
            return cls

        return register

    def upcast(self, name: str, to: type[Any]) -> Callable[[F], F]:
        """Read events stored under *name* through the decorated function.

        It gets the stored JSON as a dict and answers the JSON of today, or an object of *to*.
        *name* is the old name of a renamed event, or today's name when the shape has changed.
        """

        def register(change: F) -> F:
            self.registry.types.upcast(name, to, change)
            return change

        return register

    def projection(
        self,
        name: str,
        *,
        version: int = 1,
        lifecycle: str = "async",
        shards: int = 1,
        on_error: ErrorPolicy | None = None,
    ) -> Callable[[P], P]:
        """Register the decorated class as projection *name*.

        Args:
            name: 1 to 40 of a-z, 0-9 and _; part of the table's name.
            version: Raise it when the rules change: the new version is built beside the old one, and
                both may be registered; the name means the highest. ``retire`` ends the old one.
            lifecycle: ``"async"``: by a node; ``"inline"``: in the append's transaction;
                ``"live"``: folded on demand, stored nowhere. May be changed later.
            shards: Into how many parts it is cut that different nodes can run: by the hash of the
                stream; of the key, for ``sl.MultiStream`` and ``sl.Table``. Can be changed at any
                time: the parts stop at one position, and the new ones go on there.
            on_error: What is done about events that it cannot process, while a node runs it; the
                settings ``on_apply_failed``, ``on_undecodable`` and ``on_unknown_type`` when None.

        Raises:
            InvalidDefinition: A handler cannot work; the message says which and why.
        """
        names = sys._getframe(1).f_locals  # events may be local to the function that declares them

        def register(cls: P) -> P:
            if not (isinstance(cls, type) and issubclass(cls, Projection)):
                raise InvalidDefinition(
                    f"projection {name!r}: derive the class from sl.SingleStream, sl.MultiStream,"
                    " sl.Table or sl.Sql"
                )
            definition = cls()
            definition.named(name, version, lifecycle, shards, on_error)
            self.registry.add_projection(definition, names)
            return cls

        return register

    def subscription(
        self,
        name: str,
        *,
        types: Iterable[type[Any]] = (),
        start: str | int = "beginning",
        batch_events: int | None = None,
        shards: int = 1,
        on_error: ErrorPolicy | None = None,
    ) -> Callable[[F], F]:
        """Call the decorated function with batches of events, in order.

        ``async def f(batch, tx)``: what it does by ``tx`` commits with the checkpoint, exactly
        once. ``async def f(batch)``: at least once.

        Args:
            name: 1 to 40 of a-z, 0-9 and _.
            types: Only events of these classes; all when empty.
            start: Where it begins when it is new: ``"beginning"``, ``"present"`` or a position.
            batch_events: Events in a batch at the most; the setting ``page_events`` when None.
            shards: Into how many parts it is cut that different nodes can run, by the hash of the
                stream: events of one stream stay in order, those of different streams do not.
            on_error: As for projections. An outside system that is away fails every event: let its
                errors pause, e.g. ``sl.ErrorPolicy(exceptions={ConnectionError: "pause"})``.
        """

        def register(handle: F) -> F:
            made: Handle = handle
            self.registry.add_subscription(
                subscription(
                    name,
                    made,
                    types=types,
                    start=start,
                    batch_events=batch_events,
                    shards=shards,
                    on_error=on_error,
                )
            )
            return handle

        return register
