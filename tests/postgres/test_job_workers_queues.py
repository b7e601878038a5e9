"""Workers beside what limits them: queues with limits, and a pooler that keeps no session."""

from __future__ import annotations

import asyncio

from strandline.jobs.queues import pause, resume, set_queue
from tests.bouncer import bouncer, needs_pgbouncer
from tests.jobbing import holds, shop


async def test_a_limited_queue_is_worked_by_two_nodes_within_its_limit(database_url: str) -> None:
    running = most = done = 0

    async def job() -> None:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.005)
        running -= 1
        done += 1

    async with (
        shop(database_url, own_queues=True) as one,
        shop(database_url, own_queues=True) as two,
    ):
        for node in (one, two):
            node.job(job)
        async with one.wiring.pools.control.session() as session:
            await session.run(set_queue("default", schema="strandline", at_most=3))
        await one.enqueue("job", ["{}"] * 60, wake=False)
        for number, node in enumerate((one, two), start=1):
            await holds(lambda node=node: node.workers._queues.settings_of("default").is_limited)
            await node.start(number)

        await holds(lambda: done == 60)
        assert most == 3


async def test_an_operator_pauses_and_resumes_a_queue(database_url: str) -> None:
    async with shop(database_url, own_queues=True) as node:

        async def job() -> None: ...

        node.job(job)
        await node.start()
        async with node.wiring.pools.control.session() as session:
            await session.run(pause("default", "look", schema="strandline"))
            await holds(lambda: node.workers.statistics().queues[0].is_paused)
            await holds(lambda: node.workers._workers["default"]._claims.fetches >= 1)
            await node.enqueue("job")
            await asyncio.sleep(0.3)
            assert await node.states() == [(0, 0)]
            await session.run(resume("default", schema="strandline"))
        await holds(lambda: node.completer.statistics().completed == 1)


@needs_pgbouncer
async def test_jobs_are_worked_through_a_pooler_that_keeps_no_session(database_url: str) -> None:
    seen: list[int] = []

    async def job(x: int) -> None:
        seen.append(x)

    async with (
        bouncer(database_url) as url,
        shop(url, pooler="transaction", job_concurrency=5) as node,
    ):
        node.job(job)
        await node.start()
        await node.enqueue("job", [f'{{"x":{x}}}' for x in range(300)])
        await holds(lambda: node.completer.statistics().completed == 300)
        assert sorted(seen) == list(range(300))
        assert await node.states() == []
