"""Appending to streams: check and encode first, then one statement.

Nothing reaches PostgreSQL before every argument is checked. What the server refuses comes back
as an outcome per item, so that the caller's transaction stays usable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import msgspec

from strandline.errors import (
    DuplicateEvent,
    InvalidEvent,
    InvalidInput,
    PayloadTooLarge,
    StreamArchived,
    WrongVersion,
)
from strandline.events.codec import EventTypes, encoded
from strandline.events.event import (
    ANY,
    DEFAULT_TENANT,
    Appended,
    Expected,
    Metadata,
    as_metadata,
    checked_expected,
    checked_stream,
    checked_stream_type,
    checked_tenant,
    new_id,
)
from strandline.events.read import stream_state
from strandline.events.tracing import current_traceparent
from strandline.postgres.operations import Op, many
from strandline.postgres.statements import SqlFile
from strandline.settings import Settings

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one item of a batch."""

    item: int
    outcome: str
    version: int
    position: int


@dataclass(frozen=True, slots=True)
class Stored:
    """Where an event id is stored."""

    id: UUID
    stream: str
    version: int
    position: int


_sql = SqlFile(__name__)
APPEND_BATCH = _sql.many("append_batch", Outcome)
APPEND_TOGETHER = _sql.many("append_together", Outcome)
STORED = _sql.many("stored_events", Stored)


class Append(msgspec.Struct, frozen=True, eq=False, gc=False):
    """What is to be appended to one stream, checked and encoded.

    ``events`` are ``(id, stored name, JSON)``.
    """

    stream: str
    tenant: str
    stream_type: str | None
    expected: int
    events: tuple[tuple[str, str, bytes], ...]
    metadata: bytes | None
    has_own_ids: bool
    size: int

    def wire(self) -> list[Any]:
        """The item as the SQL functions take it, JSON parts as they are."""
        metadata = msgspec.Raw(self.metadata) if self.metadata else None
        events = [(one[0], one[1], msgspec.Raw(one[2]), metadata) for one in self.events]
        return [self.tenant, self.stream, self.stream_type, self.expected, events]

    def done(self, outcome: Outcome, *, stored_before: bool = False) -> Appended:
        """The answer for the caller."""
        ids = tuple([one[0] for one in self.events])
        return Appended(self.stream, outcome.version, outcome.position, ids, stored_before)


def prepare(
    stream: str,
    events: Any,
    *,
    types: EventTypes,
    settings: Settings,
    expected: int = ANY,
    tenant: str = DEFAULT_TENANT,
    stream_type: str | None = None,
    metadata: Metadata | Mapping[str, Any] | None = None,
    ids: Sequence[UUID | str] | None = None,
) -> Append:
    """Check and encode an append. See ``App.append`` for the arguments.

    Raises:
        InvalidInput: Something cannot be stored; the message says what.
        UnregisteredEvent: An event's class has no name.
    """
    stream = checked_stream(stream)
    objects = _as_list(events, types)
    if not objects:
        raise InvalidEvent(f"nothing to append to {stream!r}: pass at least one event")
    if len(objects) > settings.max_events_per_append:
        raise InvalidInput(
            f"{len(objects)} events in one append, the limit is {settings.max_events_per_append}"
            " (setting max_events_per_append); import_events takes any number"
        )
    names = _ids(ids, len(objects))
    limit = settings.max_payload_bytes
    made = []
    size = 0
    for name, event in zip(names, objects, strict=True):
        stored_name, data = types.encode(event)
        if len(data) > limit:
            raise PayloadTooLarge(stored_name, payload_bytes=len(data), limit_bytes=limit)
        size += len(data)
        made.append((name, stored_name, data))
    about = _metadata(metadata, limit)
    return Append(
        stream=stream,
        tenant=tenant if tenant is DEFAULT_TENANT else checked_tenant(tenant),
        stream_type=checked_stream_type(stream_type),
        expected=checked_expected(expected),
        events=tuple(made),
        metadata=about,
        has_own_ids=ids is not None,
        size=size + len(about or b"") * len(made),
    )


def append(item: Append) -> Op[Appended]:
    """Append *item*; with the caller's own event ids, at most once.

    Raises:
        WrongVersion: The stream is not as expected; nothing was written.
        StreamArchived: It takes no more events.
        DuplicateEvent: Some of its ids are stored already, but not just these in this stream.
    """
    if item.has_own_ids:
        found = yield from find_stored(item)
        if found is not None:
            return found
    (outcome,) = yield from many(APPEND_BATCH, batch([item]))
    if outcome.outcome == "appended":
        return item.done(outcome)
    if item.has_own_ids:  # a twin of this append may have been under way
        found = yield from find_stored(item)
        if found is not None:
            return found
    raise (yield from refusal(item))


def append_again(item: Append) -> Op[Appended]:
    """Append *item* when it may be stored already or be under way; not inside a transaction.

    A twin that is still under way holds the stream's row or the event's id, so this waits for its
    end, is then refused by the one or the other, and finds what the twin has stored.
    """
    found = yield from find_stored(item)
    if found is not None:
        return found
    try:
        (outcome,) = yield from many(APPEND_BATCH, batch([item]))
    except DuplicateEvent:
        found = yield from find_stored(item)
        if found is not None:
            return found
        raise
    if outcome.outcome == "appended":
        return item.done(outcome)
    found = yield from find_stored(item)
    if found is not None:
        return found
    raise (yield from refusal(item))


def append_together(items: Sequence[Append]) -> Op[list[Appended]]:
    """Append to several streams, all or none.

    Raises:
        InvalidInput: A stream stands in *items* twice.
        WrongVersion: A stream is not as expected; nothing was written.
        StreamArchived: A stream takes no more events.
    """
    seen = {(item.tenant, item.stream) for item in items}
    if len(seen) < len(items):
        raise InvalidInput("a stream stands in one append_many twice: put its events together")
    if any(item.has_own_ids for item in items):
        found = []
        for item in items:
            found.append((yield from find_stored(item)))
        if all(found):
            return [one for one in found if one]
        if any(found):
            raise DuplicateEvent("some of these streams hold these events already, others do not")
    outcomes = yield from many(APPEND_TOGETHER, batch(items))
    for item, outcome in zip(items, outcomes, strict=True):
        if outcome.outcome == "refused":
            raise (yield from refusal(item))
    return [item.done(outcome) for item, outcome in zip(items, outcomes, strict=True)]


def find_stored(item: Append) -> Op[Appended | None]:
    """Where *item* is stored already, all of it, in this stream and order; None when it is not.

    Raises:
        DuplicateEvent: Some of its ids are stored, but not just these in this stream and order.
    """
    ids = [UUID(one[0]) for one in item.events]
    rows = yield from many(STORED, ids, item.tenant)
    if not rows:
        return None
    places = {row.id: row for row in rows}
    ordered = [places.get(one) for one in ids]
    first = ordered[0]
    whole = first is not None and all(
        row is not None and row.stream == item.stream and row.version == first.version + number
        for number, row in enumerate(ordered)
    )
    last = ordered[-1]
    if not whole or last is None:
        row = rows[0]
        raise DuplicateEvent(
            f"event id {row.id} is stored already, as version {row.version} of {row.stream!r};"
            f" nothing was appended to {item.stream!r}"
        )
    outcome = Outcome(1, "appended", last.version, last.position)
    return item.done(outcome, stored_before=True)


def refusal(item: Append) -> Op[Exception]:
    """The error for an *item* that was refused, with what the stream is like now."""
    state = yield from stream_state(item.stream, tenant=item.tenant)
    if state is not None and state.is_archived:
        return StreamArchived(item.stream, tenant=item.tenant)
    words = {
        int(Expected.NO_STREAM): "no stream",
        int(Expected.STREAM_EXISTS): "an existing stream",
    }
    return WrongVersion(
        item.stream,
        expected=words.get(item.expected, item.expected),
        actual=state.version if state else 0,
        tenant=item.tenant,
    )


def batch(items: Sequence[Append]) -> str:
    """The JSON text that the SQL functions take."""
    return _encode([item.wire() for item in items]).decode()


def _as_list(events: Any, types: EventTypes) -> list[Any]:
    if type(events) in types.names:
        return [events]
    if isinstance(events, str | bytes | Mapping):
        raise InvalidEvent(f"{events!r} is not an event: pass objects of registered classes")
    try:
        return list(events)
    except TypeError:
        types.name_of(type(events))  # says that the class is not registered
        raise


def _ids(ids: Sequence[UUID | str] | None, count: int) -> list[str]:
    if ids is None:
        return [new_id() for _ in range(count)]
    try:
        texts = [str(one if isinstance(one, UUID) else UUID(one)) for one in ids]
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidEvent(f"ids are UUIDs: {error}") from error
    if len(texts) != count:
        raise InvalidEvent(f"{len(texts)} ids for {count} events")
    if len(set(texts)) < count:
        raise InvalidEvent("an event id stands there twice")
    return texts


def _metadata(given: Metadata | Mapping[str, Any] | None, limit: int) -> bytes | None:
    traceparent = current_traceparent()
    if given is None and traceparent is None:
        return None
    about = as_metadata(given)
    if about.traceparent is None and traceparent is not None:
        about = msgspec.structs.replace(about, traceparent=traceparent)
    data = encoded(about, "metadata")
    if len(data) > limit:
        raise PayloadTooLarge("metadata", payload_bytes=len(data), limit_bytes=limit)
    return None if data == b"{}" else data
