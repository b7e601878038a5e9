"""Ids of jobs, and what callers are told when something goes wrong around them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tally import connected, holds

import strandline as sl
from strandline import sync
from strandline.app import App
from strandline.errors import DatabaseUnavailable


async def fetch(url: str, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
    async with connected(url) as connection:
        return [tuple(one) for one in await connection.fetch(query, *arguments)]


async def test_who_waits_for_an_id_while_the_app_closes_is_not_cancelled(
    database_url: str,
) -> None:
    app = App("shop", database_url)

    @app.job
    async def step(number: int) -> None: ...

    async with connected(database_url) as connection:
        async with app:
            async with connection.transaction():
                await connection.execute("ALTER SEQUENCE strandline.job_ids INCREMENT BY 1")
                waiting = asyncio.create_task(app.enqueue(step, 1))
                query = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"

                async def is_waiting() -> bool:
                    return bool(
                        await fetch(database_url, f"{query} AND datname = current_database()")
                    )

                await holds(is_waiting)
                await asyncio.wait_for(app.close(), 30)
                done, _ = await asyncio.wait({waiting}, timeout=30)

    assert done
    assert not waiting.cancelled()
    assert isinstance(waiting.exception(), sl.StrandlineError)


async def test_calls_may_be_read_by_the_transaction_that_enqueues_them(database_url: str) -> None:
    app = App("shop", database_url)

    @app.job
    async def step(number: int) -> None: ...

    async with app:

        async def calls(tx: Any) -> Any:
            for page in range(8):
                numbers = await tx.fetch(
                    "SELECT n FROM generate_series($1::int, $2::int) n",
                    page * 4_000,
                    page * 4_000 + 3_999,
                )
                for row in numbers:
                    yield step.call(row["n"])

        async with app.transaction() as tx:
            refs = await tx.enqueue_many(calls(tx))

    assert len(refs) == 32_000


async def test_ids_that_a_fail_over_gave_out_twice_are_drawn_anew(database_url: str) -> None:
    def made() -> tuple[App, Any]:
        app = App("shop", database_url)

        @app.job
        async def step(number: int) -> None: ...

        return app, step

    (one, step), (other, same) = made(), made()
    async with one, other:
        first = await one.enqueue(step, 1)
        await fetch(database_url, "SELECT setval('strandline.job_ids', 1, false)")  # as lost there
        second = await other.enqueue(same, 2)

    assert second.id != first.id


async def test_each_call_of_a_group_is_told_of_its_own_job(database_url: str) -> None:
    app = App("shop", database_url, statement_timeout=1.0)

    @app.job
    async def first(number: int) -> None: ...

    @app.job
    async def second(number: int) -> None: ...

    async with app:
        await app.enqueue(first, 0)
        async with connected(database_url) as connection, connection.transaction():
            await connection.execute("LOCK TABLE strandline.jobs IN ACCESS EXCLUSIVE MODE")
            calls = [*(first.call(n) for n in range(6)), second.call(1)]
            told = await asyncio.gather(*map(app.enqueue, calls), return_exceptions=True)

    assert all(isinstance(one, sl.OutcomeUnknown) for one in told)
    assert "'second'" in str(told[-1])


@pytest.mark.parametrize("way", ["transaction", "flow", "many", "blocking"])
async def test_where_ids_cannot_be_drawn_anew_the_next_try_gets_others(
    database_url: str, way: str
) -> None:
    app = App("shop", database_url)

    @app.job
    async def step(number: int) -> None: ...

    def blocking() -> None:
        with sync.App("shop", database_url, registry=app.registry) as other:
            with pytest.raises(DatabaseUnavailable, match="given out twice"):
                other.enqueue(step, 2)
            other.enqueue(step, 3)

    async def one() -> None:
        if way == "transaction":
            async with app.transaction() as tx:
                await tx.enqueue(step, 2)
        elif way == "flow":
            await app.enqueue(sl.chain(step.call(2), step.call(3)))
        else:
            await app.enqueue_many([step.call(2)])

    async with app:
        first = await app.enqueue(step, 1)
        await fetch(database_url, "SELECT setval('strandline.job_ids', 1, false)")
        assert first.id < 2_048
        app.job_ids.forget()
        if way == "blocking":
            await asyncio.to_thread(blocking)
        else:
            with pytest.raises(DatabaseUnavailable, match="given out twice"):
                await one()
            await one()
