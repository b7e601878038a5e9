"""Reading streams and the log, as operations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Literal, TypeAlias
from uuid import UUID

from strandline.errors import InvalidVersion, StreamNotFound
from strandline.events.codec import EventTypes
from strandline.events.event import (
    DEFAULT_TENANT,
    MAX_VERSION,
    RecordedEvent,
    StreamState,
    checked_number,
    checked_stream,
    checked_tenant,
)
from strandline.postgres.operations import Call, Op, one
from strandline.postgres.statements import SqlFile

UnknownTypes: TypeAlias = Literal["raise", "keep"]
"""What becomes of events whose type is not registered: an error, or an ``Unknown`` as data."""

_sql = SqlFile(__name__)
_STREAM = _sql.many("read_stream", RecordedEvent)
_PAGE = _sql.many("read_page", RecordedEvent)
_BY_ID = _sql.one("event_by_id", RecordedEvent)
_STATE = _sql.one("stream_state", StreamState)
_ARCHIVE = _sql.one("archive_stream", StreamState)
_UNARCHIVE = _sql.one("unarchive_stream", StreamState)
_STREAM_BACKWARDS, _STREAM = _STREAM.about(order="DESC"), _STREAM.about(order="ASC")
_PAGE_BACKWARDS, _PAGE = _PAGE.about(order="DESC"), _PAGE.about(order="ASC")


def read_stream(
    stream: str,
    *,
    types: EventTypes,
    tenant: str = DEFAULT_TENANT,
    from_version: int = 1,
    to_version: int | None = None,
    as_of: datetime | None = None,
    backwards: bool = False,
    limit: int | None = None,
    unknown: UnknownTypes = "raise",
) -> Op[list[RecordedEvent[Any]]]:
    """The events of *stream* from *from_version* to *to_version*, both included.

    Raises:
        InvalidStream: *stream* or *tenant* cannot be one.
        InvalidVersion: A version or limit is not a number, or *as_of* has no time zone.
        UnknownEventType: An event's type is not registered; ``unknown="keep"`` tolerates it.
        UndecodableEvent: An event's JSON does not fit its class.
    """
    first = checked_number(from_version, "from_version")
    last = MAX_VERSION if to_version is None else checked_number(to_version, "to_version")
    most = MAX_VERSION if limit is None else checked_number(limit, "limit")
    statement = _STREAM_BACKWARDS if backwards else _STREAM
    rows = yield Call(
        statement,
        (checked_tenant(tenant), checked_stream(stream), first, last, _aware(as_of), most),
    )
    return _recorded(rows, types, unknown)


def read_page(
    *,
    types: EventTypes,
    after: int = 0,
    up_to: int | None = None,
    limit: int = 1000,
    names: Iterable[str] | None = None,
    stream_type: str | None = None,
    tenant: str | None = None,
    backwards: bool = False,
    unknown: UnknownTypes = "raise",
) -> Op[list[RecordedEvent[Any]]]:
    """Events of positions *after* < position ≤ *up_to*, at most *limit*.

    Args:
        types: The registered event types.
        after: A position.
        up_to: A position; None for no end.
        limit: Events at the most.
        names: Only events stored under these names.
        stream_type: Only events of streams of this type.
        tenant: Only this tenant's; None for all.
        backwards: Highest position first.
        unknown: What becomes of unregistered types.
    """
    low = checked_number(after, "after")
    high = MAX_VERSION if up_to is None else checked_number(up_to, "up_to")
    most = checked_number(limit, "limit")
    statement = _PAGE_BACKWARDS if backwards else _PAGE
    chosen = None if names is None else list(names)
    whose = None if tenant is None else checked_tenant(tenant)
    rows = yield Call(statement, (low, high, most, chosen, stream_type, whose))
    return _recorded(rows, types, unknown)


def event_by_id(
    event_id: UUID, *, types: EventTypes, tenant: str = DEFAULT_TENANT
) -> Op[RecordedEvent[Any] | None]:
    """The event with this id, or None."""
    rows = yield Call(_BY_ID, (event_id, checked_tenant(tenant)))
    found = _recorded(rows, types, "keep")
    return found[0] if found else None


def stream_state(stream: str, *, tenant: str = DEFAULT_TENANT) -> Op[StreamState | None]:
    """*stream* without its events; None when it does not exist."""
    return (yield from one(_STATE, checked_tenant(tenant), checked_stream(stream)))


def archive(stream: str, *, tenant: str = DEFAULT_TENANT) -> Op[StreamState]:
    """Refuse further events on *stream*.

    Raises:
        StreamNotFound: There is no such stream.
    """
    return _there(
        (yield from one(_ARCHIVE, checked_tenant(tenant), checked_stream(stream))), stream
    )


def unarchive(stream: str, *, tenant: str = DEFAULT_TENANT) -> Op[StreamState]:
    """Let *stream* take events again.

    Raises:
        StreamNotFound: There is no such stream.
    """
    return _there(
        (yield from one(_UNARCHIVE, checked_tenant(tenant), checked_stream(stream))), stream
    )


def _there(state: StreamState | None, stream: str) -> StreamState:
    if state is None:
        raise StreamNotFound(f"there is no stream {stream!r}")
    return state


def _aware(moment: datetime | None) -> datetime | None:
    if moment is not None and moment.tzinfo is None:
        raise InvalidVersion(
            f"as_of={moment!r} has no time zone: use datetime.now(UTC) and the like"
        )
    return moment


def _recorded(
    rows: Sequence[Sequence[Any]], types: EventTypes, unknown: UnknownTypes
) -> list[RecordedEvent[Any]]:
    decode = types.decode if unknown == "raise" else types.decode_or_unknown
    return [RecordedEvent(decode(row[1], row[0], position=row[4]), *row[1:]) for row in rows]
