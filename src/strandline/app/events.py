"""The event side of an app: append, read, archive, import."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from strandline.events.append import Append
from strandline.events.bulk import Imported, ImportedEvent
from strandline.events.event import (
    ANY,
    DEFAULT_TENANT,
    Appended,
    Metadata,
    RecordedEvent,
    StreamState,
)
from strandline.events.gaps import highest_position
from strandline.events.spanned import appended, appending
from strandline.events.store import EventStore
from strandline.requests import Requests
from strandline.telemetry import tracing

if TYPE_CHECKING:
    from strandline.postgres.pools import Pools


class EventFace:
    """Requests to the event store."""

    if TYPE_CHECKING:

        @property
        def store(self) -> EventStore: ...
        @property
        def pools(self) -> Pools: ...
        @property
        def requests(self) -> Requests: ...
        def _appended(self, position: int, events: int) -> None: ...

    async def append(
        self,
        stream: str,
        events: Any,
        *,
        expected: int = ANY,
        tenant: str = DEFAULT_TENANT,
        stream_type: str | None = None,
        metadata: Metadata | Mapping[str, Any] | None = None,
        ids: Sequence[UUID | str] | None = None,
    ) -> Appended:
        """Append one event, or several in order, to *stream*.

        Args:
            stream: 1 to 500 bytes; any text without NUL.
            events: An event, or a list of events, of registered classes.
            expected: The stream's version as you know it, or ``sl.NO_STREAM``, ``sl.ANY``
                (default), ``sl.STREAM_EXISTS``.
            tenant: Streams of different tenants never meet.
            stream_type: Kept with the stream; ``read_all`` can filter by it.
            metadata: Correlation, causation, user, headers.
            ids: Your own event ids: an append tried again with the same ids is stored once.

        Returns:
            The stream's version and the position to ``wait_for``.

        Raises:
            WrongVersion: The stream is not as expected: read again, decide again.
            StreamArchived: It takes no more events.
            DuplicateEvent: An id is stored already in another place.
            InvalidInput: An argument cannot be stored; nothing was written.
            Unavailable: The database cannot be reached now; ``OutcomeUnknown`` if it is not known
                whether the append took effect (with *ids*, trying again is safe).
            EventFailure: An inline projection refused the event; nothing was written.
        """
        with appending(tenant, stream, stream_type) as span:
            item = self.requests.prepare(
                stream,
                events,
                expected=expected,
                tenant=tenant,
                stream_type=stream_type,
                metadata=metadata,
                ids=ids,
            )
            done = await self.append_prepared(item)
            appended(span, [done])
        return done

    async def append_prepared(self, item: Append) -> Appended:
        """Append what ``prepare`` has checked: in a group, or with the inline projections."""
        if self.requests.inlines and self.requests.concerned([item]):
            async with self.pools.work.transaction() as session:
                (done,) = await session.run(self.requests.append([item]))
            self._appended(done.position, done.written)
            return done
        return await self.store.append_prepared(item)

    async def append_many(
        self, appends: Iterable[tuple[str, Any] | tuple[str, Any, int]], **options: Any
    ) -> list[Appended]:
        """Append to several streams, all or none.

        Args:
            appends: ``(stream, events)`` or ``(stream, events, expected)`` for each stream.
            options: ``tenant``, ``stream_type``, ``metadata`` for all of them.

        Raises:
            InvalidInput: A stream stands there twice, or an argument cannot be stored.
            StrandlineError: As ``append``; with one stream refused, none is written.
        """
        with appending() as span:
            items = self.requests.prepare_many(appends, **options)
            async with self.pools.work.transaction() as session:
                done = await session.run(self.requests.append(items))
            appended(span, done)
        self._appended(max(one.position for one in done), sum(one.written for one in done))
        return done

    async def read_stream(self, stream: str, **options: Any) -> list[RecordedEvent[Any]]:
        """The events of one stream, in order of versions; empty when there is none.

        Args:
            stream: Its id.
            options: ``tenant``, ``from_version``, ``to_version`` (both included), ``as_of`` (a
                time), ``backwards``, ``limit``, ``unknown="keep"`` for types not registered.
        """
        return await self.store.read_stream(stream, **options)

    def read_all(self, **options: Any) -> AsyncIterator[RecordedEvent[Any]]:
        """All events in order of positions, page by page with bounded memory.

        Args:
            options: ``after`` (a position), ``up_to``, ``types`` (classes or names),
                ``stream_type``, ``tenant``, ``limit``, ``backwards``, ``settled`` (default: stop at
                the high-water mark, below which nothing can still appear), ``unknown``.
        """
        return self.store.read_all(**options)

    async def stream_state(
        self, stream: str, *, tenant: str = DEFAULT_TENANT
    ) -> StreamState | None:
        """A stream without its events; None when it does not exist."""
        return await self.store.stream_state(stream, tenant=tenant)

    async def highest_position(self) -> int:
        """The position of the newest committed event; 0 when there is none."""
        return await self.pools.control.run(highest_position())

    async def archive(self, stream: str, *, tenant: str = DEFAULT_TENANT) -> StreamState:
        """Refuse further events on *stream*. Its events stay, and stay readable.

        Raises:
            StreamNotFound: There is no such stream.
        """
        return await self.store.archive(stream, tenant=tenant)

    async def unarchive(self, stream: str, *, tenant: str = DEFAULT_TENANT) -> StreamState:
        """Let an archived stream take events again."""
        return await self.store.unarchive(stream, tenant=tenant)

    async def import_events(
        self,
        events: Iterable[ImportedEvent] | AsyncIterable[ImportedEvent],
        *,
        skip_existing: bool = False,
        chunk_events: int = 5000,
        on_progress: Callable[[int], None] | None = None,
    ) -> Imported:
        """Store many events by COPY, in the order given, streaming.

        Args:
            events: What is imported; may be endless.
            skip_existing: Leave out events whose id is stored already, so that an import that
                broke off can simply be run again.
            chunk_events: Events of one transaction.
            on_progress: Called with the number of events so far, after each transaction.

        Raises:
            InvalidInput: An event cannot be stored; the chunks before it are.
        """
        with tracing.span("strandline.import") as span:
            done = await self.store.import_events(
                events,
                skip_existing=skip_existing,
                chunk_events=chunk_events,
                on_progress=on_progress,
            )
            span.set(events=done.events, position=done.last_position or None)
        self._appended(done.last_position, done.events)
        return done
