"""What makes jobs the same, and who waits for whom because of it."""

from __future__ import annotations

import asyncio
from typing import Any

from tally import connected, holds

from strandline.app import App
from strandline.jobs.job import Unique


async def fetch(url: str, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
    async with connected(url) as connection:
        return [tuple(one) for one in await connection.fetch(query, *arguments)]


async def test_equal_sets_are_one_unique_job(database_url: str) -> None:
    app = App("shop", database_url)

    @app.job(unique=Unique())
    async def index(numbers: set[int]) -> None: ...

    one, other = {0, 8}, {8, 0}  # the same, in another order; of texts it changes by the process
    assert one == other
    assert list(one) != list(other)
    async with app:
        first = await app.enqueue(index, one)
        second = await app.enqueue(index, other)

    assert second.id == first.id


async def test_encrypted_arguments_cannot_be_guessed_from_the_unique_key(
    database_url: str,
) -> None:
    from cryptography.fernet import Fernet

    keys: list[Any] = []
    for _ in range(2):  # who knows no key makes the same digest of a guess
        app = App("shop", database_url, job_keys=Fernet.generate_key().decode())

        @app.job(encrypted=True, unique=Unique(within=0.001))
        async def check(pin: str) -> None: ...

        app.kinds.bind()
        keys.append(app.kinds.prepare(check.call("1234"), 1).unique_key)

    assert keys[0] != keys[1]


async def test_jobs_of_two_tenants_are_not_the_same_job(database_url: str) -> None:
    app = App("shop", database_url)

    @app.job(unique=Unique(by=("number",), on_duplicate="replace"))
    async def bill(number: int, text: str) -> None: ...

    async with app:
        first = await app.enqueue(bill.call(1, "of a").with_(tenant="a"))
        second = await app.enqueue(bill.call(1, "of b").with_(tenant="b"))

    found = await fetch(database_url, "SELECT tenant, args FROM strandline.jobs ORDER BY id")
    assert second.id != first.id
    assert [tenant for tenant, _ in found] == ["a", "b"]


async def test_a_default_without_json_may_stand_beside_a_unique_argument(
    database_url: str,
) -> None:
    app = App("shop", database_url)
    missing = object()

    @app.job(unique=Unique(by=("number",)))
    async def step(number: int, other: Any = missing) -> None: ...

    async with app:
        assert (await app.enqueue(step, 1)).is_new


async def test_one_held_key_in_a_group_does_not_keep_its_neighbours_waiting(
    database_url: str,
) -> None:
    app = App("shop", database_url, work_connections=8)

    @app.job(unique=Unique())
    async def once(number: int) -> None: ...

    async with app:
        async with app.transaction() as tx:
            await tx.enqueue(once, 1)
            tasks = [asyncio.create_task(app.enqueue(once, n)) for n in (7, 8, 1, 9, 10)]
            await holds(lambda: sum(one.done() for one in tasks) == 4)
            assert not tasks[2].done()
        await asyncio.gather(*tasks)


async def test_who_waits_for_a_held_key_does_not_fail_its_group(
    database_url: str,
) -> None:
    app = App("shop", database_url, work_connections=8, statement_timeout=1.0)

    @app.job(unique=Unique())
    async def once(number: int) -> None: ...

    async with app:
        async with app.transaction() as tx:
            await tx.enqueue(once, 1)
            told = await asyncio.gather(
                *(app.enqueue(once, n) for n in (7, 8, 1, 9, 10)), return_exceptions=True
            )
    assert [n for n, one in enumerate(told) if isinstance(one, BaseException)] == [2]
