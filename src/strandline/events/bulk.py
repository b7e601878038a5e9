"""Import: many events by COPY, streaming, in the order given.

One transaction per chunk: first the chunk's streams are locked and their versions moved (the order
that the high-water proof needs), then the events are copied, drawing positions in the order given.
While one chunk is at the server the next one is encoded.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec

from strandline.errors import InvalidEvent, InvalidInput, PayloadTooLarge, StreamArchived
from strandline.events.append import STORED
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
from strandline.postgres.operations import AsyncpgSession, many, one
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
    """What an import has done."""

    events: int
    skipped: int
    last_position: int


@dataclass(frozen=True, slots=True)
class _Extended:
    tenant: str
    id: str
    version: int


@dataclass(frozen=True, slots=True)
class _Last:
    position: int


_sql = SqlFile(__name__)
EXTEND = _sql.many("extend_streams", _Extended)
LAST = _sql.one("last_position", _Last)

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
    stored = skipped = 0
    writing: asyncio.Task[int] | None = None
    size = 0
    try:
        async for chunk in _chunks(events, types, settings, chunk_events):
            if writing is not None:
                done = await writing
                stored, skipped = stored + done, skipped + size - done
                if on_progress:
                    on_progress(stored + skipped)
            size = len(chunk)
            writing = asyncio.create_task(_write(pool, chunk, skip_existing=skip_existing))
            await asyncio.sleep(0)
    finally:
        if writing is not None:
            await asyncio.wait({writing})
    if writing is not None:
        done = writing.result()
        stored, skipped = stored + done, skipped + size - done
        if on_progress:
            on_progress(stored + skipped)
    op = one(LAST)
    last = await pool.run(op)
    return Imported(stored, skipped, last.position if last else 0)


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
    if event.recorded_at is not None and event.recorded_at.tzinfo is None:
        raise InvalidEvent(f"recorded_at={event.recorded_at!r} has no time zone")
    name, data = types.encode(event.event)
    metadata = None if event.metadata is None else encoded(as_metadata(event.metadata), "metadata")
    for what, payload in ((name, data), ("metadata", metadata)):
        if payload is not None and len(payload) > limit:
            raise PayloadTooLarge(what, payload_bytes=len(payload), limit_bytes=limit)
    return (
        event.recorded_at,
        str(event.id) if event.id else new_id(),
        event.tenant if event.tenant is DEFAULT_TENANT else checked_tenant(event.tenant),
        checked_stream(event.stream),
        checked_stream_type(event.stream_type),
        name,
        data.decode(),
        metadata.decode() if metadata else None,
    )


async def _write(pool: Pool, chunk: list[_Line], *, skip_existing: bool) -> int:
    async with pool.transaction() as session:
        if skip_existing:
            chunk = await _without_stored(session, chunk)
        if not chunk:
            return 0
        streams: dict[tuple[str, str], list[Any]] = {}
        for line in chunk:
            found = streams.setdefault((line[2], line[3]), [line[2], line[3], line[4], 0])
            found[3] += 1
        rows = await session.run(many(EXTEND, _encode(list(streams.values())).decode()))
        if len(rows) < len(streams):
            (tenant, stream), *_ = streams.keys() - {(row.tenant, row.id) for row in rows}
            raise StreamArchived(stream, tenant=tenant)
        next_version = {
            (row.tenant, row.id): row.version - streams[row.tenant, row.id][3] for row in rows
        }
        now = datetime.now(UTC)
        records = []
        for recorded_at, name, tenant, stream, _, kind, data, metadata in chunk:
            key = (tenant, stream)
            version = next_version[key] = next_version[key] + 1
            records.append((version, recorded_at or now, name, tenant, stream, kind, data, metadata))
        await session.copy("events", records, COLUMNS)
    return len(chunk)


async def _without_stored(session: AsyncpgSession, chunk: list[_Line]) -> list[_Line]:
    by_tenant: dict[str, list[UUID]] = {}
    for line in chunk:
        by_tenant.setdefault(line[2], []).append(UUID(line[1]))
    stored = {
        (tenant, str(row.id))
        for tenant, ids in by_tenant.items()
        for row in await session.run(many(STORED, ids, tenant))
    }
    return [line for line in chunk if (line[2], line[1]) not in stored]
