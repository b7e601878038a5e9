"""PgQueuer, by asyncpg, its faster driver."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.queries import Queries

from bench.jobs.clients.client import Order, Tally, main


class Peer:
    """A queue manager with one entry point."""

    async def install(self, order: Order) -> None:
        connection = await asyncpg.connect(order.url)
        await Queries(AsyncpgDriver(connection)).install()
        await connection.close()

    @asynccontextmanager
    async def open(self, order: Order) -> AsyncIterator[None]:
        self.settings = order.settings
        async with AsyncExitStack() as stack:
            self.drivers = []
            for _ in range(order.connections()):
                connection = await asyncpg.connect(order.url)
                stack.push_async_callback(connection.close)
                self.drivers.append(AsyncpgDriver(connection))
            self.queries = [Queries(driver) for driver in self.drivers]
            yield

    async def insert_many(self, numbers: Sequence[int]) -> None:
        await self.queries[0].enqueue(
            ["noop"] * len(numbers),
            [b'{"i":%d}' % number for number in numbers],
            [0] * len(numbers),
        )

    async def insert(self, writer: int, number: int, moment: float = 0.0) -> None:
        payload = b'{"i":%d,"t":%f}' % (number, moment) if moment else b'{"i":%d}' % number
        await self.queries[writer % len(self.queries)].enqueue("noop", payload, 0)

    async def work(self, tally: Tally) -> None:
        manager = PgQueuer(self.drivers[0])

        @manager.entrypoint("noop")
        async def noop(job: Any) -> None:
            payload = json.loads(job.payload)
            tally.add(payload["i"], payload.get("t", 0.0))

        await manager.run(batch_size=self.settings["batch"])


if __name__ == "__main__":
    main(Peer())
