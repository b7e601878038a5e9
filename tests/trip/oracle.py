"""What the read models must hold, worked out without strandline: plain Python over plain events."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from trip.domain import DayState, DistanceState, PlaceState, TripState

Stored = tuple[str, int, Any]
"""Stream, version, event: in the order of positions."""


def expected_documents(events: Iterable[Stored]) -> dict[str, dict[str, Any]]:
    """For each read model its documents by id."""
    trips: dict[str, TripState] = {}
    days: dict[str, DayState] = {}
    distances: dict[str, DistanceState] = {}
    places: dict[str, PlaceState] = {}
    for stream, version, event in events:
        kind = type(event).__name__
        _trip(trips, stream, kind, event)
        if kind in ("TripStarted", "TripEnded", "Travel"):
            day = days.setdefault(str(event.day), DayState())
            if kind == "TripStarted":
                day.started += 1
            elif kind == "TripEnded":
                day.ended += 1
            else:
                _travel(day, event)
                total = sum(one.distance for one in event.movements)
                distances[f"{stream}/{version}"] = DistanceState(event.day, total)
        if kind in ("Arrival", "Departure"):
            for name in (event.state, "anywhere"):
                visits = places[name].visits if name in places else 0
                if visits == 6:
                    del places[name]
                else:
                    places[name] = PlaceState(visits + 1, stream)
    return {"trips": trips, "days": days, "distances": distances, "places": places}


def _trip(trips: dict[str, TripState], stream: str, kind: str, event: Any) -> None:
    if kind == "TripStarted":
        trips[stream] = TripState(event.day)
        return
    trip = trips.get(stream)
    if trip is None:
        return
    if kind == "Arrival":
        trip.state = event.state
    elif kind == "Travel":
        trip.traveled += sum(one.distance for one in event.movements)
    elif kind == "FailingEvent" and event.reason:
        trip.traveled = 0.0  # as the mended rule of poison.py says
    elif kind == "TripEnded":
        trip.active, trip.ended_on, trip.state = False, event.day, event.state
    gone = (
        kind == "TripAborted"
        or (kind == "Breakdown" and event.is_critical)
        or (kind == "VacationOver" and trip.traveled > 1000)
        or (kind == "Arrival" and trip.state == "Limbo")
    )
    if gone:
        del trips[stream]


def _travel(day: DayState, event: Any) -> None:
    day.travels += 1
    for one in event.movements:
        day.distances[one.direction] = day.distances.get(one.direction, 0) + one.distance
    for stop in event.stops:
        day.stops += 1
        day.stopped += stop.duration
