"""Import: many events by COPY, streaming, in the order given.

One transaction per chunk: first the chunk's streams are locked and their versions moved (the order
that the high-water proof needs), then the events are copied, drawing positions in the order given.
While one chunk is at the server the next one is encoded. A chunk whose connection broke is looked
up by its event ids, which every event has, and written again only if it is not there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from strandline.backoff import QUICK
from strandline.errors import (
    DuplicateEvent,
    InvalidEvent,
    InvalidInput,
    OutcomeUnknown,
    PayloadTooLarge,
    StreamArchived,
    Unavailable,
)
from strandline.events.append import STORED, Stored
from strandline.events.codec import EventTypes, encoded
from strandline.events.event import (
    DEFAULT_TENANT,
    Metadata,
    as_metadata,
    checked_stream,
    checked_stream_type,
    checked_tenant,
    new_id,
)
from strandline.postgres.faults import is_connection_loss
from strandline.postgres.operations import AsyncpgSession, Op, many
from strandline.postgres.pools import Pool
from strandline.postgres.statements import SqlFile
from strandline.settings import Settings

COLUMNS = ("version", "recorded_at", "id", "tenant", "stream", "type", "data", "metadata")


class ImportedEvent(msgspec.Struct, frozen=True):
    """An event to be imported.

    Attributes:
        stream: The stream it is appended to.
        event: An object of a registered class.
        recorded_at: When it happened (aware); None for now.
        id: Its id, for imports that may run twice; None for a new one.
        metadata: Correlation, causation, user, headers.
        stream_type: Kept with the stream.
        tenant: Whose stream it is.
    """

    stream: str
    event: Any
    recorded_at: datetime | None = None
    id: UUID | None = None
    metadata: Metadata | Mapping[str, Any] | None = None
    stream_type: str | None = None
    tenant: str = DEFAULT_TENANT


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import has done.

    Attributes:
        events: How many were stored.
        skipped: How many were stored before.
        last_position: The highest of their positions, or 0 if there was no event.
    """

    events: int
    skipped: int
    last_position: int


@dataclass(frozen=True, slots=True)
class _Extended:
    tenant: str
    id: str
    version: int
    now: datetime


_sql = SqlFile(__name__)
EXTEND = _sql.many("extend_streams", _Extended)

_encode = msgspec.json.Encoder().encode

_Line = tuple[datetime | None, str, str, str, str | None, str, str, str | None]
"""recorded_at, id, tenant, stream, stream type, type, data, metadata"""


async def import_events(
    pool: Pool,
    events: Iterable[ImportedEvent] | AsyncIterable[ImportedEvent],
    *,
    types: EventTypes,
    settings: Settings,
    skip_existing: bool = False,
    chunk_events: int = 5000,
    on_progress: Callable[[int], None] | None = None,
) -> Imported:
    """Store *events* in order. See ``App.import_events``."""
    if chunk_events < 1:
        raise InvalidInput(f"chunk_events={chunk_events} is not at least 1")
    progress = _Progress(pool, skip_existing=skip_existing, on_progress=on_progress)
    writing: asyncio.Task[None] | None = None
    try:
        async for chunk in _chunks(events, types, settings, chunk_events):
            if writing is not None:
                await writing
            writing = asyncio.create_task(progress.write(chunk), name="strandline:import")
            await asyncio.sleep(0)
        if writing is not None:
            await writing
    except Exception:
        if writing is not None:
            await writing  # a chunk that could not be written is told before what came after it
        raise
    finally:
        if writing is not None:
            await asyncio.wait({writing})
            if not writing.cancelled():
                writing.exception()  # told already, or the caller was cancelled
    last = 0
    for line in progress.ends:
        rows = await pool.run(many(STORED, [UUID(line[1])], line[2]))
        last = max(last, *(row.position for row in rows))
    return Imported(progress.stored, progress.skipped, last)


class _Progress:
    """What an import has written so far."""

    def __init__(
        self, pool: Pool, *, skip_existing: bool, on_progress: Callable[[int], None] | None
    ) -> None:
        self.stored = 0
        self.skipped = 0
        self.ends: list[_Line] = []  # what was given last, and what was written last
        self._pool = pool
        self._skip_existing = skip_existing
        self._on_progress = on_progress

    async def write(self, chunk: list[_Line]) -> None:
        """Store *chunk* in one transaction, once."""
        missing = await self._missing(chunk) if self._skip_existing else chunk
        if missing:
            await self._write_once(missing)
        self.stored += len(missing)
        self.skipped += len(chunk) - len(missing)
        self.ends = [chunk[-1], *(missing[-1:] or self.ends[1:])]
        if self._on_progress:
            self._on_progress(self.stored + self.skipped)

    async def _missing(self, chunk: list[_Line]) -> list[_Line]:
        """The lines whose ids are not stored, each id once."""
        seen = await self._pool.run(_places(chunk))
        missing = []
        for line in chunk:
            key = (line[2], line[1])
            if key not in seen:
                seen.add(key)
                missing.append(line)
        return missing

    async def _write_once(self, chunk: list[_Line]) -> None:
        """Write *chunk*; after a lost connection, only if it is found not to be there."""
        doubtful = False
        try:
            async for attempt in QUICK.retrying(Unavailable):
                with attempt:
                    if doubtful and await self._is_stored(chunk):
                        return
                    try:
                        async with self._pool.transaction() as session:
                            await _write(session, chunk)
                    except Unavailable as error:
                        doubtful = doubtful or is_connection_loss(error)
                        raise
                    except DuplicateEvent:  # the first try was still under way when we looked
                        if not (doubtful and await self._is_stored(chunk)):
                            raise
        except Unavailable as error:
            if not doubtful:
                raise
            raise OutcomeUnknown(
                f"the last {len(chunk)} events of this import may or may not be stored: {error};"
                " with ids and skip_existing=True it can simply be run again"
            ) from error

    async def _is_stored(self, chunk: list[_Line]) -> bool:
        return len(await self._pool.run(_places(chunk))) == len(chunk)


async def _chunks(
    events: Iterable[ImportedEvent] | AsyncIterable[ImportedEvent],
    types: EventTypes,
    settings: Settings,
    most: int,
) -> AsyncIterator[list[_Line]]:
    chunk: list[_Line] = []
    size = 0
    async for event in _each(events):
        line = _line(event, types, settings.max_payload_bytes)
        chunk.append(line)
        size += len(line[6])
        if len(chunk) >= most or size >= settings.page_bytes:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


async def _each(
    events: Iterable[ImportedEvent] | AsyncIterable[ImportedEvent],
) -> AsyncIterator[ImportedEvent]:
    if isinstance(events, AsyncIterable):
        async for event in events:
            yield event
    else:
        for event in events:
            yield event


def _line(event: ImportedEvent, types: EventTypes, limit: int) -> _Line:
    if not isinstance(event, ImportedEvent):
        raise InvalidEvent(f"{event!r} is not an sl.ImportedEvent")
    at = event.recorded_at
    if at is not None and (not isinstance(at, datetime) or at.tzinfo is None):
        raise InvalidEvent(f"recorded_at={at!r} is not a datetime with a time zone")
    if event.id is not None and not isinstance(event.id, UUID):
        raise InvalidEvent(f"id={event.id!r} is not a uuid.UUID")
    name, data = types.encode(event.event)
    metadata = None if event.metadata is None else encoded(as_metadata(event.metadata), "metadata")
    for what, payload in ((name, data), ("metadata", metadata)):
        if payload is not None and len(payload) > limit:
            raise PayloadTooLarge(what, payload_bytes=len(payload), limit_bytes=limit)
    return (
        at,
        str(event.id) if event.id else new_id(),
        event.tenant if event.tenant is DEFAULT_TENANT else checked_tenant(event.tenant),
        checked_stream(event.stream),
        checked_stream_type(event.stream_type),
        name,
        data.decode(),
        metadata.decode() if metadata else None,
    )


async def _write(session: AsyncpgSession, chunk: list[_Line]) -> None:
    streams: dict[tuple[str, str], list[Any]] = {}
    for line in chunk:
        found = streams.setdefault((line[2], line[3]), [line[2], line[3], line[4], 0])
        found[2] = found[2] or line[4]
        found[3] += 1
    rows = await session.run(many(EXTEND, _encode(list(streams.values())).decode()))
    if len(rows) < len(streams):
        (tenant, stream), *_ = streams.keys() - {(row.tenant, row.id) for row in rows}
        raise StreamArchived(stream, tenant=tenant)
    next_version = {
        (row.tenant, row.id): row.version - streams[row.tenant, row.id][3] for row in rows
    }
    now = rows[0].now  # the server's clock, as in every other event
    records = []
    for recorded_at, name, tenant, stream, _, kind, data, metadata in chunk:
        key = (tenant, stream)
        version = next_version[key] = next_version[key] + 1
        records.append((version, recorded_at or now, name, tenant, stream, kind, data, metadata))
    await session.copy("events", records, COLUMNS)


def _places(chunk: list[_Line]) -> Op[set[tuple[str, str]]]:
    """Tenant and id of the lines that are stored."""
    by_tenant: dict[str, list[UUID]] = {}
    for line in chunk:
        by_tenant.setdefault(line[2], []).append(UUID(line[1]))
    found: set[tuple[str, str]] = set()
    for tenant, ids in by_tenant.items():
        rows: list[Stored] = yield from many(STORED, ids, tenant)
        found.update((tenant, str(row.id)) for row in rows)
    return found
