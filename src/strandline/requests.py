"""What can be asked of an app, as operations: the same for async and blocking callers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from strandline.errors import DocumentNotFound, InvalidDefinition, InvalidInput
from strandline.events import append as appending
from strandline.events import read as reading
from strandline.events.append import Append
from strandline.events.codec import EventTypes
from strandline.events.event import Appended, RecordedEvent, checked_stream
from strandline.postgres.operations import Op
from strandline.projections.documents import Documents
from strandline.projections.fold import PageFold
from strandline.projections.inline import (
    Inline,
    InlineDocuments,
    all_or_nothing,
    appended_rows,
    take_turns,
)
from strandline.projections.multi_stream import MultiStream
from strandline.projections.projection import Lifecycle, Projection
from strandline.projections.registry import Reference, Registry
from strandline.projections.single_stream import SingleStream
from strandline.projections.sql_projection import OwnTables, Sql
from strandline.projections.table import TableRows
from strandline.projections.table_declaration import Table
from strandline.settings import Settings

S = TypeVar("S")

Model = Documents[Any] | TableRows | OwnTables
"""What a stored projection writes."""


class Requests:
    """Operations over one registry. Holds no connection."""

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self.registry = registry
        self.settings = settings
        self._models: dict[str, Model] = {}
        self.inlines = [self._inline(one) for one in registry.of(Lifecycle.INLINE)]

    def create_read_models(self) -> Op[None]:
        """Make the tables of every stored projection, unless they are there."""
        for projection in self.registry.projections.values():
            if projection.lifecycle is not Lifecycle.LIVE:
                yield from self.model(projection).create()

    def empty(self, reference: Reference) -> Op[None]:
        """Delete everything that a projection has written."""
        yield from self.model(reference).empty()

    def countable(self, reference: Reference) -> Documents[Any] | TableRows:
        """What can be counted.

        Raises:
            InvalidDefinition: The tables are the user's own.
        """
        found = self.model(reference)
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
        found = self._models.get(projection.name)
        if found is None:
            found = self._models[projection.name] = _model(projection, self.registry.types)
        return found

    # ---- events

    def prepare(self, stream: str, events: Any, **options: Any) -> Append:
        """Check and encode what is to be appended to one stream."""
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
        concerned = self.concerned(items)
        yield from take_turns(concerned)
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
        return projection


def _model(projection: Projection, types: EventTypes) -> Model:
    if projection.lifecycle is Lifecycle.LIVE:
        raise InvalidDefinition(f"{projection.label} is live: ask app.live(...) for it")
    if isinstance(projection, Table):
        return TableRows(projection)
    if isinstance(projection, Sql):
        return OwnTables(projection, types)
    if isinstance(projection, SingleStream | MultiStream):
        return Documents(projection)
    raise InvalidDefinition(f"{projection.label}: a {projection.kind} stores nothing of its own")


LIVE_PAGE = 1000  # events folded at once, so that a long stream needs little memory
