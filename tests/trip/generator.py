"""Random journeys: always the same for the same seed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from typing import Any

from strandline.app import App
from trip.domain import (
    Arrival,
    Breakdown,
    Departure,
    FailingEvent,
    Movement,
    Stop,
    Travel,
    TripAborted,
    TripEnded,
    TripStarted,
    VacationOver,
)

STATES = ["Texas", "Utah", "Ohio", "Maine", "Iowa", "Idaho", "Kansas"]
DIRECTIONS = ["north", "east", "south", "west"]


def trip(rng: random.Random) -> list[Any]:
    """The events of one journey, and now and then of one that begins again after its end."""
    day = rng.randint(1, 99)
    events: list[Any] = [TripStarted(day), Departure(day, rng.choice(STATES))]
    last = day + rng.randint(1, 19)
    while day < last:
        events.append(travel(rng, day))
        if rng.random() < 0.7:
            events.append(Departure(day, rng.choice(STATES)))
            state = "Limbo" if rng.random() < 0.01 else rng.choice(STATES)
            events.append(Arrival(day, state))
        day += 1
    events.insert(rng.randrange(2, len(events)), FailingEvent())
    if rng.random() < 0.5:
        events.append(TripEnded(day, rng.choice(STATES)))
    end = rng.random()
    if end < 0.1:
        events.insert(rng.randrange(2, len(events)), TripAborted())
    elif end < 0.3:
        events.insert(rng.randrange(2, len(events)), Breakdown(rng.random() < 0.5))
    elif end < 0.5:
        events.insert(rng.randrange(2, len(events)), VacationOver())
    if rng.random() < 0.1:
        events.extend(trip(rng))
    return events


def travel(rng: random.Random, day: int) -> Travel:
    """A day on the road. Distances are whole, so that sums do not depend on their order."""
    movements = [
        Movement(rng.choice(DIRECTIONS), float(rng.randint(5, 29)))
        for _ in range(rng.randint(1, 19))
    ]
    stops = [Stop(rng.choice(STATES), rng.randint(10, 29)) for _ in range(rng.randint(1, 9))]
    return Travel(day, movements, stops)


def trips(count: int, seed: int) -> dict[str, list[Any]]:
    """*count* journeys by stream id."""
    rng = random.Random(seed)
    return {f"trip-{number}": trip(rng) for number in range(1, count + 1)}


def chunks(events: Sequence[Any], rng: random.Random) -> Iterator[list[Any]]:
    """*events* in order, one to four at a time."""
    begun = 0
    while begun < len(events):
        size = rng.randint(1, 4)
        yield list(events[begun : begun + size])
        begun += size


async def publish(
    app: App, journeys: dict[str, list[Any]], *, tenant: str = "default", writers: int = 1
) -> None:
    """Append *journeys* in random small chunks, mixed, by that many tasks at once."""
    rng = random.Random(len(journeys))
    waiting = {stream: list(chunks(events, rng)) for stream, events in journeys.items()}
    shares = [list(waiting)[number::writers] for number in range(writers)]

    async def write(share: list[str], rng: random.Random) -> None:
        open_streams = list(share)
        while open_streams:
            stream = rng.choice(open_streams)
            await app.append(stream, waiting[stream].pop(0), tenant=tenant)
            if not waiting[stream]:
                open_streams.remove(stream)

    async with asyncio.TaskGroup() as group:
        for number, share in enumerate(shares):
            group.create_task(write(share, random.Random(number)))
