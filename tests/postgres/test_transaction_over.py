"""A transaction that is used after its end: told as that, and nothing is done."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from strandline import sync
from strandline.app import App
from strandline.errors import NotOpen


class Shop:
    def __init__(self, url: str) -> None:
        self.app = App("shop", url, work_connections=4)

        @self.app.job
        async def send(number: int) -> None: ...

        self.send = send


async def test_nothing_can_be_enqueued_or_asked_in_it(database_url: str) -> None:
    shop = Shop(database_url)
    async with shop.app as app:
        async with app.transaction() as tx:
            await tx.enqueue(shop.send, 1)
        for use in (
            lambda: tx.enqueue(shop.send, 2),
            lambda: tx.enqueue_many([shop.send.call(3)]),
            lambda: tx.fetch("SELECT 1"),
            lambda: tx.execute("SELECT 1"),
            lambda: tx.read_stream("a"),
        ):
            with pytest.raises(NotOpen, match="the transaction is over"):
                await use()

        assert len(await app.jobs.list()) == 1


async def test_nor_in_a_blocking_one_whose_connection_is_somebody_elses_by_then(
    database_url: str,
) -> None:
    shop = Shop(database_url)

    def use() -> None:
        with sync.App("shop", database_url, registry=shop.app.registry) as app:
            with app.transaction() as tx:
                tx.enqueue(shop.send, 1)
            with pytest.raises(ZeroDivisionError), app.transaction():
                uses: tuple[Any, ...] = (
                    lambda: tx.enqueue(shop.send, 2),
                    lambda: tx.enqueue_many([shop.send.call(3)]),
                    lambda: tx.fetch("SELECT 1"),
                )
                for one in uses:
                    with pytest.raises(NotOpen, match="the transaction is over"):
                        one()
                raise ZeroDivisionError

    await asyncio.to_thread(use)
    async with shop.app as app:
        assert len(await app.jobs.list()) == 1
