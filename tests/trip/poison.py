"""Read models that fail at events marked as poison until they are mended, and what is left then."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from strandline.projections.handlers import apply
from trip.domain import (
    Arrival,
    Breakdown,
    FailingEvent,
    Travel,
    Trip,
    TripAborted,
    TripEnded,
    TripStarted,
    TripState,
    VacationOver,
)
from trip.oracle import Stored

POISON = FailingEvent("poison")
HANDLED = (
    *(TripStarted, Arrival, Travel, TripEnded, TripAborted, Breakdown, VacationOver),
    FailingEvent,
)
"""What ``FragileTrip`` handles: behind poison only such events have to wait."""


class PoisonedError(Exception):
    """The handler met a poison event."""


class FragileTrip(Trip):
    """A ``Trip`` that raises at poison while ``is_mended`` is False.

    Mended, it sets the way back to nothing: an event that comes in the wrong order shows.
    """

    is_mended = bool(os.environ.get("TRIPS_MENDED"))

    @apply
    def failing(self, trip: TripState, event: FailingEvent) -> None:
        if event.reason and not FragileTrip.is_mended:
            raise PoisonedError(event.reason)
        if event.reason:
            trip.traveled = 0.0


def poisoned(
    journeys: Mapping[str, list[Any]], streams: Iterable[str], *, at: int = 1
) -> dict[str, list[Any]]:
    """*journeys* with a poison event in *streams*: right after the start, where a trip is sure to be."""
    chosen = set(streams)
    return {
        stream: [*events[:at], POISON, *events[at:]] if stream in chosen else list(events)
        for stream, events in journeys.items()
    }


def is_poison(event: Any) -> bool:
    """Whether ``FragileTrip`` fails at *event*."""
    return isinstance(event, FailingEvent) and bool(event.reason)


def but_poison(events: Iterable[Stored]) -> Iterator[Stored]:
    """What is applied when poison is skipped: all other events."""
    return (one for one in events if not is_poison(one[2]))


def before_poison(events: Iterable[Stored]) -> Iterator[Stored]:
    """What is applied when streams are parked: of each stream the events before its poison."""
    parked: set[str] = set()
    for one in events:
        if is_poison(one[2]):
            parked.add(one[0])
        if one[0] not in parked:
            yield one


def behind_poison(events: Iterable[Stored]) -> list[tuple[str, int]]:
    """Stream and version of what must be in letters when streams are parked: the poison included."""
    stored = list(events)
    applied = {(stream, version) for stream, version, _ in before_poison(stored)}
    return [
        (stream, version)
        for stream, version, event in stored
        if (stream, version) not in applied and isinstance(event, HANDLED)
    ]
