"""The event store's asynchronous face: appends in groups, reads, import."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from typing import Any
from uuid import UUID

from strandline.errors import DatabaseUnavailable
from strandline.events import bulk
from strandline.events import read as reading
from strandline.events.append import Append
from strandline.events.bulk import Imported, ImportedEvent
from strandline.events.codec import EventTypes
from strandline.events.event import (
    DEFAULT_TENANT,
    Appended,
    RecordedEvent,
    StreamState,
    checked_number,
)
from strandline.events.gaps import read_mark
from strandline.events.group import AppendGroup
from strandline.events.high_water import HighWater
from strandline.postgres.pools import Pools
from strandline.settings import Settings
from strandline.telemetry.signals import Signals


class EventStore:
    """Events of one database."""

    def __init__(
        self,
        pools: Pools,
        types: EventTypes,
        settings: Settings,
        *,
        on_appended: Callable[[int, int], None],
    ) -> None:
        self._pools = pools
        self._types = types
        self._settings = settings
        self._group = AppendGroup(pools.work, settings, on_appended=on_appended)
        self._high_water = HighWater(pools.control, settings, Signals(), on_moved=lambda _: None)

    async def close(self) -> None:
        """Finish the appends under way and take no more."""
        await self._group.close()

    async def append_prepared(self, item: Append) -> Appended:
        """Append what ``prepare`` has checked, in a group with others."""
        return await self._group.append(item)

    async def read_stream(self, stream: str, **options: Any) -> list[RecordedEvent[Any]]:
        """See ``App.read_stream``."""
        return await self._pools.work.run(reading.read_stream(stream, types=self._types, **options))

    async def read_all(
        self,
        *,
        after: int = 0,
        up_to: int | None = None,
        types: Iterable[type[Any] | str] | None = None,
        stream_type: str | None = None,
        tenant: str | None = None,
        limit: int | None = None,
        backwards: bool = False,
        settled: bool = True,
        unknown: reading.UnknownTypes = "keep",
        page_events: int = 1000,
    ) -> AsyncIterator[RecordedEvent[Any]]:
        """See ``App.read_all``.

        Above the mark an event may still appear below one that is read already, when a slow
        transaction commits: a reader that goes on from its last position would miss it. Hence
        ``settled`` by default.
        """
        checked_number(page_events, "page_events", least=1)
        for value, what in ((limit, "limit"), (up_to, "up_to")):
            if value is not None:
                checked_number(value, what)
        names = None if types is None else self._names(types)
        if settled:
            mark = await self._settled()
            up_to = mark if up_to is None else min(up_to, mark)
        left = limit
        while left is None or left > 0:
            most = page_events if left is None else min(left, page_events)
            page = await self._pools.work.run(
                reading.read_page(
                    types=self._types,
                    after=after,
                    up_to=up_to,
                    limit=most,
                    names=names,
                    stream_type=stream_type,
                    tenant=tenant,
                    backwards=backwards,
                    unknown=unknown,
                )
            )
            for event in page:
                yield event
            if len(page) < most:
                return
            if left is not None:
                left -= len(page)
            if backwards:
                up_to = page[-1].position - 1
            else:
                after = page[-1].position

    async def event(
        self, event_id: UUID, *, tenant: str = DEFAULT_TENANT
    ) -> RecordedEvent[Any] | None:
        """The event with this id, or None."""
        op = reading.event_by_id(event_id, types=self._types, tenant=tenant)
        return await self._pools.work.run(op)

    async def stream_state(
        self, stream: str, *, tenant: str = DEFAULT_TENANT
    ) -> StreamState | None:
        """See ``App.stream_state``."""
        return await self._pools.work.run(reading.stream_state(stream, tenant=tenant))

    async def archive(self, stream: str, *, tenant: str = DEFAULT_TENANT) -> StreamState:
        """See ``App.archive``."""
        return await self._pools.work.run(reading.archive(stream, tenant=tenant))

    async def unarchive(self, stream: str, *, tenant: str = DEFAULT_TENANT) -> StreamState:
        """See ``App.unarchive``."""
        return await self._pools.work.run(reading.unarchive(stream, tenant=tenant))

    async def import_events(
        self,
        events: Iterable[ImportedEvent] | AsyncIterable[ImportedEvent],
        *,
        skip_existing: bool = False,
        chunk_events: int = 5000,
        on_progress: Callable[[int], None] | None = None,
    ) -> Imported:
        """See ``App.import_events``."""
        return await bulk.import_events(
            self._pools.work,
            events,
            types=self._types,
            settings=self._settings,
            skip_existing=skip_existing,
            chunk_events=chunk_events,
            on_progress=on_progress,
        )

    async def _settled(self) -> int:
        """The mark, after one look: there may be no node that looks."""
        try:
            return await self._high_water.tick()
        except DatabaseUnavailable:  # a standby cannot decide, but it can read what was decided
            return (await self._pools.work.run(read_mark())).position

    def _names(self, types: Iterable[type[Any] | str]) -> list[str]:
        names: list[str] = []
        for one in types:
            names.extend([one] if isinstance(one, str) else self._types.stored_names(one))
        return names
