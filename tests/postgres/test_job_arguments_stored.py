"""Arguments that were stored before the function was what it is now."""

from __future__ import annotations

from typing import Any

from tally import connected

from strandline.app import App
from strandline.testing import jobs


async def fetch(url: str, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
    async with connected(url) as connection:
        return [tuple(one) for one in await connection.fetch(query, *arguments)]


async def test_upcast_arguments_may_hold_a_dict_by_numbers(database_url: str) -> None:
    app = App("shop", database_url)
    seen: list[Any] = []

    @app.job
    async def price(prices: dict[int, int]) -> None:
        seen.append(prices)

    @app.upcast_job("old-price", to=price)
    def renamed(args: dict[str, Any]) -> dict[str, Any]:
        return args

    async with app:
        async with connected(database_url) as connection:
            await connection.execute(
                "SELECT strandline.enqueue('old-price', '{\"prices\": {\"1\": 2}}')"
            )
        await app.enqueue(price, {1: 2})
        (await jobs.drain(app)).raise_errors()

    assert seen == [{1: 2}, {1: 2}]


async def test_a_default_put_before_others_does_not_take_their_arguments(
    database_url: str,
) -> None:
    app = App("shop", database_url)
    seen: list[Any] = []

    @app.job
    async def move(speed: int = 0, distance: int = 0, /) -> None:
        seen.append((speed, distance))

    async with app:
        async with connected(database_url) as connection:  # stored when it was move(distance=0, /)
            await connection.execute("SELECT strandline.enqueue('move', '{\"distance\": 7}')")
        (await jobs.drain(app)).raise_errors()

    assert seen == [(0, 7)]


async def test_the_key_of_a_call_may_be_made_of_a_default(database_url: str) -> None:
    app = App("shop", database_url)

    @app.job(key=lambda to, region: region)
    async def send(to: str, region: str = "eu") -> None: ...

    async with app:
        await app.enqueue(send, "ada")

    assert await fetch(database_url, "SELECT key FROM strandline.jobs") == [("eu",)]
