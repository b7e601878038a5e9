"""What the clients in Python share: the order they are given, the tally of a worker, the producers.

A client is a process of its own. What it shall do is JSON in ``BENCH_JOB`` (`Order`); the clients in other
languages read the same. A producer ends with one line of JSON, `{"jobs": ..., "seconds": ...}`. A worker
says ``ready`` when it is connected and knows its jobs, begins at a line on its standard input, keeps its
tally in the file ``progress``, and at the next line says what it did and ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import uvloop

PUBLISH = 0.01  # seconds between two writes of the tally
LAST_WORDS = 10.0  # seconds a worker has to leave its cluster


@dataclass(frozen=True, slots=True)
class Order:
    """What a client shall do.

    Attributes:
        command: ``install``, ``bulk``, ``insert``, ``paced`` or ``work``.
        jobs: How many to enqueue.
        warm_up: How many of them before the clock starts.
        writers: Concurrent callers; each call enqueues one job and returns when it is committed.
        rate: Jobs a second that are begun, whether or not the earlier calls have returned.
        progress: Where a worker keeps its tally.
        settings: The system's own.
    """

    command: str
    url: str
    jobs: int = 0
    warm_up: int = 0
    writers: int = 1
    rate: int = 0
    progress: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    def connections(self) -> int:
        """How many a producer has: one for each caller, up to what the system is fastest with."""
        return min(self.writers, int(self.settings.get("producers", self.writers)))


@dataclass(slots=True)
class Tally:
    """What the jobs of this process have done: how many ran, the sum of their numbers, their latencies."""

    executed: int = 0
    total: int = 0
    latencies: list[float] = field(default_factory=list)

    def add(self, number: int, moment: float = 0.0) -> None:
        """The body of the job."""
        if moment:
            self.latencies.append(time.time() - moment)
        self.executed += 1
        self.total += number


class Client(Protocol):
    """One system, as a client uses it."""

    async def install(self, order: Order) -> None:
        """Make its tables."""

    def open(self, order: Order) -> AbstractAsyncContextManager[Any]:
        """Connected, and the job known."""

    async def insert_many(self, numbers: Sequence[int]) -> None:
        """Enqueue a job for each number, in one transaction, by the fastest way its public face has."""

    async def insert(self, writer: int, number: int, moment: float = 0.0) -> None:
        """Enqueue one job in a transaction of its own."""

    async def work(self, tally: Tally) -> None:
        """Run jobs until cancelled."""


def main(client: Client) -> None:
    """Do what the order says."""
    order = Order(**json.loads(os.environ["BENCH_JOB"]))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        said = runner.run(_follow(client, order))
    print(json.dumps(said), flush=True)
    sys.stdout.flush()
    os._exit(0)  # what the system's threads still wait for is nobody's time


async def _follow(client: Client, order: Order) -> dict[str, Any]:
    if order.command == "install":
        await client.install(order)
        return {}
    async with client.open(order):
        match order.command:
            case "bulk":
                return await _bulk(client, order)
            case "insert":
                return await _insert(client, order)
            case "paced":
                return await _paced(client, order)
            case "work":
                return await _work(client, order)
    raise ValueError(order.command)


async def _bulk(client: Client, order: Order) -> dict[str, Any]:
    chunk = int(order.settings["chunk"])
    if order.warm_up:
        await client.insert_many(range(order.warm_up))
    began = time.perf_counter()
    for first in range(order.warm_up, order.jobs, chunk):
        await client.insert_many(range(first, min(first + chunk, order.jobs)))
    return _took(order, time.perf_counter() - began)


async def _insert(client: Client, order: Order) -> dict[str, Any]:
    numbers = iter(range(order.jobs))

    async def write(writer: int, share: int) -> None:
        for _ in range(share):
            await client.insert(writer, next(numbers))

    await _together(lambda n: write(n, order.warm_up // order.writers), order.writers)
    began = time.perf_counter()
    share = (order.jobs - order.warm_up) // order.writers
    await _together(lambda n: write(n, share), order.writers)
    return _took(order, time.perf_counter() - began)


async def _together(write: Callable[[int], Awaitable[None]], writers: int) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(writers):
            group.create_task(write(number))  # type: ignore[arg-type]


async def _paced(client: Client, order: Order) -> dict[str, Any]:
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(order.jobs):
            early = began + number / order.rate - time.perf_counter()
            if early > 0:
                await asyncio.sleep(early)
            group.create_task(client.insert(number % order.writers, number, time.time()))
    return _took(order, time.perf_counter() - began)


def _took(order: Order, seconds: float) -> dict[str, Any]:
    return {"jobs": order.jobs - order.warm_up, "seconds": seconds}


async def _work(client: Client, order: Order) -> dict[str, Any]:
    tally = Tally()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    threading.Thread(target=_publish, args=(tally, order.progress), daemon=True).start()
    working = asyncio.create_task(client.work(tally))
    stop = asyncio.create_task(asyncio.to_thread(sys.stdin.readline))
    await asyncio.wait((working, stop), return_when=asyncio.FIRST_COMPLETED)
    if working.done():
        working.result()
        raise RuntimeError("the worker ended of itself")
    working.cancel()
    with suppress(TimeoutError, asyncio.CancelledError):
        await asyncio.wait_for(working, LAST_WORDS)
    return {"executed": tally.executed, "total": tally.total, "latencies": tally.latencies}


def _publish(tally: Tally, path: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    last = -1
    while True:
        if tally.executed != last:
            last = tally.executed
            os.pwrite(file, b"%20d" % last, 0)  # one write of one length: a reader never sees half
        time.sleep(PUBLISH)
