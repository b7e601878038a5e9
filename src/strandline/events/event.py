"""What an event is: ``NewEvent`` before it is stored, ``RecordedEvent`` after."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from datetime import datetime
from enum import IntEnum
from typing import Any, Generic, TypeVar
from uuid import UUID

import msgspec

from strandline.errors import InvalidInput, InvalidStream, InvalidVersion

T = TypeVar("T")

DEFAULT_TENANT = "default"
MAX_STREAM_BYTES = 500  # an index entry must fit a third of a page beside tenant and version
MAX_TENANT_BYTES = 200
MAX_TYPE_BYTES = 200
MAX_VERSION = 2**63 - 1


class Expected(IntEnum):
    """What an append expects of its stream, apart from an exact version (a number from 1)."""

    NO_STREAM = 0
    ANY = -1
    STREAM_EXISTS = -2


NO_STREAM = Expected.NO_STREAM
ANY = Expected.ANY
STREAM_EXISTS = Expected.STREAM_EXISTS


class Metadata(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is known about an event besides the fact itself.

    Attributes:
        correlation: Names the whole conversation that the event belongs to.
        causation: Id of the event, command or request that led to this one.
        user: Who did it.
        traceparent: W3C trace context; filled in by itself while a trace is recorded.
        headers: Anything else, as JSON.
    """

    correlation: str | None = None
    causation: str | None = None
    user: str | None = None
    traceparent: str | None = None
    headers: dict[str, Any] = {}


NO_METADATA = Metadata()
_decode_metadata = msgspec.json.Decoder(Metadata).decode


class RecordedEvent(msgspec.Struct, Generic[T], frozen=True, gc=False):
    """An event as it is stored: your object in ``data``, and its place among all events."""

    data: T
    type: str
    stream: str
    version: int
    position: int
    tenant: str
    recorded_at: datetime
    id: UUID
    raw_metadata: str | None = None

    @property
    def metadata(self) -> Metadata:
        """Correlation, causation, user, headers and trace context."""
        return _decode_metadata(self.raw_metadata) if self.raw_metadata else NO_METADATA

    @property
    def found(self) -> Any:
        """What the projection's ``@sl.enrich`` method found for it; None elsewhere."""
        return None


class EnrichedEvent(RecordedEvent[T], Generic[T], frozen=True, gc=True):
    """A stored event with what an ``@sl.enrich`` method found for it."""

    found: Any = None


class StreamState(msgspec.Struct, frozen=True):
    """A stream without its events."""

    tenant: str
    id: str
    type: str | None
    version: int
    created_at: datetime
    archived_at: datetime | None

    @property
    def is_archived(self) -> bool:
        """Whether the stream takes no more events."""
        return self.archived_at is not None


class Unknown(msgspec.Struct, frozen=True):
    """Stands for the data of an event whose type is not registered, where that is tolerated."""

    type: str
    json: str


class Appended(msgspec.Struct, frozen=True):
    """Where an append ended.

    Attributes:
        version: The stream's version after it.
        position: Position of its last event: what ``wait_for`` takes.
        stored_before: The same events were stored already; nothing was written now.
    """

    stream: str
    version: int
    position: int
    texts: tuple[str, ...] = ()
    stored_before: bool = False

    @property
    def ids(self) -> tuple[UUID, ...]:
        """The event ids, in order."""
        return tuple(UUID(one) for one in self.texts)

    @property
    def written(self) -> int:
        """How many events were written now."""
        return 0 if self.stored_before else len(self.texts)


def new_id() -> str:
    """A new event id as text: a version-7 UUID, so that the index on it grows at one end."""
    milliseconds = time.time_ns() // 1_000_000
    tail = os.urandom(10).hex()
    head = f"{milliseconds:012x}"
    return (
        f"{head[:8]}-{head[8:]}-7{tail[:3]}-{'89ab'[int(tail[3], 16) & 3]}{tail[4:7]}-{tail[7:19]}"
    )


_UNFIT = re.compile("[\0\ud800-\udfff]")


def checked_stream(stream: object) -> str:
    """*stream*, if it can be a stream id.

    Raises:
        InvalidStream: It is not a text of 1 to 500 UTF-8 bytes without NUL.
    """
    return _checked(stream, "stream id", MAX_STREAM_BYTES)


def checked_tenant(tenant: object) -> str:
    """*tenant*, if it can be one: 1 to 200 UTF-8 bytes without NUL."""
    return _checked(tenant, "tenant", MAX_TENANT_BYTES)


def checked_stream_type(stream_type: object) -> str | None:
    """*stream_type*, if it is None or can be one: 1 to 200 UTF-8 bytes without NUL."""
    return None if stream_type is None else _checked(stream_type, "stream type", MAX_TYPE_BYTES)


def checked_expected(expected: object) -> int:
    """*expected* as the number the append function takes.

    Raises:
        InvalidVersion: It is neither a version nor one of ``NO_STREAM``, ``ANY``, ``STREAM_EXISTS``.
    """
    if isinstance(expected, Expected):
        return int(expected)
    if isinstance(expected, bool) or not isinstance(expected, int):
        raise InvalidVersion(f"expected={expected!r} is not a version or an sl.Expected")
    if not 0 <= expected <= MAX_VERSION:
        raise InvalidVersion(
            f"expected={expected} is out of range: 0 means no stream, versions count from 1;"
            " use sl.ANY or sl.STREAM_EXISTS for the rest"
        )
    return expected


def checked_number(value: object, what: str, *, least: int = 0) -> int:
    """*value*, if it is a whole number from *least* that PostgreSQL can hold."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_VERSION:
        raise InvalidVersion(f"{what}={value!r} is not a whole number from {least}")
    return value


def _checked(value: object, what: str, most: int) -> str:
    if not isinstance(value, str):
        raise InvalidStream(f"a {what} is a text, not {type(value).__name__}")
    if not value or len(value) > most or _UNFIT.search(value) or len(value.encode()) > most:
        raise InvalidStream(
            f"a {what} has 1 to {most} bytes of UTF-8 and no NUL; got {value[:80]!r}"
            f" ({len(value)} characters)"
        )
    return value


def as_metadata(given: Metadata | Mapping[str, Any] | None) -> Metadata:
    """*given* as ``Metadata``; a mapping may name its fields, anything else goes to headers.

    Raises:
        InvalidInput: A field has another type than it is declared with.
    """
    if given is None:
        return NO_METADATA
    if isinstance(given, Metadata):
        own = {name: getattr(given, name) for name in Metadata.__struct_fields__}
    elif isinstance(given, Mapping):
        own = {name: given[name] for name in Metadata.__struct_fields__ if name in given}
        rest = {name: value for name, value in given.items() if name not in own}
        if rest and isinstance(own.get("headers", {}), Mapping):
            own["headers"] = {**own.get("headers", {}), **rest}
    else:
        raise InvalidInput(f"metadata is an sl.Metadata or a mapping, not {type(given).__name__}")
    try:
        return msgspec.convert(own, Metadata)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"metadata={given!r} does not fit sl.Metadata: {error}") from error
