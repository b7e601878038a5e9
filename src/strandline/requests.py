"""What can be asked of an app, as operations: the same for async and blocking callers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from strandline.errors import DocumentNotFound, InvalidDefinition, InvalidInput
from strandline.events import append as appending
from strandline.events import read as reading
from strandline.events.append import Append
from strandline.events.codec import EventTypes
from strandline.events.event import (
    Appended,
    Metadata,
    RecordedEvent,
    as_metadata,
    checked_stream,
)
from strandline.jobs.context import JobContext, find_current
from strandline.postgres.operations import Op
from strandline.postgres.savepoint import all_or_nothing
from strandline.projections import lifecycles
from strandline.projections.composite import Composite, CompositeDocuments
from strandline.projections.documents import Documents
from strandline.projections.fold import PageFold
from strandline.projections.inline import (
    Inline,
    InlineDocuments,
    appended_rows,
    take_part,
)
from strandline.projections.multi_stream import MultiStream
from strandline.projections.projection import Lifecycle, Projection
from strandline.projections.registry import Reference, Registry
from strandline.projections.shadow import LIVE
from strandline.projections.single_stream import SingleStream
from strandline.projections.sql_projection import OwnTables, Sql
from strandline.projections.table import TableRows
from strandline.projections.table_declaration import Table
from strandline.settings import Settings

S = TypeVar("S")

Model = Documents[Any] | CompositeDocuments | TableRows | OwnTables
"""What a stored projection writes."""


class Requests:
    """Operations over one registry. Holds no connection."""

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self.registry = registry
        self.settings = settings
        self._models: dict[str, Model] = {}
        self.inlines = [self._inline(one) for one in registry.of(Lifecycle.INLINE)]

    # ---- what there is to keep

    def learn_retired(self) -> Op[None]:
        """Leave out what the database has retired; before the tables of read models are made."""
        registry = self.registry
        labels = [one.label for one in registry.projections.values()]
        registry.retired = (yield from lifecycles.retired(labels)) if labels else set()
        self.inlines = [self._inline(one) for one in registry.of(Lifecycle.INLINE)]

    def create_read_models(self) -> Op[None]:
        """Make the tables of every stored projection, unless they are there."""
        for projection in self._stored():
            yield from self.model(projection).create()

    def unsettled(self) -> Op[bool]:
        """Whether some projection is not kept as the code says: ``settle`` is to be run."""
        stored = self._stored()
        return bool(stored and (yield from lifecycles.unsettled(stored)))

    def settle(self) -> Op[None]:
        """Let every stored projection be kept as the code says; in a transaction of its own.

        Raises:
            InvalidDefinition: One cannot be kept by its appends now; the message says why.
            DatabaseUnavailable: Appends under way did not end soon; see ``lifecycles.is_locked``.
        """
        channel = f"{self.settings.schema}.cluster"
        yield from lifecycles.settle(self._stored(), channel=channel)

    def left_to_nodes(self) -> Op[list[str]]:
        """What the code says is inline, and nodes keep: in words."""
        inline = [one.label for one in self.registry.of(Lifecycle.INLINE)]
        known = (yield from lifecycles.kept(inline)) if inline else {}
        return [
            f"{one.label} is inline in this code, but nodes keep it since position {one.until}:"
            " this looks like old code; wait_for waits for nothing, and reads may be behind"
            for one in known.values()
            if one.lifecycle == lifecycles.ASYNC
        ]

    def drop_retired(self, label: str, drop: Callable[[str], Op[None]]) -> Op[None]:
        """Drop the tables of *label*, which is retired: by *drop*, and what only this code knows."""
        yield from drop(label)
        for projection in self.registry.projections.values():
            if projection.label == label and projection.lifecycle is not Lifecycle.LIVE:
                yield from _model(projection, self.registry.types).drop()

    def forget(self, label: str) -> None:
        """*label* was retired: leave it out from now on."""
        self.registry.retired.add(label)
        self.inlines = [one for one in self.inlines if one.label != label]

    def _stored(self) -> list[Projection]:
        return [one for one in self.registry.kept() if one.lifecycle is not Lifecycle.LIVE]

    def empty(self, reference: Reference) -> Op[None]:
        """Delete everything that a projection has written."""
        yield from self.model(reference).empty()

    def countable(self, reference: Reference) -> Documents[Any] | TableRows:
        """What can be counted.

        Raises:
            InvalidDefinition: The tables are the user's own.
        """
        found = self.model(reference)
        if isinstance(found, CompositeDocuments):
            raise _of_members(found)
        if isinstance(found, OwnTables):
            raise InvalidDefinition(f"{found.label} writes to tables of your own: ask them by SQL")
        return found

    def model(self, reference: Reference) -> Model:
        """What a stored projection writes.

        Raises:
            UnknownProjection: It is not registered.
            InvalidDefinition: It is live.
        """
        projection = self.registry.projection(reference)
        found = self._models.get(projection.label)
        if found is None:
            found = self._models[projection.label] = _model(projection, self.registry.types)
        return found

    def model_in(self, place: str, reference: Reference) -> Model:
        """What a stored projection writes when it is built in the schema *place*, given as SQL."""
        return _model(self.registry.projection(reference), self.registry.types, place)

    # ---- events

    def prepare(self, stream: str, events: Any, **options: Any) -> Append:
        """Check and encode what is to be appended to one stream.

        Inside a job it is noted as the cause, where the caller notes no other.
        """
        job = find_current()
        if job is not None:
            options["metadata"] = _caused_by(job, options.get("metadata"))
        return appending.prepare(
            stream, events, types=self.registry.types, settings=self.settings, **options
        )

    def prepare_many(
        self, appends: Iterable[tuple[str, Any] | tuple[str, Any, int]], **options: Any
    ) -> list[Append]:
        """Check and encode ``(stream, events)`` or ``(stream, events, expected)`` for each stream.

        Raises:
            InvalidInput: There is none.
        """
        items = [
            self.prepare(
                one[0], one[1], **({"expected": one[2]} if len(one) == 3 else {}), **options
            )
            for one in appends
        ]
        if not items:
            raise InvalidInput("there is nothing to append: name at least one stream")
        return items

    def concerned(self, items: Sequence[Append]) -> list[Inline]:
        """The inline projections that an append of *items* must bring up to date."""
        if not self.inlines:
            return []
        names = {event[1] for item in items for event in item.events}
        return [one for one in self.inlines if one.wants(names)]

    def append(self, items: Sequence[Append]) -> Op[list[Appended]]:
        """Append *items*, all or none, and follow with the inline projections they concern.

        Must run inside a transaction when ``concerned`` is not empty.
        """
        concerned = yield from take_part(self.concerned(items))
        if len(items) == 1:
            done = [(yield from appending.append(items[0]))]
        else:
            done = yield from appending.append_together(items)
        for item, appended in zip(items, done, strict=True):
            following = [one for one in concerned if one.wants([event[1] for event in item.events])]
            if following and not appended.stored_before:
                after = appended.version - len(item.events)
                rows = yield from appended_rows(
                    item.tenant, item.stream, after=after, up_to=appended.version
                )
                for inline in following:
                    yield from inline.follow(rows)
        return done

    def append_within(self, items: Sequence[Append]) -> Op[list[Appended]]:
        """``append`` inside the caller's transaction, who may catch its error and go on."""
        op = self.append(items)
        return (yield from all_or_nothing(op) if self.concerned(items) else op)

    # ---- read models

    def documents(self, reference: Reference) -> Documents[Any]:
        """The documents of a projection that stores some.

        Raises:
            UnknownProjection: It is not registered.
            InvalidDefinition: It keeps no documents.
        """
        found = self.model(reference)
        if isinstance(found, CompositeDocuments):
            raise _of_members(found)
        if not isinstance(found, Documents):
            raise InvalidDefinition(
                f"{found.projection.label} is a {found.projection.kind} projection and keeps no"
                " documents: ask app.rows(...) for a table's rows"
            )
        return found

    def table(self, reference: Reference) -> TableRows:
        """The rows of a table projection.

        Raises:
            UnknownProjection: It is not registered.
            InvalidDefinition: It is no table.
        """
        found = self.model(reference)
        if isinstance(found, CompositeDocuments):
            raise _of_members(found)
        if not isinstance(found, TableRows):
            raise InvalidDefinition(
                f"{found.projection.label} is no table: ask app.query(...) for its documents"
            )
        return found

    def find(self, reference: Reference, ids: Sequence[str], *, tenant: str) -> Op[dict[str, Any]]:
        """The states of the documents that exist among *ids*."""
        keys = [(tenant, checked_stream(one)) for one in dict.fromkeys(ids)]
        if not keys:
            return {}
        found = yield from self.documents(reference).load(keys)
        return {key[1]: one.state for key, one in found.items() if one.stored}

    def get(self, reference: Reference, name: str, *, tenant: str) -> Op[Any]:
        """The state of one document.

        Raises:
            DocumentNotFound: There is none under *name*.
        """
        found = yield from self.find(reference, [name], tenant=tenant)
        if name not in found:
            label = self.registry.projection(reference).label
            raise DocumentNotFound(
                f"{label} has no document {name!r} (or not yet: app.wait_for waits for a position)"
            )
        return found[name]

    def query(
        self,
        reference: Reference,
        where: Mapping[str, Any] | str | None,
        arguments: Sequence[Any],
        *,
        tenant: str,
        order_by: str | None,
        limit: int | None,
    ) -> Op[list[tuple[str, Any]]]:
        """Ids and states of the documents that fit *where*."""
        documents = self.documents(reference)
        return (
            yield from documents.query(
                where, arguments, tenant=tenant, order_by=order_by, limit=limit
            )
        )

    def live(
        self,
        reference: Reference,
        stream: str,
        *,
        tenant: str,
        version: int | None = None,
        at: datetime | None = None,
    ) -> Op[tuple[Any, int]]:
        """A single-stream projection folded now; its state (or None) and the stream's version.

        Raises:
            InvalidDefinition: It is not a single-stream projection.
        """
        projection = self._single(reference)
        state: Any = None
        last = 0
        while True:
            events: list[RecordedEvent[Any]] = yield from reading.read_stream(
                stream,
                types=self.registry.types,
                tenant=tenant,
                from_version=last + 1,
                to_version=version,
                as_of=at,
                limit=LIVE_PAGE,
                unknown="keep",
            )
            state = projection.fold(events, state)
            if events:
                last = events[-1].version
            if len(events) < LIVE_PAGE:
                return state, last

    def _inline(self, projection: Projection) -> Inline:
        model = self.model(projection)
        assert not isinstance(model, CompositeDocuments)  # nodes run them, appends never
        if not isinstance(model, Documents):
            return model
        fold = PageFold(model.projection, self.registry.types)
        return InlineDocuments(model, fold, takes_turns=isinstance(projection, MultiStream))

    def _single(self, reference: Reference) -> SingleStream[Any]:
        projection: Projection = self.registry.projection(reference)
        if not isinstance(projection, SingleStream):
            raise InvalidDefinition(
                f"{projection.label} is a {projection.kind} projection: only single-stream ones"
                " can be folded live, since only there the stream names all events"
            )
        if projection.enrich_handler is not None or projection.hears_upstream:
            raise InvalidDefinition(
                f"{projection.label} needs more than the stream's events (@sl.enrich, or earlier"
                " stages of its composite): only nodes fold it, so ask for its documents"
            )
        return projection


def _caused_by(job: JobContext, given: Metadata | Mapping[str, Any] | None) -> Metadata:
    about = as_metadata(given)
    return msgspec.structs.replace(
        about,
        causation=about.causation or f"job:{job.id}",
        correlation=about.correlation or job.meta.get("correlation") or f"job:{job.id}",
    )


def _of_members(composite: CompositeDocuments) -> InvalidDefinition:
    names = ", ".join(one.projection.name for one in composite.members)
    return InvalidDefinition(
        f"{composite.label} is a composite: ask its members for documents ({names})"
    )


def _model(projection: Projection, types: EventTypes, place: str = LIVE) -> Model:
    if projection.lifecycle is Lifecycle.LIVE:
        raise InvalidDefinition(f"{projection.label} is live: ask app.live(...) for it")
    if isinstance(projection, Table):
        return TableRows(projection, place)
    if isinstance(projection, Composite):
        return CompositeDocuments(projection, place)
    if isinstance(projection, Sql):
        return OwnTables(projection, types, place)
    if isinstance(projection, SingleStream | MultiStream):
        return Documents(projection, place)
    raise InvalidDefinition(f"{projection.label}: a {projection.kind} stores nothing of its own")


def rest_between_tries(chance: float) -> float:
    """Seconds that a change that gave way leaves to appends; *chance* is from 0 to 1."""
    return 0.1 + 0.2 * chance


SETTLED_WITHIN = (
    30.0  # seconds for appends under way to end when somebody else is to keep a projection
)
LIVE_PAGE = 1000  # events folded at once, so that a long stream needs little memory
