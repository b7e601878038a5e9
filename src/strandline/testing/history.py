"""Events of a scenario, as the rows that a page of stored events has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from strandline.errors import InvalidInput
from strandline.events.codec import EventTypes
from strandline.events.event import checked_stream

_BEGUN = datetime(2030, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Happened:
    """One event of one stream."""

    stream: str
    version: int
    event: Any


class History:
    """Events in order, as if one was stored every second."""

    def __init__(self, tenant: str) -> None:
        self._tenant = tenant
        self._events: list[Happened] = []
        self._versions: Counter[str] = Counter()

    def add(self, stream: str, events: Iterable[Any]) -> None:
        """Put *events* at the end of *stream*."""
        for event in events:
            self._versions[checked_stream(stream)] += 1
            self._events.append(Happened(stream, self._versions[stream], event))

    def __len__(self) -> int:
        """How many there are."""
        return len(self._events)

    def classes(self) -> list[type[Any]]:
        """The classes of the events, each once."""
        return list(dict.fromkeys(type(one.event) for one in self._events))

    def rows(self, types: EventTypes) -> list[tuple[Any, ...]]:
        """All columns of all events, with positions from 1."""
        rows = []
        for position, one in enumerate(self._events, 1):
            name, data = types.encode(one.event)
            at = _BEGUN + timedelta(seconds=position)
            rows.append(
                (position, self._tenant, one.stream, one.version, name, data.decode(), at,
                 UUID(int=position), None)
            )  # fmt: skip
        return rows


def split(given: Sequence[Any], stream: str) -> tuple[str, list[Any]]:
    """The stream that a leading text names, else *stream*; and the rest.

    Raises:
        InvalidInput: There is no rest.
    """
    if given and isinstance(given[0], str):
        stream, given = given[0], given[1:]
    if not given:
        raise InvalidInput(f"no event is named for stream {stream!r}")
    return stream, list(given)
