"""Poison among much else: in one of a thousand streams while a node is killed; thirty in one batch."""

from __future__ import annotations

import asyncio
import os
import random
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from crowd import PYTHONPATH, QUICK, soon
from tally import connected
from trip.checks import assert_documents, log_of
from trip.domain import Arrival, Day, Departure, TripStarted, trip_app
from trip.generator import STATES, travel
from trip.poison import (
    HANDLED,
    POISON,
    FragileTrip,
    before_poison,
    behind_poison,
    but_poison,
    is_poison,
    poisoned,
)

import strandline as sl
from strandline.app import App
from strandline.testing import NodeProcess

HERE = Path(__file__).parent
STREAMS = 1000
SHARDS = 2


def short_trips(count: int, seed: int) -> dict[str, list[Any]]:
    """*count* journeys of five events each, all of which leave a document."""
    rng = random.Random(seed)
    return {
        f"trip-{number}": [
            TripStarted(rng.randint(1, 99)),
            Departure(rng.randint(1, 99), rng.choice(STATES)),
            travel(rng, rng.randint(1, 99)),
            Arrival(rng.randint(1, 99), rng.choice(STATES)),
            travel(rng, rng.randint(1, 99)),
        ]
        for number in range(1, count + 1)
    }


async def fill(app: App, journeys: dict[str, list[Any]], *, hold: asyncio.Event) -> int:
    """Append *journeys* mixed: the first event of each, the second of each and so on; the head.

    The last events wait for *hold*.
    """
    longest = max(len(events) for events in journeys.values())
    for turn in range(longest):
        if turn == 4:
            await hold.wait()
        waiting = [
            (stream, [events[turn]]) for stream, events in journeys.items() if turn < len(events)
        ]
        for begun in range(0, len(waiting), 100):
            await app.append_many(waiting[begun : begun + 100])
    return await app.highest_position()


def let() -> asyncio.Event:
    """Nothing waits for it."""
    event = asyncio.Event()
    event.set()
    return event


# ---- one poison event in a thousand streams, a cluster of two, one of them killed


def node(url: str, folder: Path, name: str, *, mended: bool = False) -> NodeProcess:
    environment = {
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), *PYTHONPATH]),
        "PYTHONUNBUFFERED": "1",
        "TRIPS_SHARDS": str(SHARDS),
        "TRIPS_MENDED": "1" if mended else "",
    }
    return NodeProcess(
        "trip_node:app",
        url,
        name=name,
        settings={**QUICK, "page_events": 100, "rebalance_after": 0.2},
        environment=environment,
        log=folder / f"{name}.log",
        folder=HERE,
    )


async def test_a_poison_event_in_one_of_1000_streams_stops_nothing_else_though_a_node_is_killed(
    database_url: str, tmp_path: Path
) -> None:
    journeys = poisoned(short_trips(STREAMS, seed=41), ["trip-500"])
    app = trip_app(
        database_url, models={"trips": FragileTrip, "days": Day}, declared={"shards": SHARDS}
    )
    async with app, connected(database_url) as look, AsyncExitStack() as stack:
        nodes = {
            name: await stack.enter_async_context(node(database_url, tmp_path, name))
            for name in "ab"
        }
        for one in nodes.values():
            await one.until("active", timeout=30)
        await soon(lambda: owners(look, count=2))
        killed = asyncio.Event()
        filling = asyncio.create_task(fill(app, journeys, hold=killed))
        victim, stood = await soon(lambda: owner_of_the_letter(look))
        nodes[victim].kill()
        (survivor,) = (one for name, one in nodes.items() if name != victim)
        killed.set()

        head = await filling
        assert stood < head, "it was in the middle"
        await soon(lambda: positions_beyond(look, head), timeout=60)
        events = await log_of(app)
        await assert_documents(app, "trips", events=before_poison(events))
        await assert_documents(app, "days")
        await assert_parked_in_order(app, look, "trip-500")

        survivor.terminate()
        await survivor.gone(timeout=30)
        mended = await stack.enter_async_context(node(database_url, tmp_path, "c", mended=True))
        await mended.until("active", timeout=30)
        assert await app.letters.retry(stream="trip-500") >= 1
        await soon(lambda: no_letters(app), timeout=30)

        await assert_documents(app, "trips", "days")


async def owners(look: Any, *, count: int) -> bool:
    """Whether so many nodes have a shard each, at least."""
    found = await look.fetchval("SELECT count(DISTINCT owner) FROM strandline.assignments")
    return bool(found >= count)


async def owner_of_the_letter(look: Any) -> Any:
    """Who has put the poison aside, and where that shard stands; None before anybody has."""
    return await look.fetchrow(
        """SELECT n.name, s.position
             FROM strandline.dead_letters d
             JOIN strandline.shards s ON s.name = d.shard
             JOIN strandline.nodes n ON n.id = s.owner
            WHERE d.category = 'apply'"""
    )


async def positions_beyond(look: Any, position: int) -> bool:
    found = await look.fetch("SELECT position FROM strandline.shards")
    return len(found) == 2 * SHARDS and min(row[0] for row in found) >= position


async def assert_parked_in_order(app: App, look: Any, stream: str) -> None:
    """The poison and everything after it are letters, once each; only the poison has failed."""
    wanted = [
        (one.position, one.version, "apply" if is_poison(one.data) else None)
        for one in await app.read_stream(stream)
        if isinstance(one.data, HANDLED)
    ]
    first = next(number for number, one in enumerate(wanted) if one[2])
    rows = await look.fetch(
        """SELECT position, version, category, status, stream, label
             FROM strandline.dead_letters ORDER BY id"""
    )
    assert [tuple(row)[:3] for row in rows] == wanted[first:]
    assert {tuple(row)[3:] for row in rows} == {("parked", stream, "trips:v1")}


async def no_letters(app: App) -> bool:
    return not await app.letters.list()


# ---- thirty poison events in a batch of 5,000


@pytest.mark.parametrize("action", ["skip", "park"])
async def test_30_poison_events_in_a_batch_of_5000_are_put_aside_and_all_else_is_applied(
    database_url: str, action: str
) -> None:
    chosen = [f"trip-{number}" for number in range(20, 920, 30)]
    assert len(chosen) == 30
    journeys = poisoned(short_trips(994, seed=42), chosen)
    app = trip_app(
        database_url,
        models={"trips": FragileTrip},
        declared={"on_error": sl.ErrorPolicy(apply=action)},
        page_events=5000,
    )
    async with app, connected(database_url) as look:
        head = await fill(app, journeys, hold=let())
        assert head == 5000
        begun = time.monotonic()
        await app.catch_up(timeout=60)
        seconds = time.monotonic() - begun
        print(f"\n5,000 events with 30 poison events ({action}): {seconds:.2f} s")

        events = await log_of(app)
        left = but_poison(events) if action == "skip" else before_poison(events)
        await assert_documents(app, "trips", events=left)
        failed = await look.fetch(
            """SELECT stream, position, status FROM strandline.dead_letters
                WHERE category = 'apply' ORDER BY position"""
        )
        status = "skipped" if action == "skip" else "parked"
        assert [row["stream"] for row in failed] == chosen
        assert {row["status"] for row in failed} == {status}
        behind = await look.fetchval(
            "SELECT count(*) FROM strandline.dead_letters WHERE category IS NULL"
        )
        assert behind == (0 if action == "skip" else len(behind_poison(events)) - 30)
        assert seconds < 30
        assert POISON.reason in await look.fetchval(
            "SELECT error::text FROM strandline.dead_letters WHERE category = 'apply' LIMIT 1"
        )
