"""Several projections brought up to date together: one read, one transaction, stages in order.

    @app.projection("bank", version=2)
    class Bank(sl.Composite):
        stages = ({"accounts": Accounts, "days": Days}, {"summary": Summary})

Members are asked by their class or name, and stored under the composite's version. A later stage may
handle ``sl.Updated[Account]`` and ``sl.Deleted[Account]`` of an earlier one: how the document is after
the page, however many events have changed it. So take the state as it comes, and count nothing by
such notices: how many there are depends on how the log was cut into pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from strandline.errors import InvalidDefinition
from strandline.events.codec import EventTypes
from strandline.postgres.operations import Op
from strandline.projections.documents import Documents
from strandline.projections.failure_policy import ErrorPolicy
from strandline.projections.multi_stream import MultiStream
from strandline.projections.projection import Lifecycle, Projection
from strandline.projections.shadow import LIVE, Pair
from strandline.projections.single_stream import SingleStream
from strandline.projections.upstream import Deleted, Updated, concrete

Member = SingleStream[Any] | MultiStream[Any]


class Composite(Projection):
    """Projections that one shard brings up to date together.

    Attributes:
        stages: Name and class of the members, stage by stage; single- and multi-stream ones.
    """

    kind: ClassVar[str] = "composite"
    stages: ClassVar[Sequence[Mapping[str, type[Projection]]]] = ()
    members: tuple[Member, ...] = ()
    heard: frozenset[type[Any]] = frozenset()

    def named(
        self,
        name: str,
        version: int,
        lifecycle: str,
        shards: int = 1,
        on_error: ErrorPolicy | None = None,
    ) -> None:
        """See ``Projection``."""
        super().named(name, version, lifecycle, shards, on_error)
        if self.lifecycle is not Lifecycle.ASYNC:
            raise InvalidDefinition(f"composite {name!r}: only nodes run it; it is {lifecycle}")
        members = [
            self._member(key, cls)
            for number, stage in enumerate(self._stages(), 1)
            for key, cls in self._of_stage(number, stage)
        ]
        for what in ([one.name for one in members], [type(one).__name__ for one in members]):
            twice = [one for one in what if what.count(one) > 1]
            if twice:
                raise InvalidDefinition(f"composite {name!r}: {twice[0]} is in it twice")
        if name in {one.name for one in members}:
            raise InvalidDefinition(f"composite {name!r}: a member needs a name of its own")
        self.members = tuple(members)

    def bind(self, types: EventTypes, names: Mapping[str, Any] | None) -> None:
        """See ``Projection``."""
        earlier: list[type[Any]] = []
        heard: list[type[Any]] = []
        members = iter(self.members)
        for stage in self.stages:
            told: list[type[Any]] = []
            for _ in stage:
                member = next(members)
                member.upstream = tuple(dict.fromkeys(earlier))
                member.bind(types, names)
                told += [concrete(kind, member.folder.state) for kind in (Updated, Deleted)]
                hears = [cls for cls in member.event_classes if cls in member.upstream]
                if hears and isinstance(member, MultiStream) and self.shards > 1:
                    raise InvalidDefinition(
                        f"composite {self.name!r}: shards={self.shards} cannot be, as {member.name}"
                        f" gathers {hears[0].__name__}, which other shards would tell of"
                    )
                heard += hears
            earlier += told
        self.heard = frozenset(heard)

    def _stages(self) -> Sequence[Mapping[str, type[Projection]]]:
        if isinstance(self.stages, Mapping) or not self.stages:
            raise InvalidDefinition(
                f"{type(self).__name__}: stages is a tuple of dicts, as in"
                ' stages = ({"accounts": Accounts}, {"summary": Summary})'
            )
        return self.stages

    def _of_stage(self, number: int, stage: object) -> list[tuple[str, type[Projection]]]:
        if not isinstance(stage, Mapping) or not stage:
            raise InvalidDefinition(
                f"{type(self).__name__}: stage {number} is a dict of names and projections"
            )
        return list(stage.items())

    def _member(self, key: str, cls: type[Projection]) -> Member:
        if not (isinstance(cls, type) and issubclass(cls, SingleStream | MultiStream)):
            raise InvalidDefinition(
                f"composite {self.name!r}: {key} is {cls!r}; members are sl.SingleStream and"
                " sl.MultiStream classes. Tables and SQL projections read by themselves: register"
                " them beside it"
            )
        member = cls()
        member.named(key, self.version, Lifecycle.ASYNC)
        member.part_of = self
        return member


class CompositeDocuments:
    """The documents of all members of a composite.

    Attributes:
        members: Those of each member, in the order of stages.
        place: The schema of the tables, as SQL.
    """

    def __init__(self, composite: Composite, place: str = LIVE) -> None:
        self.projection = composite
        self.label = composite.label
        self.place = place
        self.members: tuple[Documents[Any], ...] = tuple(
            Documents(one, place) for one in composite.members
        )

    def create(self) -> Op[None]:
        """Make the tables, unless they are there."""
        for one in self.members:
            yield from one.create()

    def empty(self) -> Op[None]:
        """Delete every document."""
        for one in self.members:
            yield from one.empty()

    def drop(self) -> Op[None]:
        """Drop the tables."""
        for one in self.members:
            yield from one.drop()

    def tables(self) -> Sequence[Pair]:
        """See ``Swappable``. No operation."""
        return [pair for one in self.members for pair in one.tables()]
