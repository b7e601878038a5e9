"""What an app has declared: event types, projections, subscriptions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from strandline.errors import InvalidDefinition, UnknownProjection
from strandline.events.codec import EventTypes
from strandline.projections.projection import Lifecycle, Projection
from strandline.projections.slice import slices
from strandline.projections.subscription import Subscription

Reference = type[Projection] | Projection | str
"""How a projection is named in a call: its class, the definition, its label, or its name.

A name means the highest version there is of it.
"""


@dataclass(slots=True)
class Registry:
    """The declarations of one app.

    Attributes:
        projections: By label; several versions of one name stand side by side.
        subscriptions: By name.
        locals: Of the code that declared them, by label.
        jobs: By kind and alias; see ``strandline.jobs.kinds``.
        retired: Labels that the opened database has retired: nobody keeps them any more.
    """

    types: EventTypes = field(default_factory=EventTypes)
    projections: dict[str, Projection] = field(default_factory=dict)
    subscriptions: dict[str, Subscription] = field(default_factory=dict)
    locals: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    retired: set[str] = field(default_factory=set)
    jobs: dict[str, Any] = field(default_factory=dict)

    def add_projection(
        self, projection: Projection, names: Mapping[str, Any] | None = None
    ) -> None:
        """Register *projection*, named already; *names* resolve its annotations.

        Raises:
            InvalidDefinition: The name or the version is taken, or a handler cannot work.
        """
        for one in (projection, *projection.members):
            self._refuse_taken(one)
        projection.bind(self.types, names)
        self.projections[projection.label] = projection
        self.locals[projection.label] = dict(names or {})

    def add_subscription(self, subscription: Subscription) -> None:
        """Register *subscription*.

        Raises:
            InvalidDefinition: The name is taken.
            UnregisteredEvent: It wants a class that is not registered.
        """
        if subscription.name in self._names():
            raise InvalidDefinition(
                f"the name {subscription.name!r} is taken by another projection"
            )
        subscription.names(self.types)
        self.subscriptions[subscription.name] = subscription

    def bind(self) -> None:
        """Bind every projection again: events may have been registered after it.

        What is retired is to be learnt from the database that is opened.
        """
        self.retired = set()
        for label, projection in self.projections.items():
            projection.bind(self.types, self.locals[label])

    def projection(self, reference: Reference) -> Projection:
        """The registered projection that *reference* means.

        Raises:
            UnknownProjection: There is none; the message lists those there are.
        """
        known = list(self.each())
        for one in known:
            if reference in (one, one.label):
                return self._not_retired(one)
        named = [one for one in known if reference in (type(one), one.name)]
        if named:  # a class may stand under several names: the first one's
            versions = [one for one in named if one.name == named[0].name]
            kept = [one for one in versions if not self.is_retired(one)]
            return self._not_retired(max(kept or versions, key=lambda one: one.version))
        name = (
            reference if isinstance(reference, str) else getattr(reference, "__name__", reference)
        )
        labels = ", ".join(sorted(one.label for one in known)) or "none"
        raise UnknownProjection(f"no projection {name!r} is registered (registered: {labels})")

    def each(self) -> Iterator[Projection]:
        """Every projection, and the members of composites."""
        for one in self.projections.values():
            yield from (one, *one.members)

    def is_retired(self, projection: Projection) -> bool:
        """Whether nobody keeps *projection* any more in the opened database."""
        return projection.run_label in self.retired

    def is_silent(self, label: str) -> bool:
        """Whether the version that stays when *label* goes is known to raise no side effects."""
        name = label.partition(":")[0]
        others = [one for one in self.kept() if one.name == name and one.label != label]
        newest = max(others, key=lambda one: one.version, default=None)
        each = (newest, *newest.members) if newest is not None else ()
        return bool(each) and all(one.effects_handler is None for one in each)

    def label(self, reference: Any) -> str:
        """The label of a projection or subscription: by definition, function or name."""
        if isinstance(reference, Subscription):
            return reference.label
        if isinstance(reference, str) and reference in self.subscriptions:
            return self.subscriptions[reference].label
        for one in self.subscriptions.values():
            if one.handle is reference:
                return one.label
        return self.projection(reference).run_label

    def of(self, lifecycle: Lifecycle) -> list[Projection]:
        """The projections of one lifecycle that are not retired, by name and version."""
        found = [one for one in self.kept() if one.lifecycle is lifecycle]
        return sorted(found, key=lambda one: (one.name, one.version))

    def kept(self) -> list[Projection]:
        """The projections that are not retired."""
        return [one for one in self.projections.values() if not self.is_retired(one)]

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

    def _names(self) -> set[str]:
        return {one.name for one in self.each()} | set(self.subscriptions)

    def _not_retired(self, found: Projection) -> Projection:
        if self.is_retired(found):
            raise UnknownProjection(
                f"{found.run_label} was retired in this database: what it had written is gone;"
                " take it out of the code, or give it a higher version"
            )
        return found

    def _refuse_taken(self, wanted: Projection) -> None:
        if wanted.name in self.subscriptions:
            raise InvalidDefinition(f"the name {wanted.name!r} is taken by a subscription")
        if any(one.label == wanted.label for one in self.each()):
            raise InvalidDefinition(
                f"{wanted.label} is registered already: the name {wanted.name!r} is taken by another"
                f" projection, or its next version needs version={wanted.version + 1}"
            )
