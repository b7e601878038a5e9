"""The SQL function that enqueues: what it refuses, and that its jobs are like all others."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest
from tally import connected, holds

from strandline.app import App
from strandline.testing import jobs


async def fetch(url: str, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
    async with connected(url) as connection:
        return [tuple(one) for one in await connection.fetch(query, *arguments)]


@pytest.mark.parametrize("moment", ["infinity", "20000-01-01", "4713-01-01 BC"])
async def test_a_job_far_off_enqueued_by_sql_does_not_harm_the_others(
    database_url: str, moment: str
) -> None:
    app = App("shop", database_url)

    @app.job
    async def step(number: int) -> None: ...

    async with app:
        await app.enqueue(step.call(1).with_(delay=0.001))
        async with connected(database_url) as connection:
            try:
                await connection.execute(
                    f"SELECT strandline.enqueue('far', run_at => '{moment}')"  # noqa: S608
                )
            except asyncpg.PostgresError as error:
                assert error.sqlstate == "SL004"
        drained = await jobs.drain(app)

        assert drained.completed == 1
        assert len(await app.jobs.list()) <= 1


async def test_arguments_beyond_the_limit_are_refused_by_the_sql_function_too(
    database_url: str,
) -> None:
    async with connected(database_url) as connection:
        with pytest.raises(asyncpg.PostgresError) as caught:
            await connection.execute(
                "SELECT strandline.enqueue('k', jsonb_build_object('a', repeat('x', 20000000)))"
            )
    assert caught.value.sqlstate == "SL004"


async def test_an_ordered_kind_enqueued_by_sql_is_ordered(database_url: str) -> None:
    app = App("shop", database_url)

    @app.job(ordered=True, key=lambda account, number: account)
    async def book(account: str, number: int) -> None: ...

    async with app:
        await app.enqueue(book, "a", 1)
        async with connected(database_url) as connection:
            await connection.execute(
                "SELECT strandline.enqueue('book', '{\"account\": \"a\", \"number\": 2}', key => 'a',"
                " ordered => true)"
            )

        async def is_promoted() -> bool:
            query = "SELECT 1 FROM strandline.jobs WHERE state = 0 AND flags & 1 = 1"
            return bool(await fetch(database_url, query))

        await holds(is_promoted)
        found = await fetch(database_url, "SELECT state FROM strandline.jobs ORDER BY seq")
        assert sorted(found) == [(0,), (3,)]


@pytest.mark.parametrize("options", ["ordered => true", "ordered => NULL, key => 'a'"])
async def test_what_is_ordered_needs_a_key(database_url: str, options: str) -> None:
    async with connected(database_url) as connection:
        with pytest.raises(asyncpg.PostgresError) as caught:
            await connection.execute(f"SELECT strandline.enqueue('k', {options})")  # noqa: S608
    assert caught.value.sqlstate == "SL004"


async def test_ordered_and_unique_jobs_of_many_keys_and_tenants_are_like_those_of_an_app(
    database_url: str,
) -> None:
    app = App("shop", database_url)

    @app.job(ordered=True, key=lambda number: "a")
    async def book(number: int) -> None: ...

    async with app:
        first = await app.enqueue(book.call(1).with_(unique="u", tenant="ä"))
        async with connected(database_url) as connection:
            enqueue = """SELECT strandline.enqueue('book', '{"number": 1}', key => 'a', ordered => true,
                                                   unique_key => 'u', tenant => $1)"""
            assert await connection.fetchval(enqueue, "ä") == first.id
            assert await connection.fetchval(enqueue, "b") != first.id
            await connection.execute(  # more keys than one commit tells of
                """SELECT strandline.enqueue('book', '{"number": 1}', key => n::text, ordered => true)
                     FROM generate_series(1, 150) n"""
            )
            query = "SELECT count(*) FROM strandline.jobs WHERE state = 0 AND flags & 1 = 1"

            async def are_promoted() -> bool:
                return bool(await connection.fetchval(query) >= 101)

            await holds(are_promoted)
