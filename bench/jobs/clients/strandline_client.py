"""strandline by its public face. Calls of one process that wait for a commit share it, as in any service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import strandline as sl
from bench.jobs.clients.client import Order, Tally, main


class Strandline:
    """An app with one job."""

    async def install(self, order: Order) -> None:
        async with sl.App("bench", order.url):
            pass

    @asynccontextmanager
    async def open(self, order: Order) -> AsyncIterator[None]:
        own = {name: value for name, value in order.settings.items() if name != "chunk"}
        self.app = sl.App("bench", order.url, **own)
        self.tally = Tally()

        @self.app.job(name="noop")
        async def noop(i: int, t: float = 0.0) -> None:
            if i >= 0:  # those below only stand in the way, see scale.py
                self.tally.add(i, t)

        self.noop = noop
        async with self.app:
            yield

    async def insert_many(self, numbers: Sequence[int]) -> None:
        call = self.noop.call
        await self.app.enqueue_many([call(i=number) for number in numbers])

    async def insert(self, writer: int, number: int, moment: float = 0.0) -> None:
        if moment:
            await self.app.enqueue(self.noop, i=number, t=moment)
        else:
            await self.app.enqueue(self.noop, i=number)

    async def work(self, tally: Tally) -> None:
        self.tally = tally
        await self.app.start()
        try:
            await asyncio.Event().wait()
        finally:
            await self.app.stop()


if __name__ == "__main__":
    main(Strandline())
