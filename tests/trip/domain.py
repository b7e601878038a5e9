"""Events of journeys and the read models made of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from strandline.app import App
from strandline.events.event import RecordedEvent
from strandline.projections.handlers import apply, create, delete, fan_out, key
from strandline.projections.multi_stream import MultiStream
from strandline.projections.single_stream import SingleStream


class DayEvent:
    """Something that happened on a day."""

    day: int


@dataclass(frozen=True)
class TripStarted(DayEvent):
    day: int


@dataclass(frozen=True)
class Departure(DayEvent):
    day: int
    state: str


@dataclass(frozen=True)
class Arrival(DayEvent):
    day: int
    state: str


class Movement(msgspec.Struct, frozen=True):
    direction: str
    distance: float


class Stop(msgspec.Struct, frozen=True):
    state: str
    duration: int


@dataclass(frozen=True)
class Travel(DayEvent):
    day: int
    movements: list[Movement] = field(default_factory=list)
    stops: list[Stop] = field(default_factory=list)


@dataclass(frozen=True)
class TripEnded(DayEvent):
    day: int
    state: str


class TripAborted(msgspec.Struct, frozen=True):
    pass


class Breakdown(msgspec.Struct, frozen=True):
    is_critical: bool


class VacationOver(msgspec.Struct, frozen=True):
    pass


class FailingEvent(msgspec.Struct, frozen=True):
    """Handled by nobody unless a test wants a poison event."""

    reason: str = ""


EVENTS: dict[str, type[Any]] = {
    "trip-started": TripStarted,
    "departure": Departure,
    "arrival": Arrival,
    "travel": Travel,
    "trip-ended": TripEnded,
    "trip-aborted": TripAborted,
    "breakdown": Breakdown,
    "vacation-over": VacationOver,
    "failing": FailingEvent,
}


@dataclass
class TripState:
    started_on: int
    state: str = ""
    traveled: float = 0.0
    active: bool = True
    ended_on: int | None = None


class Trip(SingleStream[TripState]):
    """One document per journey; gone when it was broken off."""

    indexes = ("state",)

    @create
    def started(self, event: TripStarted) -> TripState:
        return TripState(event.day)

    @apply
    def arrived(self, trip: TripState, event: Arrival) -> None:
        trip.state = event.state

    @apply
    def traveled(self, trip: TripState, event: Travel) -> None:
        trip.traveled += sum(one.distance for one in event.movements)

    @apply
    def ended(self, trip: TripState, event: TripEnded) -> None:
        trip.active, trip.ended_on, trip.state = False, event.day, event.state

    @delete
    def aborted(self, event: TripAborted) -> None: ...

    @delete
    def broken(self, event: Breakdown) -> bool:
        return event.is_critical

    @delete
    def over(self, trip: TripState, event: VacationOver) -> bool:
        return trip.traveled > 1000

    @delete
    def lost(self, trip: TripState) -> bool:
        return trip.state == "Limbo"


class Moved(msgspec.Struct, frozen=True):
    day: int
    direction: str
    distance: float


class Stopped(msgspec.Struct, frozen=True):
    day: int
    duration: int


@dataclass
class DayState:
    started: int = 0
    ended: int = 0
    travels: int = 0
    stops: int = 0
    stopped: int = 0
    distances: dict[str, float] = field(default_factory=dict)


class Day(MultiStream[DayState]):
    """One document per day, of all journeys; movements and stops are fanned out."""

    @key
    def on_day(self, event: DayEvent) -> int:
        return event.day

    @key
    def part_of_day(self, part: Moved | Stopped) -> int:
        return part.day

    @fan_out
    def parts(self, event: Travel) -> Iterator[Moved | Stopped]:
        for one in event.movements:
            yield Moved(event.day, one.direction, one.distance)
        for stop in event.stops:
            yield Stopped(event.day, stop.duration)

    @apply
    def started(self, day: DayState, event: TripStarted) -> None:
        day.started += 1

    @apply
    def ended(self, day: DayState, event: TripEnded) -> None:
        day.ended += 1

    @apply
    def traveled(self, day: DayState, event: Travel) -> None:
        day.travels += 1

    @apply
    def moved(self, day: DayState, part: Moved) -> None:
        day.distances[part.direction] = day.distances.get(part.direction, 0) + part.distance

    @apply
    def stopped(self, day: DayState, part: Stopped) -> None:
        day.stops += 1
        day.stopped += part.duration


@dataclass
class DistanceState:
    day: int
    total: float


class Distance(MultiStream[DistanceState]):
    """One document per Travel event."""

    @key
    def each(self, event: RecordedEvent[Travel]) -> str:
        return f"{event.stream}/{event.version}"

    @create
    def of(self, event: Travel) -> DistanceState:
        return DistanceState(event.day, sum(one.distance for one in event.movements))


@dataclass
class PlaceState:
    visits: int = 0
    last: str = ""


class Place(MultiStream[PlaceState]):
    """Two documents per visit: of the place and of all places. Every seventh visit deletes it."""

    @key
    def places(self, event: Arrival | Departure) -> list[str]:
        return [event.state, "anywhere", event.state]

    @apply
    def visited(self, place: PlaceState, event: RecordedEvent[Arrival | Departure]) -> PlaceState:
        return PlaceState(place.visits + 1, event.stream)

    @delete
    def forgotten(self, place: PlaceState) -> bool:
        return place.visits == 7


MODELS = {"trips": Trip, "days": Day, "distances": Distance, "places": Place}


def trip_app(
    url: str,
    *,
    lifecycle: str = "async",
    models: Mapping[str, type[Any]] = MODELS,
    declared: Mapping[str, Any] | None = None,
    **settings: Any,
) -> App:
    """An app with all events and *models*, which are registered as *declared*."""
    app = App("trips", url, **{"failure_pause": 0.2, **settings})
    for event_name, cls in EVENTS.items():
        app.event(event_name)(cls)
    for name, model in models.items():
        app.projection(name, **{"lifecycle": lifecycle, **(declared or {})})(model)
    return app
