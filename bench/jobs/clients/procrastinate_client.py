"""Procrastinate, by psycopg with its C part."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import procrastinate

from bench.jobs.clients.client import Order, Tally, main


class Peer:
    """An app with one task."""

    @staticmethod
    def _make(order: Order) -> procrastinate.App:
        pool = int(order.settings["pool"]) if order.command == "work" else order.connections()
        connector = procrastinate.PsycopgConnector(conninfo=order.url, min_size=pool, max_size=pool)
        return procrastinate.App(connector=connector)

    async def install(self, order: Order) -> None:
        async with self._make(order).open_async() as app:
            await app.schema_manager.apply_schema_async()

    @asynccontextmanager
    async def open(self, order: Order) -> AsyncIterator[None]:
        self.settings = order.settings
        self.tally = Tally()
        self.app = self._make(order)

        @self.app.task(name="noop")
        async def noop(i: int, t: float = 0.0) -> None:
            self.tally.add(i, t)

        self.noop = noop
        async with self.app.open_async():
            yield

    async def insert_many(self, numbers: Sequence[int]) -> None:
        payloads: list[Any] = [{"i": number} for number in numbers]
        await self.noop.batch_defer_async(*payloads)

    async def insert(self, writer: int, number: int, moment: float = 0.0) -> None:
        if moment:
            await self.noop.defer_async(i=number, t=moment)
        else:
            await self.noop.defer_async(i=number)

    async def work(self, tally: Tally) -> None:
        self.tally = tally
        await self.app.run_worker_async(
            concurrency=self.settings["concurrency"], install_signal_handlers=False
        )


if __name__ == "__main__":
    logging.getLogger("procrastinate").setLevel(logging.ERROR)  # nothing is logged per job
    main(Peer())
