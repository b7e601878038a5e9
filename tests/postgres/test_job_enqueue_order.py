"""Ordered jobs keep the order in which they were enqueued, by whichever way they were."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import psycopg
import pytest
from tally import connected, holds

from strandline import sync
from strandline.app import App
from strandline.errors import PoolExhausted
from strandline.jobs.job import Call

MOST = 40


class Ledger:
    def __init__(self, url: str, **settings: Any) -> None:
        self.url = url
        self.app = App("ledger", url, **settings)

        @self.app.job(ordered=True, key=lambda number: "a")
        async def book(number: int) -> None: ...

        self.book = book

    def calls(self, which: str) -> list[Call[Any]]:
        """All with a unique key, whose order is another one, or only some."""
        unique = range(MOST) if which == "all" else (0, 3, 4, 5, 9, 15, 16, 17, 18, 30)
        return [
            self.book.call(n).with_(unique=f"u{-n % 7}{n}") if n in unique else self.book.call(n)
            for n in range(MOST)
        ]

    async def order(self) -> list[int]:
        async with connected(self.url) as connection:
            found = await connection.fetch("SELECT args FROM strandline.jobs ORDER BY state, seq")
        return [json.loads(one[0])["number"] for one in found]


@pytest.mark.parametrize("which", ["all", "some"])
@pytest.mark.parametrize("way", ["together", "many", "transaction", "blocking"])
async def test_with_unique_keys_and_without(database_url: str, way: str, which: str) -> None:
    ledger = Ledger(database_url)
    async with ledger.app as app:
        if way == "together":
            await asyncio.gather(*(app.enqueue(one) for one in ledger.calls(which)))
        elif way == "many":
            await app.enqueue_many(ledger.calls(which))
        elif way == "transaction":
            async with app.transaction() as tx:
                await tx.enqueue_many(ledger.calls(which))

    def blocking() -> None:
        with sync.App("ledger", database_url, registry=ledger.app.registry) as app:
            app.enqueue_many(ledger.calls(which))

    if way == "blocking":
        await asyncio.to_thread(blocking)

    assert await ledger.order() == list(range(MOST))


async def test_one_whose_unique_key_is_held_lets_only_those_of_other_keys_pass(
    database_url: str,
) -> None:
    ledger = Ledger(database_url)
    async with ledger.app as app:
        async with app.transaction() as tx:
            await tx.enqueue(ledger.book.call(0).with_(unique="held"))
            first = asyncio.create_task(app.enqueue(ledger.book.call(1).with_(unique="held")))
            second = asyncio.create_task(app.enqueue(ledger.book, 2))
            await app.enqueue(ledger.book.call(3).with_(key="b"))
            assert not first.done()
            assert not second.done()
        assert (await first).is_new is False
        await second

    assert sorted(await ledger.order()) == [0, 2, 3]


async def test_who_waits_for_a_unique_key_waits_no_longer_than_for_an_answer(
    database_url: str,
) -> None:
    ledger = Ledger(database_url, statement_timeout=0.5)
    async with ledger.app as app:
        async with app.transaction() as tx:
            await tx.enqueue(ledger.book.call(0).with_(unique="held"))
            call = ledger.book.call(1).with_(unique="held", ordered=False)
            waiting = [asyncio.create_task(app.enqueue(call)) for _ in range(8)]
            _, late = await asyncio.wait(waiting, timeout=20)
            assert not late
        errors = [one.exception() for one in waiting]
        assert sum(isinstance(one, PoolExhausted) for one in errors) >= 6

        async def is_free() -> bool:  # and nobody's turn is left over
            return not app.enqueuer._turns._lines

        await holds(is_free)
        await app.enqueue(call.with_(unique="free"))


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_one_of_a_joined_transaction_is_let_go_by_its_commit(
    database_url: str, driver: str
) -> None:
    ledger = Ledger(database_url)
    query = "SELECT count(*) FROM strandline.jobs WHERE state = 0"

    def blocking() -> None:
        with (
            sync.App("ledger", database_url, registry=ledger.app.registry) as app,
            psycopg.connect(database_url) as connection,
        ):
            app.join(connection).enqueue(ledger.book, 0)

    async with ledger.app as app, connected(database_url) as connection:
        if driver == "psycopg":
            await asyncio.to_thread(blocking)
        else:
            async with connection.transaction():
                await app.join(connection).enqueue(ledger.book, 0)

        async def is_let_go() -> bool:  # by this app: there is no leader whose sweep would find it
            return bool(await connection.fetchval(query))

        await holds(is_let_go)
