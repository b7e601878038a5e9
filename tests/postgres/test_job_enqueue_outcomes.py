"""What a broken connection leaves of jobs: none is lost, and none is enqueued twice, also if it has run.

Every job here runs the moment it is inserted: a trigger writes down its id and deletes its row, so
that nothing in the tables tells of it when its enqueuer comes again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from tally import holds

from strandline import sync
from strandline.app import App
from strandline.errors import OutcomeUnknown, Unavailable
from strandline.jobs.enqueue import INSERT_ONCE, columns
from strandline.jobs.row import NewJob
from strandline.postgres.operations import none
from strandline.testing.faults import Proxy

RUN_AT_ONCE = """
CREATE TABLE ran (id bigint NOT NULL);
CREATE FUNCTION run_at_once() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO ran VALUES (NEW.id);
    DELETE FROM strandline.jobs WHERE id = NEW.id;
    RETURN NULL;
END $$;
CREATE TRIGGER run_at_once AFTER INSERT ON strandline.jobs
   FOR EACH ROW WHEN (NEW.unique_key IS NULL OR NEW.unique_key LIKE 'run%') EXECUTE FUNCTION run_at_once();
"""


class Bench:
    """An app behind a proxy, and a connection that looks at what became of its jobs."""

    def __init__(self, url: str, proxy: Proxy, connection: Any) -> None:
        self.url = url
        self.proxy = proxy
        self.connection = connection
        self.app = App("shop", proxy.url, work_connections=4)

        @self.app.job
        async def count(number: int) -> None: ...

        self.count = count

    async def ran(self) -> list[int]:
        return [one[0] for one in await self.connection.fetch("SELECT id FROM ran ORDER BY id")]

    async def waiting(self) -> int:
        """How many statements of the app wait for a lock."""
        found: int = await self.connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name LIKE 'strandline work%' AND wait_event_type = 'Lock'"
        )
        return found


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Bench]:
    connection = await asyncpg.connect(url)
    async with Proxy(url) as proxy:
        bench = Bench(url, proxy, connection)
        await connection.execute(RUN_AT_ONCE)
        async with bench.app as app:
            await app.enqueue(bench.count, 0)  # connections and ids are there
            await connection.execute("TRUNCATE ran")
            yield bench
    await connection.close()


@asynccontextmanager
async def locked(bench: Bench) -> AsyncIterator[None]:
    """Let inserts wait at the server."""
    connection = await asyncpg.connect(bench.url)
    async with connection.transaction():
        await connection.execute("LOCK TABLE strandline.jobs IN SHARE MODE")
        yield
    await connection.close()


async def answers(calls: list[Awaitable[Any]]) -> list[Any]:
    async with asyncio.timeout(30):
        return await asyncio.gather(*calls, return_exceptions=True)


@pytest.mark.parametrize("tasks", [1, 8])
async def test_a_job_whose_answer_is_lost_runs_once(database_url: str, tasks: int) -> None:
    async with opened(database_url) as bench:
        bench.proxy.swallow_answer_to(b'"number":7')
        calls = [bench.app.enqueue(bench.count, 7) for _ in range(tasks)]
        refs = await answers(calls)

        assert bench.proxy.swallowed == 1
        assert await bench.ran() == sorted(one.id for one in refs)
        assert len(refs) == tasks


@pytest.mark.parametrize("tasks", [1, 8])
async def test_a_lost_call_that_is_still_under_way_is_waited_for(
    database_url: str, tasks: int
) -> None:
    async with opened(database_url) as bench:
        async with locked(bench):
            calls = [asyncio.create_task(bench.app.enqueue(bench.count, 7)) for _ in range(tasks)]
            await holds(bench.waiting, 30)
            first = await bench.waiting()
            bench.proxy.cut()

            async def is_again() -> bool:
                return await bench.waiting() > first

            await holds(is_again, 30)
        refs = await answers(list(calls))

        assert await bench.ran() == sorted(one.id for one in refs)


async def test_a_backend_that_dies_before_its_commit_loses_nothing(database_url: str) -> None:
    async with opened(database_url) as bench:
        async with locked(bench):
            calls = [asyncio.create_task(bench.app.enqueue(bench.count, 7)) for _ in range(8)]
            await holds(bench.waiting, 30)
            await bench.connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE"
                " datname = current_database() AND application_name LIKE 'strandline work%'"
            )
        refs = await answers(list(calls))

        assert await bench.ran() == sorted(one.id for one in refs)


async def test_a_job_that_never_gets_an_answer_says_so_with_its_id(database_url: str) -> None:
    async with opened(database_url) as bench:
        async with locked(bench):
            call = asyncio.create_task(bench.app.enqueue(bench.count, 7))
            await holds(bench.waiting, 30)
            bench.proxy.refuse()
            (found,) = await answers([call])
        bench.proxy.forward()

        assert isinstance(found, OutcomeUnknown)
        assert isinstance(found.__cause__, Unavailable)
        ran = await holds(bench.ran, 30)
        assert f"as job {ran[0]}" in str(found)


async def test_a_first_try_that_comes_late_finds_its_number_taken(database_url: str) -> None:
    async with opened(database_url) as bench:
        for number in (2, 1, 2):
            job = columns([NewJob(number, "count", "{}")])
            await bench.app.pools.work.run(none(INSERT_ONCE, *job, 77, number))

        assert await bench.ran() == [2]


@pytest.mark.parametrize("tasks", [1, 8])
async def test_one_with_a_unique_key_is_told_what_it_was_told_first(
    database_url: str, tasks: int
) -> None:
    """Its own job has run and is gone: the second try must not find the key free, and run it again."""
    async with opened(database_url) as bench:
        bench.proxy.swallow_answer_to(b'\\"number\\":7')
        calls = [
            bench.app.enqueue(bench.count.call(7).with_(unique=f"run {task}"))
            for task in range(tasks)
        ]
        refs = await answers(calls)

        assert bench.proxy.swallowed == 1
        assert all(one.is_new for one in refs)
        assert await bench.ran() == sorted(one.id for one in refs)


async def test_the_lost_answer_to_a_bulk_commit_is_found_out(database_url: str) -> None:
    async with opened(database_url) as bench:
        bench.proxy.swallow_answer_to(b"COMMIT")
        refs = await bench.app.enqueue_many(bench.count.call(number) for number in range(1_000))

        assert bench.proxy.swallowed == 1
        assert await bench.ran() == refs.ids


async def test_a_blocking_caller_enqueues_once(database_url: str) -> None:
    async with opened(database_url) as bench:

        def use() -> int:
            registry = bench.app.registry
            with sync.App("shop", bench.proxy.url, registry=registry) as app:
                app.enqueue(bench.count, 1)
                bench.proxy.swallow_answer_to(b'\\"number\\":7')
                return app.enqueue(bench.count, 7).id

        number = await asyncio.to_thread(use)

        assert bench.proxy.swallowed == 1
        assert (await bench.ran()).count(number) == 1
        assert len(await bench.ran()) == 2


async def test_a_sender_takes_a_new_row_now_and_then(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("strandline.jobs.enqueuer.CALLS_OF_A_ROW", 3)
    async with opened(database_url) as bench:
        for number in range(10):
            await bench.app.enqueue(bench.count, number)
        numbers = await bench.connection.fetch("SELECT number FROM strandline.job_senders")

        assert sorted(one[0] for one in numbers) == [2, 3, 3, 3]
        assert len(await bench.ran()) == 10
