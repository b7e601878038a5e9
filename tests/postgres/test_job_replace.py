"""Jobs that are replaced by others of their unique key: they take on all that those say."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from tally import connected, holds

from strandline.app import App
from strandline.jobs.flow import chain
from strandline.jobs.job import Unique
from strandline.jobs.order import promote


async def fetch(url: str, query: str) -> list[tuple[Any, ...]]:
    async with connected(url) as connection:
        return [tuple(one) for one in await connection.fetch(query)]


class Bank:
    """Bookings in the order of their account, of which each number is booked once."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.app = App("bank", url, work_connections=8)
        by = Unique(by=("number",), on_duplicate="replace")

        @self.app.job(ordered=True, key=lambda number, account: account, unique=by)
        async def book(number: int, account: str) -> None: ...

        self.book = book

    async def rows(self) -> list[tuple[Any, ...]]:
        """Number, account, queue and state, in the order of the lines."""
        query = (
            "SELECT args, key, queue, state FROM strandline.jobs ORDER BY queue, key, state, seq"
        )
        found = await fetch(self.url, query)
        numbers = [json.loads(one[0]) for one in found]
        assert [one["account"] for one in numbers] == [one[1] for one in found]
        return [(args["number"], *one[1:]) for args, one in zip(numbers, found, strict=True)]

    async def become(self, *expected: tuple[Any, ...]) -> None:
        async def are_so() -> bool:
            return await self.rows() == list(expected)

        await holds(are_so)


async def test_one_that_changes_its_key_goes_to_the_end_of_that_line_and_its_own_goes_on(
    database_url: str,
) -> None:
    bank = Bank(database_url)
    async with bank.app as app:
        for number, account in enumerate("aabb"):
            await app.enqueue(bank.book, number, account)
        await bank.become(
            (0, "a", "default", 0), (1, "a", "default", 3), (2, "b", "default", 0), (3, "b", "default", 3)
        )  # fmt: skip

        await app.enqueue(bank.book, 0, "b")

        await bank.become(
            (1, "a", "default", 0), (2, "b", "default", 0), (3, "b", "default", 3), (0, "b", "default", 3)
        )  # fmt: skip


async def test_one_that_keeps_its_key_keeps_its_place(database_url: str) -> None:
    bank = Bank(database_url)
    async with bank.app as app:
        for number in range(3):
            await app.enqueue(bank.book, number, "a")
        lines = [(0, "a", "default", 0), (1, "a", "default", 3), (2, "a", "default", 3)]
        await bank.become(*lines)

        for number in (1, 0):
            await app.enqueue(bank.book, number, "a")

        assert await bank.rows() == lines


@pytest.mark.parametrize("is_ordered", [True, False])
async def test_one_that_is_ordered_no_more_or_only_now(database_url: str, is_ordered: bool) -> None:
    bank = Bank(database_url)
    async with bank.app as app:
        await app.enqueue(bank.book.call(1, "a").with_(ordered=not is_ordered))
        await app.enqueue(bank.book.call(2, "a"))
        head = 1 if not is_ordered else 2
        async with connected(database_url) as connection:
            query = "SELECT args FROM strandline.jobs WHERE state = 0 AND flags & 1 = 1"

            async def is_head(number: int) -> bool:
                found = await connection.fetch(query)
                return [json.loads(one[0])["number"] for one in found] == [number]

            await holds(lambda: is_head(head))

            await app.enqueue(bank.book.call(1, "a").with_(ordered=is_ordered))

            await holds(lambda: is_head(2))
        states = [3, 0] if is_ordered else [0, 0]
        assert [one[3] for one in sorted(await bank.rows())] == states


async def test_one_that_waits_for_others_of_its_flow_goes_on_waiting(database_url: str) -> None:
    bank = Bank(database_url)
    async with bank.app as app:
        await app.enqueue(chain(bank.book.call(1, "a"), bank.book.call(2, "b")))
        await bank.become((1, "a", "default", 0), (2, "b", "default", 3))

        await app.enqueue(bank.book.call(2, "c").with_(ordered=False, delay=60))

        assert await bank.rows() == [(1, "a", "default", 0), (2, "c", "default", 3)]


async def test_lines_that_are_changed_by_many_at_once_lose_nobody(database_url: str) -> None:
    bank, other = Bank(database_url), Bank(database_url)
    async with bank.app as app, other.app:

        async def shuffle(one: Bank, seed: int) -> None:
            for turn in range(30):
                number = (turn * 7 + seed) % 8
                call = one.book.call(number, "abc"[(turn + seed) % 3])
                await one.app.enqueue(call.with_(queue="xy"[turn % 2]))

        await asyncio.gather(*(shuffle(one, seed) for seed in range(3) for one in (bank, other)))

        async def each_line_has_one_in_front() -> bool:
            found = await bank.rows()
            heads = [one[1:3] for one in found if one[3] != 3]
            return sorted(heads) == sorted({one[1:3] for one in found})

        await holds(each_line_has_one_in_front)
        assert sorted(one[0] for one in await bank.rows()) == list(range(8))
    assert app is bank.app


async def test_one_that_changes_its_line_just_when_it_was_its_turn_waits_in_the_other(
    database_url: str,
) -> None:
    bank = Bank(database_url)
    async with bank.app as app, connected(database_url) as connection:
        for number, account in ((1, "a"), (2, "a"), (3, "b")):
            await app.enqueue(bank.book, number, account)
        await bank.become((1, "a", "default", 0), (2, "a", "default", 3), (3, "b", "default", 0))
        await connection.execute("DELETE FROM strandline.jobs WHERE state = 0 AND key = 'a'")
        async with app.transaction() as tx:
            await tx.enqueue(bank.book, 2, "b")
            promoting = asyncio.create_task(app.pools.control.run(promote([("default", "a")])))

            async def waits() -> bool:
                query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
                return bool(await connection.fetchval(query))

            await holds(waits)

        assert await promoting == set()
        assert await bank.rows() == [(3, "b", "default", 0), (2, "b", "default", 3)]


async def test_a_replaced_job_gets_the_key_of_its_new_arguments(database_url: str) -> None:
    app = App("shop", database_url)

    @app.job(
        key=lambda order, customer: customer,
        unique=Unique(by=("order",), on_duplicate="replace"),
    )
    async def ship(order: int, customer: str) -> None: ...

    async with app:
        await app.enqueue(ship, 1, "ada")
        await app.enqueue(ship, 1, "bob")

    found = await fetch(database_url, "SELECT args, key FROM strandline.jobs")
    assert found == [('{"order":1,"customer":"bob"}', "bob")]


async def test_an_ordered_job_can_be_replaced_by_one_for_another_queue(database_url: str) -> None:
    app = App("shop", database_url)

    @app.job(
        ordered=True,
        key=lambda number, text: "a",
        unique=Unique(by=("number",), on_duplicate="replace"),
    )
    async def book(number: int, text: str) -> None: ...

    async def heads() -> int:
        query = "SELECT count(*) FROM strandline.jobs WHERE state = 0"
        return int((await fetch(database_url, query))[0][0])

    async def both() -> bool:
        return await heads() == 2

    async with app:
        await app.enqueue(book.call(1, "first").with_(queue="one"))
        await app.enqueue(book.call(2, "second").with_(queue="two"))
        await holds(both)  # each the head of its queue and key
        await app.enqueue(book.call(1, "third").with_(queue="two"))
