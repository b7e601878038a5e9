"""Appending to streams: check and encode first, then one statement.

Nothing reaches PostgreSQL before every argument is checked. What the server refuses comes back
as an outcome per item, so that the caller's transaction stays usable.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
from strandline.events.codec import EventTypes, encoded, is_event_class
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
from strandline.postgres.operations import Op, many
from strandline.postgres.statements import SqlFile
from strandline.settings import Settings
from strandline.telemetry.trace_context import current_traceparent

_encode = msgspec.json.Encoder().encode

MAX_APPEND_BYTES = (
    33_554_432  # of one statement; jsonb may need six times that, and ends at 256 MiB
)


_NO_LISTS = (str, bytes, Mapping, set, frozenset)  # iterable, and yet no events in order


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


@dataclass(frozen=True, slots=True)
class Refused:
    """What a stream that refused an append is like."""

    tenant: str
    id: str
    version: int
    is_archived: bool


_sql = SqlFile(__name__)
APPEND_BATCH = _sql.many("append_batch", Outcome)
APPEND_TOGETHER = _sql.many("append_together", Outcome)
STORED = _sql.many("stored_events", Stored)
REFUSED = _sql.many("refused_streams", Refused)


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
    names = _ids(ids, len(objects)) if ids is not None else None
    limit = settings.max_payload_bytes
    made = []
    size = 0
    for number, event in enumerate(objects):
        stored_name, data = types.encode(event)
        if len(data) > limit:
            raise PayloadTooLarge(stored_name, payload_bytes=len(data), limit_bytes=limit)
        size += len(data)
        made.append((names[number] if names else new_id(), stored_name, data))
    about = _metadata(metadata, limit)
    size += len(about or b"") * len(made)
    if size > MAX_APPEND_BYTES:
        _check_size(size, limit)
    return Append(
        stream,
        tenant if tenant is DEFAULT_TENANT else checked_tenant(tenant),
        checked_stream_type(stream_type),
        checked_expected(expected),
        tuple(made),
        about,
        names is not None,
        size,
    )


def append(item: Append) -> Op[Appended]:
    """Append *item*; with the caller's own event ids, at most once.

    Inside a transaction a twin that commits at the same moment can only end in ``DuplicateEvent``,
    and then the transaction is over.

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
    _check_size(sum(item.size for item in items), 0)
    found = yield from _all_stored(items)
    if found is not None:
        return found
    outcomes = yield from many(APPEND_TOGETHER, batch(items))
    refused = [
        item for item, outcome in zip(items, outcomes, strict=True) if outcome.outcome == "refused"
    ]
    if refused:
        found = yield from _all_stored(items)  # a twin of this append may have been under way
        if found is not None:
            return found
        raise (yield from refusals(refused))[0]
    return [item.done(outcome) for item, outcome in zip(items, outcomes, strict=True)]


def find_stored(item: Append) -> Op[Appended | None]:
    """Where *item* is stored already, all of it, in this stream and order; None when it is not.

    Raises:
        DuplicateEvent: Some of its ids are stored, but not just these in this stream and order.
    """
    (answer,) = yield from find_each([item])
    if isinstance(answer, DuplicateEvent):
        raise answer
    return answer


def find_each(items: Sequence[Append]) -> Op[list[Appended | DuplicateEvent | None]]:
    """``find_stored`` for many; what it would raise is an answer here."""
    places: dict[tuple[str, UUID], Stored] = {}
    for tenant in {item.tenant for item in items}:
        ids = [UUID(one[0]) for item in items if item.tenant == tenant for one in item.events]
        for row in (yield from many(STORED, ids, tenant)):
            places[tenant, row.id] = row
    return [_place(item, places) for item in items]


def _place(
    item: Append, places: Mapping[tuple[str, UUID], Stored]
) -> Appended | DuplicateEvent | None:
    ordered = [places.get((item.tenant, UUID(one[0]))) for one in item.events]
    stored = [row for row in ordered if row is not None]
    if not stored:
        return None
    first = ordered[0]
    whole = first is not None and all(
        row is not None and row.stream == item.stream and row.version == first.version + number
        for number, row in enumerate(ordered)
    )
    last = ordered[-1]
    if not whole or last is None:
        row = stored[0]
        return DuplicateEvent(
            f"event id {row.id} is stored already, as version {row.version} of {row.stream!r};"
            f" nothing was appended to {item.stream!r}"
        )
    outcome = Outcome(1, "appended", last.version, last.position)
    return item.done(outcome, stored_before=True)


def refusal(item: Append) -> Op[Exception]:
    """The error for an *item* that was refused, with what the stream is like now."""
    return (yield from refusals([item]))[0]


def refusals(items: Sequence[Append]) -> Op[list[Exception]]:
    """``refusal`` for many, in one statement."""
    tenants, streams = [item.tenant for item in items], [item.stream for item in items]
    rows = yield from many(REFUSED, tenants, streams)
    found = {(row.tenant, row.id): row for row in rows}
    return [_refusal(item, found.get((item.tenant, item.stream))) for item in items]


def _refusal(item: Append, found: Refused | None) -> Exception:
    if found is not None and found.is_archived:
        return StreamArchived(item.stream, tenant=item.tenant)
    words = {
        int(Expected.NO_STREAM): "no stream",
        int(Expected.STREAM_EXISTS): "an existing stream",
    }
    return WrongVersion(
        item.stream,
        expected=words.get(item.expected, item.expected),
        actual=found.version if found else 0,
        tenant=item.tenant,
    )


def _all_stored(items: Sequence[Append]) -> Op[list[Appended] | None]:
    """Where *items* are stored, all of them; None when none is.

    Raises:
        DuplicateEvent: Some are, others are not, or an id is stored elsewhere.
    """
    if not any(item.has_own_ids for item in items):
        return None
    answers = yield from find_each(items)
    for answer in answers:
        if isinstance(answer, DuplicateEvent):
            raise answer
    found = [answer for answer in answers if isinstance(answer, Appended)]
    if found and len(found) < len(items):
        raise DuplicateEvent("some of these streams hold these events already, others do not")
    return found or None


def batch(items: Sequence[Append]) -> str:
    """The JSON text that the SQL functions take."""
    return _encode([item.wire() for item in items]).decode()


def _as_list(events: Any, types: EventTypes) -> list[Any]:
    if type(events) in types.names:
        return [events]
    if is_event_class(type(events)):
        types.name_of(type(events))  # says that the class is not registered
    if not isinstance(events, Iterable) or isinstance(events, _NO_LISTS):
        raise InvalidEvent(
            f"{events!r} is not an event or a list of events: pass objects of registered classes"
        )
    return list(events)


def _check_size(size: int, payload_limit: int) -> None:
    limit = max(MAX_APPEND_BYTES, payload_limit)
    if size > limit:
        raise InvalidInput(
            f"{size} bytes of JSON in one append, the limit is {limit}: append in parts,"
            " or use import_events, which takes any number"
        )


def _ids(ids: Sequence[UUID | str], count: int) -> list[str]:
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
    data = encoded(about, "metadata")
    if about.traceparent is None and traceparent is not None:
        traced = encoded(msgspec.structs.replace(about, traceparent=traceparent), "metadata")
        if len(traced) <= limit:  # else the append would fail for being watched
            data = traced
    if len(data) > limit:
        raise PayloadTooLarge("metadata", payload_bytes=len(data), limit_bytes=limit)
    return None if data == b"{}" else data
