"""The claim: in order, once each, under a token, found again wherever it became available."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from strandline.jobs.cursor import Cursor
from strandline.jobs.fetch import CLAIM_JOBS, claim, first_claim, give_back, recall
from strandline.jobs.fetcher import PLANS
from strandline.postgres.operations import AsyncpgSession
from tests.jobbing import holds, shop

SCHEMA = "strandline"
KINDS = ["k"]


@asynccontextmanager
async def session(url: str, **parameters: str) -> AsyncIterator[AsyncpgSession]:
    connection: Any = await asyncpg.connect(url, server_settings=parameters)
    try:
        yield AsyncpgSession(connection, SCHEMA)
    finally:
        await connection.close()


async def insert(one: AsyncpgSession, rows: list[tuple[Any, ...]]) -> None:
    await one.connection.executemany(
        "INSERT INTO strandline.jobs (id, kind, queue, priority) VALUES ($1, $2, $3, $4)", rows
    )


async def test_jobs_are_claimed_in_the_order_of_priority_and_seq(database_url: str) -> None:
    async with session(database_url) as one:
        await insert(
            one, [(n, "k", "q", 9 - n % 3) for n in range(1, 31)] + [(99, "other", "q", 1)]
        )
        taken = await one.run(claim("q", KINDS, 12, first_claim(3) + 1))
        assert [job.id for job in taken] == [*range(2, 31, 3), 1, 4]
        assert {job.claim for job in taken} == {(3 << 32) + 1}
        assert {(job.attempt, job.kind, job.queue) for job in taken} == {(1, "k", "q")}
        rest = await one.run(claim("q", KINDS, 100, first_claim(3) + 2))
        assert len(rest) == 18
        assert not await one.run(claim("q", KINDS, 100, first_claim(3) + 3))


async def test_a_claim_passes_by_what_another_one_is_claiming(database_url: str) -> None:
    async with session(database_url) as one, session(database_url) as other:
        await insert(one, [(n, "k", "q", 5) for n in range(10)])
        async with one.connection.transaction():
            first = await one.run(claim("q", KINDS, 4, first_claim(1) + 1))
            second = await other.run(claim("q", KINDS, 100, first_claim(2) + 1))
        assert sorted(job.id for job in first + second) == list(range(10))


async def test_the_session_waits_for_commits_again_after_a_claim(database_url: str) -> None:
    async with session(database_url) as one:
        await one.connection.execute("SET synchronous_commit = on")
        await insert(one, [(1, "k", "q", 5), (2, "k", "q", 5)])
        await one.run(claim("q", KINDS, 1, first_claim(1) + 1))
        assert await one.connection.fetchval("SHOW synchronous_commit") == "on"
        async with one.connection.transaction():
            await one.run(claim("q", KINDS, 1, first_claim(1) + 2))
            assert await one.connection.fetchval("SHOW synchronous_commit") == "off"


async def test_a_key_that_is_unique_until_the_start_is_free_once_claimed(database_url: str) -> None:
    async with session(database_url) as one:
        await one.connection.execute(
            "INSERT INTO strandline.jobs (id, kind, flags, unique_key)"
            " VALUES (1, 'k', 32, 'a'), (2, 'k', 0, 'b')"
        )
        await one.run(claim("default", KINDS, 9, first_claim(1) + 1))
        rows = await one.connection.fetch("SELECT unique_key FROM strandline.jobs ORDER BY id")
        assert [row[0] for row in rows] == [None, "b"]


async def test_only_what_is_held_under_its_claim_is_given_back(database_url: str) -> None:
    async with session(database_url) as one:
        await insert(one, [(n, "k", "q", 5) for n in range(4)])
        before = await one.connection.fetch("SELECT id, seq, attempt FROM strandline.jobs")
        taken = await one.run(claim("q", KINDS, 4, first_claim(1) + 1))
        await one.connection.execute("UPDATE strandline.jobs SET claim = 7 WHERE id = 2")
        assert await one.run(give_back(taken)) == ({"q"}, set())
        rows = await one.connection.fetch(
            "SELECT id, state, attempt FROM strandline.jobs ORDER BY id"
        )
        assert [tuple(row) for row in rows] == [(0, 0, 0), (1, 0, 0), (2, 2, 1), (3, 0, 0)]
        assert await one.run(give_back(taken)) == (set(), set())
        assert await one.run(recall([7])) == {"q"}
        after = await one.connection.fetch("SELECT id, seq, attempt FROM strandline.jobs")
        assert sorted(map(tuple, after)) == sorted(map(tuple, before))


async def test_a_claim_whose_answer_is_lost_is_called_back(database_url: str) -> None:
    """The server goes on with a statement whose client has gone."""
    seen: list[int] = []
    async with shop(database_url) as node, session(database_url) as blocker:

        async def job(x: int) -> None:
            seen.append(x)

        node.job(job)
        await node.start()
        await node.enqueue("job", ['{"x":0}'])  # from now on the statement is prepared
        await holds(lambda: node.completer.statistics().completed == 1)
        node.queues.say("default", is_paused=True)
        await holds(lambda: node.workers.statistics().queues[0].is_paused)
        await node.enqueue("job", ['{"x":1}', '{"x":2}'], wake=False)
        lock = blocker.connection.transaction()
        await lock.start()
        await blocker.connection.execute("LOCK TABLE strandline.jobs IN ACCESS EXCLUSIVE MODE")
        node.queues.say("default", is_paused=False)

        async def is_waiting() -> bool:
            rows = await node.fetch(
                "SELECT 1 FROM pg_stat_activity WHERE application_name ~ '^strandline jobs [0-9]'"
                " AND wait_event_type = 'Lock' AND datname = current_database()"
            )
            return bool(rows)

        await holds(is_waiting)
        assert node.workers._shared is not None
        node.workers._shared.fetcher._line.cut()
        await lock.commit()

        await holds(lambda: node.completer.statistics().completed == 3)
        assert sorted(seen) == [0, 1, 2]


async def test_a_job_that_commits_late_is_not_lost_behind_the_cursor(database_url: str) -> None:
    seen: list[int] = []
    async with shop(database_url) as node, session(database_url) as late:

        async def job(x: int) -> None:
            seen.append(x)

        node.job(job)
        await node.start()
        worker = next(iter(node.workers._workers.values()))
        worker._claims.cursor = Cursor(slow=-1.0)  # every claim counts as slow
        transaction = late.connection.transaction()
        await transaction.start()
        await late.connection.execute(
            """INSERT INTO strandline.jobs (id, kind, args) VALUES (1, 'job', '{"x": 1}')"""
        )
        for _ in range(3):
            await node.enqueue("job", ['{"x":2}'] * 150)
        await holds(lambda: seen.count(2) == 450)
        assert worker._claims.cursor.is_engaged
        await transaction.commit()
        await node.enqueue("job", ['{"x":3}'] * 5, priority=1)
        await holds(lambda: seen.count(1) == 1)
        await holds(lambda: seen.count(3) == 5)


async def test_the_cursor_skips_the_entries_of_jobs_that_are_gone(database_url: str) -> None:
    """While an old snapshot is held no entry can be removed."""
    async with (
        session(database_url, **PLANS) as one,
        session(database_url) as old,
    ):
        await one.connection.execute(
            "INSERT INTO strandline.jobs (id, kind) SELECT n, 'k' FROM generate_series(1, 20000) n"
        )
        held = old.connection.transaction(isolation="repeatable_read")
        await held.start()
        await old.connection.fetchval("SELECT count(*) FROM strandline.jobs")
        last = (0, 0)
        for number in range(1, 20):
            taken = await one.run(claim("default", KINDS, 1000, first_claim(1) + number))
            last = (taken[-1].priority, taken[-1].seq)
            await one.connection.execute("DELETE FROM strandline.jobs WHERE state = 2")

        with_cursor = await _touched(one, last)
        from_the_start = await _touched(one, (0, 0))

        await held.rollback()
        assert with_cursor * 10 < from_the_start, (with_cursor, from_the_start)
        assert with_cursor < 40


async def _touched(one: AsyncpgSession, start: tuple[int, int]) -> int:
    """Pages that a claim of ten jobs from *start* looks at to find them."""
    transaction = one.connection.transaction()
    await transaction.start()
    try:
        text = await one.connection.fetchval(
            f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {CLAIM_JOBS.sql(SCHEMA)}",
            "default",
            KINDS,
            10,
            first_claim(1) + 99,
            *start,
        )
    finally:
        await transaction.rollback()
    plan = json.loads(text)[0]["Plan"]
    (picked,) = [one for one in plan["Plans"] if one.get("Subplan Name") == "CTE picked"]
    assert picked["Actual Rows"] == 10
    return int(picked["Shared Hit Blocks"] + picked["Shared Read Blocks"])


async def test_two_nodes_share_a_queue_and_run_each_job_once(database_url: str) -> None:
    seen: list[int] = []
    async with shop(database_url) as one, shop(database_url) as two:

        async def job(x: int) -> None:
            await asyncio.sleep(0)
            seen.append(x)

        for node in (one, two):
            node.job(job)
        await one.enqueue("job", [f'{{"x":{x}}}' for x in range(4000)], wake=False)
        await asyncio.gather(one.start(1), two.start(2))
        await holds(lambda: len(seen) >= 4000)
        assert sorted(seen) == list(range(4000))
