"""What every system's workloads share: sizes, the place they run in, concurrent writers, latency.

A system is a module with ``SYSTEMS``: ``{system: {workload: function}}``. A function is given a
`Place` (an empty database of its own), prepares what it needs, calls `Place.ready`, measures, checks
what came out against `workload.expected`, and answers its `Measure`s. It runs in a process of its
own, so that nothing one system leaves in memory slows the next.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import importlib.util
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import asyncpg

Task = TypeVar("Task")

WORKLOADS = (
    "append_1",
    "append_16",
    "append_64",
    "append_256",
    "append_batch_100",
    "import",
    "catch_up",
    "table_catch_up",
    "rebuild",
    "visible_latency_p99",
)
MODULES = {
    "strandline": "bench.strandline_peer",
    "strandline_single_stream": "bench.strandline_peer",
    "eventsourcing": "bench.eventsourcing_peer",
    "limit": "bench.limits",
}
POLL = 0.001  # seconds between two looks of the observer
WARM_UP = 20  # appends that are not counted in a latency
APPEND_RATE = 200  # a second, while visible latency is measured
PATIENCE = 60.0  # seconds for an append to become visible, and for a projection to move


class Measure(NamedTuple):
    """One number that a workload found."""

    metric: str
    value: float
    unit: str


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is done.

    Attributes:
        alone: Events per account that a single writer appends.
        together: Events per account that concurrent writers append.
        log: Events per account in a log that is imported, read or projected, and in the batches.
        singly: The same for a system that projects one event a transaction, so that a run ends
            in minutes.
        latencies: Appends whose visibility is timed.
    """

    alone: int
    together: int
    log: int
    singly: int
    latencies: int


FULL = Sizes(alone=10, together=50, log=100, singly=20, latencies=2000)
SHORT = Sizes(alone=1, together=2, log=2, singly=2, latencies=100)


@dataclass(frozen=True, slots=True)
class Place:
    """An empty database, and how much to do in it."""

    url: str
    sizes: Sizes

    async def ready(self) -> None:
        """Call it between preparing and measuring: no old work of server or interpreter is left."""
        connection = await asyncpg.connect(self.url)
        try:
            await connection.execute("CHECKPOINT")
        finally:
            await connection.close()
        gc.collect()
        gc.freeze()  # what was prepared is not looked through again during the measurement


Workload = Callable[[Place], Coroutine[Any, Any, list[Measure]]]


def find_workloads(system: str) -> dict[str, Workload]:
    """The workloads of *system*; none if its module is not there."""
    if importlib.util.find_spec(MODULES[system]) is None:
        return {}
    systems: dict[str, dict[str, Workload]] = importlib.import_module(MODULES[system]).SYSTEMS
    return systems[system]


async def append_concurrently(
    shares: Sequence[Sequence[Task]], append: Callable[[Task], Awaitable[Any]]
) -> list[Measure]:
    """Let one asyncio task per share append what is in it, one after the other."""
    latencies: list[float] = []

    async def write(share: Sequence[Task]) -> None:
        for task in share:
            began = time.perf_counter()
            await append(task)
            latencies.append(time.perf_counter() - began)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for share in shares:
            group.create_task(write(share))
    return appended(len(latencies), time.perf_counter() - began, latencies)


def appended(events: int, seconds: float, latencies: Sequence[float]) -> list[Measure]:
    """The measures of appends: the rate in events, and what one append took."""
    return [rate(events, seconds), *percentiles(latencies)]


def rate(events: int, seconds: float) -> Measure:
    """Events a second."""
    return Measure("rate", events / seconds, "events/s")


def percentiles(latencies: Sequence[float]) -> list[Measure]:
    """Median and 99th percentile of *latencies*, given in seconds."""
    ordered = sorted(latencies)
    return [
        Measure(name, ordered[int(len(ordered) * share)] * 1000, "ms")
        for name, share in (("p50", 0.5), ("p99", 0.99))
    ]


async def visible_latency(
    place: Place, append: Callable[[int], Awaitable[int]], newest: str
) -> list[Measure]:
    """Time from when an append has returned until another connection sees its effect.

    Args:
        place: Where; a projection is running in it, and is idle.
        append: Appends the event with this number (from 0), and answers its position.
        newest: SQL for the position up to which effects are visible. Asked every millisecond.
    """
    waiting: list[tuple[int, float]] = []
    latencies: list[float] = []
    wanted = WARM_UP + place.sizes.latencies

    async def observe() -> None:
        connection = await asyncpg.connect(place.url)
        try:
            query = await connection.prepare(newest)
            while len(latencies) < wanted:
                position = await query.fetchval() or 0
                now = time.perf_counter()
                while waiting and waiting[0][0] <= position:
                    latencies.append(max(0.0, now - waiting.pop(0)[1]))
                if waiting and now - waiting[0][1] > PATIENCE:
                    raise TimeoutError(f"position {waiting[0][0]} does not become visible")
                await asyncio.sleep(POLL)
        finally:
            await connection.close()

    await place.ready()
    observer = asyncio.create_task(observe())
    began = time.perf_counter()
    for number in range(wanted):
        await asyncio.sleep(max(0.0, began + number / APPEND_RATE - time.perf_counter()))
        position = await append(number)
        waiting.append((position, time.perf_counter()))
    achieved = wanted / (time.perf_counter() - began)
    await observer
    # On a busy machine the writer falls behind: then these are the latencies of a lower rate.
    return [Measure("offered", achieved, "events/s"), *percentiles(latencies[WARM_UP:])]
