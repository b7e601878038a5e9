"""Limits that hold in the whole cluster: never exceeded, and all jobs done in the end."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from typing import Any

import pytest
from job_bench import QUEUE, Desk, desk, desks
from tally import holds

from strandline.jobs import fetch, queues
from strandline.jobs.limits import Limits
from strandline.jobs.row import Claimed

KINDS = ["work"]


async def limited(one: Desk, **said: Any) -> None:
    await one.run(queues.set_queue(QUEUE, schema="strandline", **said))


async def claim(one: Desk, limits: Limits, limit: int = 10) -> list[Claimed] | None:
    token = fetch.first_claim(one.number) + next(one.claims)
    return await one.run(limits.claim(QUEUE, KINDS, limit, token))


async def surely(one: Desk, limits: Limits, limit: int = 10) -> list[Claimed]:
    """What nobody else is claiming at the moment."""
    found = await claim(one, limits, limit)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("said", "keys"),
    [
        ({"at_most": 5}, [None]),
        ({"per_key": 2}, ["a", "b", "c", None]),
        ({"at_most": 6, "per_key": 2}, list("abcde")),
    ],
)
async def test_eight_claimers_never_exceed_them_and_all_jobs_are_done(
    database_url: str, said: dict[str, int], keys: list[str | None]
) -> None:
    chance = random.Random(3)
    running: Counter[str | None] = Counter()
    most: Counter[str | None] = Counter()
    done: list[int] = []
    refused = 0

    async def work(one: Desk) -> None:
        nonlocal refused
        limits = Limits()
        while len(done) < 400:
            found = await claim(one, limits, 4)
            if not found:
                refused += found is None
                await asyncio.sleep(chance.random() * 0.003)
                continue
            running.update(job.key for job in found)
            running["all"] += len(found)
            for key, number in running.items():
                most[key] = max(most[key], number)
            await asyncio.sleep(chance.random() * 0.005)
            for job in found:
                running[job.key] -= 1
                running["all"] -= 1
                if chance.random() < 0.1:
                    await one.end(job, ending=chance.choice(["retry", "released"]))
                else:
                    done.append(job.id)
                    assert await one.end(job) == 1

    async def watch(one: Desk) -> None:
        while len(done) < 400:
            total, of_a_key = await one.connection.fetchrow(
                "SELECT coalesce(sum(n), 0), coalesce(max(n) FILTER (WHERE key IS NOT NULL), 0)"
                " FROM (SELECT key, count(*) AS n FROM jobs WHERE state = 2 GROUP BY key) k"
            )
            assert total <= said.get("at_most", total)
            assert of_a_key <= said.get("per_key", of_a_key)
            await asyncio.sleep(0.002)

    async with desks(database_url, 9) as found:
        watcher = found.pop()
        await limited(found[0], **said)
        await found[0].insert(*(found[0].plain(chance.choice(keys)) for _ in range(400)))
        async with asyncio.timeout(60):
            await asyncio.gather(watch(watcher), *(work(one) for one in found))

        assert sorted(done) == sorted(set(done))
        assert await found[0].states() == {}
    assert refused, "they never met"
    total = most.pop("all")
    assert total <= said.get("at_most", total)
    if "at_most" in said:
        assert total == said["at_most"], "more could have run"
    if "per_key" in said:
        assert all(most[key] <= said["per_key"] for key in keys if key is not None)


async def test_what_runs_is_counted_from_its_rows_whoever_claimed_it(database_url: str) -> None:
    async with desks(database_url, 2) as (first, second):
        await limited(first, at_most=3)
        await first.insert(*(first.plain() for _ in range(10)))
        limits = Limits()
        found = await surely(first, limits)
        assert len(found) == 3
        assert await surely(second, Limits()) == []

        await first.end(found[0])
        assert len(await surely(second, Limits())) == 1
        await first.connection.execute("UPDATE jobs SET state = 0, claim = NULL WHERE state = 2")
        assert len(await surely(first, limits)) == 3


async def test_jobs_that_ran_before_there_was_a_limit_count(database_url: str) -> None:
    async with desk(database_url) as one:
        await one.insert(*(one.plain() for _ in range(10)))
        running = await one.claim(4)
        await limited(one, at_most=5)

        assert len(await surely(one, Limits())) == 1
        await one.end(*running)
        assert len(await surely(one, Limits())) == 4


async def test_one_claimer_at_a_time(database_url: str) -> None:
    async with desks(database_url, 2) as (first, second):
        await limited(first, at_most=3)
        await first.insert(first.plain())
        async with first.connection.transaction():
            assert len(await surely(first, Limits())) == 1
            assert await claim(second, Limits()) is None


async def test_the_claim_has_the_columns_of_any_other_and_their_order(database_url: str) -> None:
    async with desk(database_url) as one:
        await limited(one, at_most=10)
        jobs = [one.plain("k") for _ in range(3)]
        jobs[2].priority, jobs[0].tenant, jobs[1].meta = 1, "t", '{"a": 1}'
        jobs[0].unique_key, jobs[0].flags = "u", 32
        await one.insert(*jobs)

        found = await surely(one, Limits())

        assert found[0].id == jobs[2].id
        assert {job.attempt for job in found} == {1}
        assert {job.claim >> 32 for job in found} == {one.number}
        assert {job.tenant for job in found} == {"t", None}
        assert await one.value("SELECT count(*) FROM jobs WHERE unique_key IS NOT NULL") == 0


async def test_a_rate_lets_so_many_go_and_then_as_they_come_due(database_url: str) -> None:
    async with desk(database_url) as one:
        await limited(one, rate=(10, 100.0))
        await one.insert(*(one.plain() for _ in range(100)))
        limits = Limits()

        assert len(await surely(one, limits, 50)) == 10
        assert await surely(one, limits, 50) == []
        pause = limits.pause_of(QUEUE)
        assert pause is not None
        assert 5 < pause <= 10

        for seconds, allowed in ((9, 0), (1.5, 1), (35, 3), (5.5, 1), (1_000_000, 10)):
            await _pass(one, seconds)
            assert len(await surely(one, limits, 50)) == allowed, seconds
        tokens = await one.value("SELECT tokens FROM queues")
        assert 0 <= tokens < 0.5  # the machine may be slow, 10 s are a token


async def test_tokens_neither_get_lost_nor_grow_in_many_small_claims(database_url: str) -> None:
    async with desk(database_url) as one:
        await limited(one, rate=(7, 1000.0))
        await one.insert(*(one.plain() for _ in range(1000)))
        limits = Limits()
        taken = len(await surely(one, limits, 50))

        for _ in range(300):
            await _pass(one, 37.0)
            taken += len(await surely(one, limits, 50))

        earned = 7 + 300 * 37.0 * 7 / 1000
        assert earned - 1 <= taken <= earned + 1  # what is on the way, and the test's own seconds


async def test_a_changed_or_backward_clock_gives_nothing_away(database_url: str) -> None:
    async with desk(database_url) as one:
        await limited(one, rate=(10, 100.0))
        await one.insert(*(one.plain() for _ in range(50)))
        limits = Limits()
        await surely(one, limits, 8)
        await _pass(one, -3600)

        assert len(await surely(one, limits, 50)) == 2


async def test_a_rate_goes_on_after_the_clock_was_set_back(database_url: str) -> None:
    async with desk(database_url) as one:
        await limited(one, rate=(10, 1.0))
        await one.insert(*(one.plain() for _ in range(3)))
        limits = Limits()
        await one.connection.execute(
            """UPDATE strandline.queues
                  SET tokens = 0, refilled_at = clock_timestamp() + interval '1 hour'"""
        )

        async def are_claimed() -> bool:
            return bool(await surely(one, limits))

        await holds(are_claimed, 30)


async def test_a_paused_queue_gives_nothing(database_url: str) -> None:
    async with desk(database_url) as one:
        await limited(one, at_most=5)
        await one.insert(one.plain())
        await one.run(queues.pause(QUEUE, "later", schema="strandline"))

        assert await surely(one, Limits()) == []


async def test_a_full_key_with_a_long_backlog_hides_no_other(database_url: str) -> None:
    async with desk(database_url) as one:
        await limited(one, per_key=2)
        await one.connection.execute(
            "INSERT INTO jobs (id, kind, key) SELECT -n, 'work', 'full'"
            " FROM generate_series(1, 100000) n"
        )
        await one.connection.execute("ANALYZE jobs")
        await one.insert(
            *(one.plain(key) for key in ("b", "z", "z", "z")),
            one.plain("other", kind="unknown"),
            *(one.plain("after") for _ in range(2)),
            one.plain(None),
        )
        limits = Limits()

        first = await surely(one, limits)
        assert Counter(job.key for job in first) == {"full": 2, "b": 1, "z": 2, "after": 2}
        buffers = await _buffers(one)
        assert buffers < 1_000, "it looks at all of them, again and again"

        keyless = []
        for _ in range(100_000 // 2_000 + 2):
            keyless += await surely(one, limits)
        assert [job.key for job in keyless] == [None]


async def test_many_full_keys_in_front_do_not_hide_the_ones_behind(database_url: str) -> None:
    async with desk(database_url) as one:
        await limited(one, per_key=1)
        await one.connection.execute(
            "INSERT INTO jobs (id, kind, key) SELECT -n, 'work', 'k' || lpad((n % 700)::text, 4, '0')"
            " FROM generate_series(1, 7000) n"
        )
        limits = Limits()
        taken: list[Claimed] = []
        for _ in range(40):
            taken += await surely(one, limits, 50)

        assert len(taken) == len({job.key for job in taken}) == 700


async def _pass(one: Desk, seconds: float) -> None:
    """Let *seconds* go by."""
    await one.connection.execute(
        "UPDATE queues SET refilled_at = refilled_at - $1 * interval '1 second'", float(seconds)
    )


async def _buffers(one: Desk) -> int:
    """Pages that a claim in vain looks at."""
    plan = json.loads(
        await one.value(
            "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON)"
            " SELECT * FROM claim_limited('default', '{work}', 10, 1, '', 0::smallint, 0)"
        )
    )
    top = plan[0]["Plan"]
    return int(top["Shared Hit Blocks"] + top["Shared Read Blocks"])
