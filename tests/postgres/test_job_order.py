"""Jobs ordered by a key: one at a time, in order, whoever claims, ends, promotes or dies when."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict

from job_bench import Desk, desk, desks, drained

from strandline.jobs import order
from strandline.jobs.row import Claimed


async def test_eight_workers_run_each_key_in_order_and_one_at_a_time(database_url: str) -> None:
    keys = [f"k{number}" for number in range(6)]
    running: dict[str | None, int] = defaultdict(int)
    ran: dict[str | None, list[int]] = defaultdict(list)
    tried: set[int] = set()
    chance = random.Random(1)

    async def handle(one: Desk, jobs: list[Claimed]) -> None:
        for job in jobs:
            running[job.key] += 1
            assert running[job.key] == 1, "two of a key at once"
        await asyncio.sleep(chance.random() * 0.003)
        for job in jobs:
            running[job.key] -= 1
            if job.id % 7 == 0 and job.id not in tried:
                tried.add(job.id)
                await one.end(job, ending=chance.choice(["retry", "released", "snoozed"]))
            else:
                ran[job.key].append(job.id)
                assert await one.end(job) == 1

    async with desks(database_url, 9) as found:
        writer = found.pop()
        enqueued: dict[str, list[int]] = defaultdict(list)

        async def write() -> None:
            for _ in range(60):
                jobs = [writer.ordered(chance.choice(keys)) for _ in range(3)]
                await writer.insert(*jobs)
                for job in jobs:
                    enqueued[str(job.key)].append(job.id)

        await writer.insert(writer.ordered("begin"))
        await asyncio.gather(write(), *(drained(found, handle) for _ in range(1)))
        await drained(found, handle)

        ran.pop("begin")
        assert ran == enqueued
        assert await writer.states() == {}


async def test_two_promoters_at_once_let_one_job_begin(database_url: str) -> None:
    async with desks(database_url, 4) as found:
        for number in range(20):
            key = f"k{number}"
            jobs = [found[0].ordered(key) for _ in range(5)]
            await found[0].insert(*jobs, promoted=False)

            await asyncio.gather(*(one.run(order.promote([("default", key)])) for one in found))

            states = await found[0].states()
            assert [states[job.id] for job in jobs] == [0, 3, 3, 3, 3]


async def test_a_promoter_sees_what_the_one_before_it_has_committed(database_url: str) -> None:
    async with desks(database_url, 2) as (first, second):
        early, late = first.ordered("k"), second.ordered("k")
        await first.insert(late, promoted=False)
        begun = first.connection.transaction()
        await begun.start()
        await first.run(order.promote([("default", "k")]))
        await second.insert(early, promoted=False)  # it has drawn its place before the other one
        await second.connection.execute("UPDATE jobs SET seq = 0 WHERE id = $1", early.id)

        waiting = asyncio.create_task(second.run(order.promote([("default", "k")])))
        await _blocked(first, second)
        await begun.commit()

        assert await waiting == set()
        assert await first.states() == {early.id: 3, late.id: 0}


async def test_one_that_is_committed_late_runs_later_and_is_not_lost(database_url: str) -> None:
    async with desks(database_url, 2) as (late, early):
        first, second = late.ordered("k"), early.ordered("k")
        begun = late.connection.transaction()
        await begun.start()
        await late.insert(first, promoted=False)
        await early.insert(second)
        (running,) = await early.claim(5)

        await begun.commit()
        await late.run(order.promote([("default", "k")]))

        assert running.id == second.id
        assert await early.claim(5) == []
        await early.end(running)
        assert [job.id for job in await early.claim(5)] == [first.id]


async def test_a_head_that_is_tried_again_keeps_the_others_waiting(database_url: str) -> None:
    async with desk(database_url) as one:
        await one.insert(*(one.ordered("k") for _ in range(2)))
        (head,) = await one.claim(5)

        await one.end(head, ending="retry", delay=3600.0)
        await one.run(order.promote([("default", "k")]))

        assert await one.states() == {head.id: 1, head.id + 1: 3}


async def test_a_dead_head_keeps_the_others_waiting_until_it_is_discarded(
    database_url: str,
) -> None:
    async with desk(database_url) as one:
        await one.insert(*(one.ordered("k") for _ in range(2)), one.ordered("other"))
        head, other = await one.claim(5)
        await one.end(head, ending="dead", error={"class": "E"})
        await one.end(other)

        await one.run(order.promote([("default", "k")]))
        swept = await one.run(order.sweep())
        assert await one.states() == {head.id + 1: 3}
        assert swept.promoted == 0

        await one.connection.execute("DELETE FROM dead_jobs")
        assert await one.run(order.promote([("default", "k")])) == {"default"}
        assert await one.states() == {head.id + 1: 0}


async def test_the_next_one_waits_for_its_time_as_head(database_url: str) -> None:
    async with desk(database_url) as one:
        await one.insert(one.ordered("k", delay=3600.0), one.ordered("k"))

        assert list((await one.states()).values()) == [1, 3]


async def test_the_sweep_makes_good_what_nobody_promoted(database_url: str) -> None:
    async with desk(database_url) as one:
        jobs = [one.ordered(f"k{number:03d}", queue=f"q{number % 3}") for number in range(50)]
        await one.insert(*jobs, promoted=False)
        await one.insert(one.ordered("busy"), one.ordered("busy"))

        found: set[str] = set()
        after = None
        for _ in range(20):
            swept = await one.run(order.sweep(7, after))
            found |= swept.queues
            after = swept.after
            if after is None:
                break

        assert found == {"q0", "q1", "q2"}
        assert list((await one.states()).values()).count(3) == 1


async def test_the_same_key_of_two_queues_is_two_keys(database_url: str) -> None:
    async with desk(database_url) as one:
        await one.insert(one.ordered("k"), one.ordered("k", queue="mail"))

        assert list((await one.states()).values()) == [0, 0]


async def test_many_keys_are_promoted_in_portions(database_url: str) -> None:
    async with desk(database_url) as one:
        await one.insert(*(one.ordered(f"k{number}") for number in range(2 * order.AT_ONCE + 1)))

        assert set((await one.states()).values()) == {0}


async def _blocked(watcher: Desk, other: Desk) -> None:
    pid = other.connection.get_server_pid()
    async with asyncio.timeout(30):
        while not await watcher.value("SELECT cardinality(pg_blocking_pids($1)) > 0", pid):
            await asyncio.sleep(0.005)
