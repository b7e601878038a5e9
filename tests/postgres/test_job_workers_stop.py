"""How the jobs of a node end with it: drained, cancelled, left; or taken away from it."""

from __future__ import annotations

import asyncio

import pytest

from strandline.errors import NodeEvicted
from strandline.jobs.workers import JobStop
from tests.jobbing import Shop, holds, shop


async def running(node: Shop, count: int) -> None:
    await holds(lambda: sum(one.running for one in node.workers.statistics().queues) == count)


async def test_a_stop_waits_for_what_runs_and_gives_back_what_was_not_begun(
    database_url: str,
) -> None:
    gate = asyncio.Event()
    async with shop(database_url, job_concurrency=2, job_buffer_seconds=60.0) as node:

        async def quick() -> None: ...

        async def slow() -> None:
            await gate.wait()

        node.job(quick)
        node.job(slow)
        await node.start()
        node.fetch_ahead()
        await node.enqueue("slow", ["{}"] * 2, priority=1, wake=False)
        await node.enqueue("quick", ["{}"] * 30)
        await holds(lambda: node.workers.statistics().queues[0].buffered > 0)

        stopping = asyncio.create_task(node.workers.stop(drain=30.0, cancel=1.0))

        async def is_back() -> bool:
            return await node.states() == [(2, 1)] * 2 + [(0, 0)] * 30

        await holds(is_back)
        assert not stopping.done()
        await node.enqueue("quick")
        gate.set()
        assert await stopping == JobStop(finished=2, interrupted=0, abandoned=0)
        await holds(lambda: node.completer.statistics().completed == 2)
        assert await node.states() == [(0, 0)] * 31


async def test_what_does_not_end_in_time_is_cancelled_and_the_attempt_does_not_count(
    database_url: str,
) -> None:
    free = asyncio.Event()
    cleaned: list[int] = []
    async with shop(database_url, job_stuck_after=0.1) as node:

        async def hang() -> None:
            try:
                await asyncio.sleep(600)
            finally:
                cleaned.append(1)

        async def breaks() -> None:
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                raise ValueError("in the middle of something") from None

        async def stubborn() -> None:
            while not free.is_set():
                try:
                    await free.wait()
                except asyncio.CancelledError:
                    continue

        node.job(hang)
        node.job(breaks)
        node.job(stubborn, timeout=0.05)
        await node.start()
        await node.enqueue("hang", ["{}"] * 3)
        await node.enqueue("breaks")
        await node.enqueue("stubborn")
        await running(node, 5)
        await holds(lambda: node.told("job_stuck"))

        stop = await node.workers.stop(drain=0.1, cancel=0.3)

        assert stop == JobStop(finished=0, interrupted=4, abandoned=1)
        assert cleaned == [1, 1, 1]
        await holds(lambda: node.completer.statistics().settled == 4)
        assert await node.states() == [(0, 0)] * 4 + [(2, 1)]
        assert len(node.told("job_interrupted")) == 4
        free.set()
        await holds(lambda: node.completer.statistics().completed == 1)


async def test_a_node_that_was_evicted_hands_nothing_over_and_claims_nothing(
    database_url: str,
) -> None:
    async with shop(database_url, job_concurrency=3, job_buffer_seconds=60.0) as node:

        async def quick() -> None: ...

        async def hang() -> None:
            await asyncio.sleep(600)

        async def ends_well() -> None:
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                return

        for one in (quick, hang, ends_well):
            node.job(one)
        await node.start(1)
        node.fetch_ahead()
        await node.enqueue("hang", ["{}"] * 2, wake=False)
        await node.enqueue("ends_well", wake=False)
        await node.enqueue("quick", ["{}"] * 10)
        await running(node, 3)
        await holds(lambda: node.workers.statistics().queues[0].buffered == 10)

        await node.workers.abandon(5.0)

        assert await node.states() == [(2, 1)] * 13, "they are others' now"
        assert node.completer.statistics().pending == 0
        assert node.completer.statistics().completed == 0
        await node.enqueue("quick")
        await asyncio.sleep(0.3)
        assert (await node.states())[-1] == (0, 0)

        await node.workers.start(2)
        await holds(lambda: node.completer.statistics().completed == 1)
        assert await node.states() == [(2, 1)] * 13


async def test_an_eviction_overtakes_a_stop_and_nothing_is_claimed_after_it(
    database_url: str,
) -> None:
    async with shop(database_url) as node:

        async def hang() -> None:
            await asyncio.sleep(600)

        node.job(hang)
        await node.start()
        await node.enqueue("hang")
        await running(node, 1)
        assert node.workers._shared is not None
        fetcher = node.workers._shared.fetcher

        stopping = asyncio.create_task(node.workers.stop(drain=60.0, cancel=1.0))
        await holds(lambda: next(iter(node.workers._workers.values())).surplus)
        await node.workers.abandon(5.0)
        await stopping

        assert await node.states() == [(2, 1)]
        assert node.completer.statistics().pending == 0
        with pytest.raises(NodeEvicted):
            await fetcher.claim("default", ["hang"], 1, (0, 0))


async def test_a_claim_under_way_when_the_node_stops_is_given_back(database_url: str) -> None:
    async with shop(database_url) as node, shop(database_url) as other:

        async def job() -> None: ...

        node.job(job)
        await node.enqueue("job", ["{}"] * 5, wake=False)
        async with other.wiring.pools.work.transaction() as session:
            await session.connection.execute("LOCK TABLE strandline.jobs IN ACCESS EXCLUSIVE MODE")
            await node.start()

            async def is_waiting() -> bool:
                rows = await other.fetch(
                    "SELECT 1 FROM pg_stat_activity WHERE application_name ~ '^strandline jobs [0-9]'"
                    " AND wait_event_type = 'Lock' AND datname = current_database()"
                )
                return bool(rows)

            await holds(is_waiting)
            stopping = asyncio.create_task(node.workers.stop(drain=1.0, cancel=1.0))
            await asyncio.sleep(0.1)
        await stopping
        assert await other.states() == [(0, 0)] * 5


async def test_while_the_database_is_away_workers_wait_and_then_go_on(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with shop(database_url) as node, shop(database_url) as other:

        async def job() -> None: ...

        node.job(job)
        await node.start()
        await node.enqueue("job")
        await holds(lambda: node.completer.statistics().completed == 1)
        for _ in range(3):
            await other.fetch(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name LIKE 'strandline jobs%' AND datname = current_database()"
            )
            await node.enqueue("job")
        await holds(lambda: node.completer.statistics().completed == 4)
        assert await node.states() == []
