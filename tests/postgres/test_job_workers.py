"""Jobs are fetched ahead, run, and handed on; each under its claim, and only where they should be."""

from __future__ import annotations

import asyncio

import pytest

from strandline.errors import InvalidSetting
from strandline.jobs.retry import Retry
from strandline.jobs.verdicts import Cancel, Snooze
from strandline.jobs.workers import queues_of
from tests.jobbing import holds, shop


async def test_jobs_run_once_each_and_leave_the_table(database_url: str) -> None:
    seen: list[int] = []
    async with shop(database_url) as node:

        async def note(x: int) -> None:
            seen.append(x)

        node.job(note)
        await node.start()
        await node.enqueue("note", [f'{{"x":{x}}}' for x in range(2_500)])
        await holds(lambda: len(seen) == 2_500)
        await holds(lambda: node.completer.statistics().completed == 2_500)

        assert sorted(seen) == list(range(2_500))
        assert await node.states() == []
        worker = node.workers.statistics().queues[0]
        assert (worker.ended, worker.fetched, worker.running, worker.buffered) == (
            2_500,
            2_500,
            0,
            0,
        )
        assert sum(one.facts["count"] for one in node.told("jobs_claimed")) == 2_500
        await holds(lambda: sum(one.facts["count"] for one in node.told("jobs_ran")) == 2_500)


async def test_as_many_run_at_once_as_the_queue_allows_and_no_more(database_url: str) -> None:
    running, most, gate = 0, 0, asyncio.Event()
    async with shop(database_url, job_concurrency=7) as node:

        async def wait() -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await gate.wait()
            running -= 1

        node.job(wait)
        await node.start()
        await node.enqueue("wait", ["{}"] * 30)
        await holds(lambda: running == 7)
        claimed = await node.fetch("SELECT count(*) FROM strandline.jobs WHERE state = 2")
        assert claimed[0][0] == 7, "nothing is fetched ahead before it is known how long jobs take"

        node.queues.say("default", concurrency=12)
        await holds(lambda: running == 12)
        node.queues.say("default", concurrency=3)
        await holds(lambda: node.workers.statistics().queues[0].concurrency == 3)
        most = 0
        gate.set()
        await holds(lambda: node.completer.statistics().completed == 30)
        assert node.workers.statistics().queues[0].running == 0

        node.queues.say("default", concurrency=1)
        await holds(lambda: node.workers.statistics().queues[0].concurrency == 1)
        await node.enqueue("wait", ["{}"] * 20)
        await holds(lambda: node.completer.statistics().completed == 50)


async def test_kinds_that_are_not_known_here_are_left_alone(database_url: str) -> None:
    seen: list[int] = []
    async with shop(database_url) as node:

        async def known() -> None:
            seen.append(1)

        node.job(known)
        await node.enqueue("strange", ["{}"] * 5)
        await node.enqueue("known", ["{}"] * 5)
        await node.start()
        await holds(lambda: node.completer.statistics().completed == 5)
        await holds(lambda: node.workers.statistics().queues[0].fetches >= 3)

        assert await node.states() == [(0, 0)] * 5


async def test_a_paused_queue_fetches_nothing_and_gives_back_what_was_not_begun(
    database_url: str,
) -> None:
    seen, gate = [], asyncio.Event()
    async with shop(database_url, job_concurrency=1) as node:

        async def quick() -> None:
            seen.append(1)

        async def slow() -> None:
            await gate.wait()

        node.job(quick)
        node.job(slow)
        await node.start()
        node.fetch_ahead()
        await node.enqueue("slow", priority=1, wake=False)
        await node.enqueue("quick", ["{}"] * 50)
        await holds(lambda: node.workers.statistics().queues[0].buffered > 0)

        node.queues.say("default", is_paused=True)
        await holds(lambda: node.workers.statistics().queues[0].buffered == 0)

        async def is_back() -> bool:
            return await node.states() == [(2, 1)] + [(0, 0)] * 50

        await holds(is_back)
        gate.set()
        await holds(lambda: node.completer.statistics().completed == 1)
        fetches = node.workers.statistics().queues[0].fetches
        node.workers.wake()
        await asyncio.sleep(0.3)
        assert node.workers.statistics().queues[0].fetches == fetches
        assert node.workers.statistics().queues[0].is_paused

        node.queues.say("default", is_paused=False)
        await holds(lambda: node.completer.statistics().completed == 51)


async def test_polling_alone_finds_jobs(database_url: str) -> None:
    async with shop(database_url) as node:

        async def late() -> None: ...

        node.job(late)
        await node.start()
        await holds(lambda: node.workers.statistics().queues[0].fetches >= 2)
        await node.enqueue("late", wake=False)
        await holds(lambda: node.completer.statistics().completed == 1)


async def test_a_notice_wakes_the_workers_of_another_process(database_url: str) -> None:
    async with shop(database_url, connected=True, job_poll_interval=300.0) as node:

        async def far() -> None: ...

        node.job(far)
        await node.start()
        await holds(lambda: node.wiring.listener.statistics().connected)
        await holds(lambda: node.workers.statistics().queues[0].fetches >= 1)
        await node.enqueue("far", wake=False)
        node.wiring.notifier.notify("jobs", "default")
        await holds(lambda: node.completer.statistics().completed == 1)


async def test_nothing_is_fetched_or_begun_while_the_node_may_not_trust_itself(
    database_url: str,
) -> None:
    seen, gate = [], asyncio.Event()
    async with shop(database_url, job_concurrency=1, job_buffer_seconds=60.0) as node:

        async def step(x: int) -> None:
            seen.append(x)
            if x == 0:
                await gate.wait()

        node.job(step)
        await node.start()
        node.fetch_ahead()
        await node.enqueue("step", ['{"x":0}'], priority=1, wake=False)
        await node.enqueue("step", ['{"x":2}'] * 20)
        await holds(lambda: node.workers.statistics().queues[0].buffered > 0)

        node.trusted[0] = False
        await holds(lambda: next(iter(node.workers._workers.values())).surplus)
        gate.set()
        await holds(lambda: node.completer.statistics().completed == 1)
        await node.enqueue("step", ['{"x":3}'])
        await asyncio.sleep(0.3)
        assert 2 not in seen
        assert 3 not in seen

        node.trusted[0] = True
        await holds(lambda: node.completer.statistics().completed == 22)


async def test_what_waits_too_long_for_its_turn_is_given_back(database_url: str) -> None:
    gate = asyncio.Event()
    async with shop(database_url, job_concurrency=1, job_buffer_seconds=0.3) as node:

        async def quick() -> None: ...

        async def slow() -> None:
            await gate.wait()

        node.job(quick)
        node.job(slow)
        await node.start()
        node.fetch_ahead()
        await node.enqueue("slow", priority=1, wake=False)
        await node.enqueue("quick", ["{}"] * 20)
        before = await node.fetch("SELECT id, seq FROM strandline.jobs ORDER BY id")
        await holds(lambda: node.workers.statistics().queues[0].given_back == 20)

        async def is_back() -> bool:
            return await node.states() == [(2, 1)] + [(0, 0)] * 20

        await holds(is_back)
        assert await node.fetch("SELECT id, seq FROM strandline.jobs ORDER BY id") == before
        gate.set()
        await holds(lambda: node.completer.statistics().completed == 21)


async def test_verdicts_and_failures_become_what_they_say(database_url: str) -> None:
    async with shop(database_url) as node:

        async def doing(what: str) -> str | None:
            if what == "snooze":
                raise Snooze(60, "later")
            if what == "cancel":
                raise Cancel("never")
            if what == "fail":
                raise ValueError("no")
            return "well"

        node.job(doing, retry=Retry(first=60.0))
        await node.start()
        for what in ("snooze", "cancel", "fail", "return"):
            await node.enqueue("doing", [f'{{"what":"{what}"}}'])
        last = await node.enqueue("doing", ['{"what":"fail"}'], max_attempts=1)
        await holds(lambda: len(node.told("job_dead")) == 1)
        await holds(lambda: node.completer.statistics().pending == 0)

        assert await node.states() == [(1, 0), (1, 1)]
        dead = await node.fetch("SELECT id, errors::text, fingerprint FROM strandline.dead_jobs")
        assert [row[0] for row in dead] == last
        assert "ValueError" in dead[0][1]
        assert dead[0][2]
        history = await node.fetch(
            "SELECT outcome, result, reason FROM strandline.job_history ORDER BY id"
        )
        assert [tuple(row) for row in history] == [
            ("cancelled", None, "never"),
            ("completed", '"well"', None),
        ]
        assert len(node.told("job_failed")) == 1
        assert node.told("job_snoozed")[0].facts["delay"] == 60


async def test_a_job_over_its_time_limit_is_stopped_and_tried_again(database_url: str) -> None:
    async with shop(database_url) as node:

        async def hang() -> None:
            await asyncio.sleep(600)

        node.job(hang, timeout=0.1, retry=Retry(first=60.0))
        await node.start()
        await node.enqueue("hang")
        await node.enqueue("hang", meta='{"timeout": 0.2}')
        await node.enqueue("hang", meta='{"timeout": 500}')
        await holds(lambda: len(node.told("job_failed")) == 2)

        async def is_written() -> bool:
            return await node.states() == [(1, 1), (1, 1), (2, 1)]

        await holds(is_written)
        errors = await node.fetch("SELECT errors::text FROM strandline.jobs ORDER BY id LIMIT 1")
        assert "TimeLimitExceeded" in errors[0][0]
        assert "0.1 s" in errors[0][0]


async def test_a_running_job_is_cancelled_by_its_row_and_a_waiting_one_is_not_begun(
    database_url: str,
) -> None:
    seen = []
    async with shop(database_url, job_concurrency=1, job_buffer_seconds=60.0) as node:

        async def quick() -> None: ...

        async def hang() -> None:
            seen.append(1)
            await asyncio.sleep(600)

        node.job(quick)
        node.job(hang)
        await node.start()
        node.fetch_ahead()
        await node.enqueue("hang", ["{}"] * 3)
        await holds(lambda: node.workers.statistics().queues[0].buffered == 2)

        await node.fetch("UPDATE strandline.jobs SET cancel_at = clock_timestamp()")
        await holds(lambda: node.completer.statistics().settled == 3)

        assert seen == [1]
        assert await node.states() == []
        kept = await node.fetch("SELECT outcome FROM strandline.job_history")
        assert [row[0] for row in kept] == ["cancelled"] * 3


async def test_a_handler_that_cancels_itself_does_not_hit_the_next_job(database_url: str) -> None:
    seen: list[int] = []
    async with shop(database_url, job_concurrency=1) as node:

        async def suicide() -> None:
            node.workers.cancel(own)

        async def after() -> None:
            await asyncio.sleep(0.01)
            seen.append(1)

        node.job(suicide)
        node.job(after)
        node.queues.say("default", is_paused=True)
        await node.start()
        node.fetch_ahead()
        own = await node.enqueue("suicide")
        await node.enqueue("after", ["{}"] * 3)
        node.queues.say("default", is_paused=False)
        await holds(lambda: node.completer.statistics().completed == 4)
        assert seen == [1, 1, 1]
        assert not node.told("job_failed")


async def test_a_cancellation_of_its_own_making_is_a_failure_like_any_other(
    database_url: str,
) -> None:
    async with shop(database_url, job_concurrency=1) as node:

        async def hang() -> None:
            await asyncio.sleep(600)

        async def awaits_cancelled() -> None:
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future

        node.job(hang, timeout=0.05, retry=Retry(first=60.0))
        node.job(awaits_cancelled, retry=Retry(first=60.0))
        await node.start()
        await node.enqueue("hang")
        await node.enqueue("awaits_cancelled")
        await holds(lambda: len(node.told("job_failed")) == 2)

        async def is_written() -> bool:
            return await node.states() == [(1, 1), (1, 1)]

        await holds(is_written)


async def test_a_stuck_handler_is_told_with_its_stack_and_loses_its_place(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    free = asyncio.Event()
    async with shop(database_url, job_concurrency=1, job_stuck_after=0.2) as node:

        async def stubborn() -> None:
            while not free.is_set():
                try:
                    await free.wait()
                except asyncio.CancelledError:
                    continue

        async def other() -> None: ...

        node.job(stubborn, timeout=0.1)
        node.job(other)
        await node.start()
        await node.enqueue("stubborn")
        await holds(lambda: node.workers.statistics().queues[0].running == 1)
        await node.enqueue("other", ["{}"] * 5)
        await holds(lambda: len(node.told("job_stuck")) == 1)
        await holds(lambda: node.completer.statistics().completed == 5)

        worker = node.workers.statistics().queues[0]
        assert (worker.stuck, worker.running) == (1, 1)
        assert "in stubborn" in caplog.text
        free.set()
        await holds(lambda: node.completer.statistics().completed == 6)
        assert await node.states() == []


def test_an_exit_in_a_handler_is_recorded_as_a_failure_and_ends_the_process(
    database_url: str,
) -> None:
    told = []

    async def main() -> None:
        async with shop(database_url) as node:

            async def leave() -> None:
                await asyncio.sleep(0)
                raise SystemExit(3)

            node.job(leave, retry=Retry(first=60.0))
            node.wiring.signals.listen(lambda one: told.append(one.name))
            await node.start()
            await node.enqueue("leave")
            await asyncio.sleep(30)

    with pytest.raises(SystemExit):
        asyncio.run(main())
    assert "job_failed" in told


def test_the_setting_names_queues_and_how_many_at_once() -> None:
    assert queues_of("", ["mail", "default"]) == {"default": None, "mail": None}
    assert queues_of("none", ["mail"]) == {}
    assert queues_of(" mail = 20 , default ", []) == {"mail": 20, "default": None}
    for wrong in ("mail=", "mail=0", "=3", "mail,mail", "mail=x", "a" * 101):
        with pytest.raises(InvalidSetting):
            queues_of(wrong, [])
