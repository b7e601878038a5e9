"""What an app has declared: event types, projections, subscriptions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from strandline.errors import InvalidDefinition, UnknownProjection
from strandline.events.codec import EventTypes
from strandline.projections.projection import Lifecycle, Projection
from strandline.projections.slice import slices
from strandline.projections.subscription import Subscription

Reference = type[Projection] | Projection | str
"""How a projection is named in a call: its class, the definition, or its name."""


@dataclass(slots=True)
class Registry:
    """The declarations of one app, by name."""

    types: EventTypes = field(default_factory=EventTypes)
    projections: dict[str, Projection] = field(default_factory=dict)
    subscriptions: dict[str, Subscription] = field(default_factory=dict)
    locals: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def add_projection(
        self, projection: Projection, names: Mapping[str, Any] | None = None
    ) -> None:
        """Register *projection*, named already; *names* resolve its annotations.

        Raises:
            InvalidDefinition: The name is taken, or a handler cannot work.
        """
        self._refuse_taken(projection.name)
        projection.bind(self.types, names)
        self.projections[projection.name] = projection
        self.locals[projection.name] = dict(names or {})

    def add_subscription(self, subscription: Subscription) -> None:
        """Register *subscription*.

        Raises:
            InvalidDefinition: The name is taken.
            UnregisteredEvent: It wants a class that is not registered.
        """
        self._refuse_taken(subscription.name)
        subscription.names(self.types)
        self.subscriptions[subscription.name] = subscription

    def bind(self) -> None:
        """Bind every projection again: events may have been registered after it."""
        for name, projection in self.projections.items():
            projection.bind(self.types, self.locals[name])

    def projection(self, reference: Reference) -> Projection:
        """The registered projection that *reference* means.

        Raises:
            UnknownProjection: There is none; the message lists those there are.
        """
        for one in self.projections.values():
            if reference in (one, type(one), one.name, one.label):
                return one
        name = (
            reference if isinstance(reference, str) else getattr(reference, "__name__", reference)
        )
        known = ", ".join(sorted(self.projections)) or "none"
        raise UnknownProjection(f"no projection {name!r} is registered (registered: {known})")

    def label(self, reference: Any) -> str:
        """The label of a projection or subscription: by definition, function or name."""
        if isinstance(reference, Subscription):
            return reference.label
        if isinstance(reference, str) and reference in self.subscriptions:
            return self.subscriptions[reference].label
        for one in self.subscriptions.values():
            if one.handle is reference:
                return one.label
        return self.projection(reference).label

    def of(self, lifecycle: Lifecycle) -> list[Projection]:
        """The projections of one lifecycle, by name."""
        found = (one for one in self.projections.values() if one.lifecycle is lifecycle)
        return sorted(found, key=lambda one: one.name)

    def run_by_nodes(self) -> list[Projection | Subscription]:
        """The projections and subscriptions that a node runs, by label."""
        found: list[Projection | Subscription] = [
            *self.of(Lifecycle.ASYNC),
            *self.subscriptions.values(),
        ]
        return sorted(found, key=lambda one: one.label)

    def labels(self) -> list[str]:
        """The labels of all that a node runs."""
        return [one.label for one in self.run_by_nodes()]

    def labels_of(self, references: Iterable[Any]) -> list[str]:
        """The labels of those among *references* that a node runs; of all when none is named.

        Inline and live ones are never behind, so nobody needs to wait for them.

        Raises:
            UnknownProjection: One is not registered.
        """
        named = [self.label(one) for one in references]
        run = self.labels()
        return [one for one in named if one in run] if named else run

    def shards(self) -> list[str]:
        """The names of all shards that a node runs, once each is cut as it is declared."""
        return [part.shard(one.label) for one in self.run_by_nodes() for part in slices(one.shards)]

    def _refuse_taken(self, name: str) -> None:
        if name in self.projections or name in self.subscriptions:
            raise InvalidDefinition(f"the name {name!r} is taken by another projection")
