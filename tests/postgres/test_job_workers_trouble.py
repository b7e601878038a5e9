"""What must not leave a job with a node that does nothing about it, or run one that is another's."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import pytest
from duties import tables
from ended import desk

from strandline.app import App
from strandline.errors import ResultNotKept
from strandline.jobs.context import current
from strandline.jobs.control import Which
from strandline.jobs.fetch import claim, give_back
from strandline.jobs.part import JobsPart
from strandline.jobs.rescue import rescue
from strandline.jobs.retry import Retry
from strandline.jobs.right import Right
from strandline.jobs.row import COUNTER_BITS
from tests.jobbing import holds, shop

ALONE = Right()
LIVE = "SELECT count(*) FROM strandline.jobs"
ERROR = {"attempt": 1, "class": "ValueError", "message": "no", "stack": "..."}
SOON = 12.0  # seconds; what is right takes far less


class Odd:
    """No JSON, and a failure of its own."""

    def model_dump(self, mode: str) -> Any:
        raise ZeroDivisionError(mode)


@pytest.mark.parametrize("result", [object(), "x" * 1_000_001, Odd(), {1: {2j}}])
async def test_a_function_whose_result_cannot_be_kept_has_completed(
    database_url: str, result: Any, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[int] = []
    app = App("jobs", database_url, mode="solo", job_poll_interval=0.1)

    @app.job
    async def note() -> Any:
        ran.append(1)
        return result

    async with app:
        await app.start()
        ref = await app.enqueue(note.call())
        with pytest.raises(ResultNotKept, match="not kept"):
            await ref.result(timeout=30)
        status = await ref.status()

    assert (ran, status.state) == ([1], "completed")
    assert [one["class"] for one in status.errors] == ["ResultNotStored"]
    assert "has completed, but its result is not kept" in caplog.text


async def test_a_handler_that_cancels_its_own_task_and_returns_has_completed(
    database_url: str,
) -> None:
    async with shop(database_url, job_concurrency=1) as node:

        async def odd() -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()

        async def good() -> None:
            await asyncio.sleep(0)

        node.job(odd)
        node.job(good, retry=Retry(first=3600))
        await node.start()
        await node.enqueue("odd", priority=1, wake=False)
        await node.enqueue("good", ["{}"] * 5)

        await holds(lambda: node.completer.statistics().completed == 6, SOON)


async def test_a_handler_that_cancels_its_own_task_has_failed_like_any_other(
    database_url: str,
) -> None:
    ran: list[int] = []
    async with shop(database_url, job_concurrency=2) as node:

        async def suicidal() -> None:
            ran.append(1)
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)

        async def good() -> None: ...

        node.job(suicidal, retry=Retry(first=3600))
        node.job(good)
        await node.start()
        await node.enqueue("suicidal")
        await holds(lambda: ran)
        await node.enqueue("good", ["{}"] * 5)
        await holds(lambda: node.completer.statistics().completed == 5)

        async def is_settled() -> bool:
            return await node.states() == [(1, 1)]

        await holds(is_settled, SOON)


async def test_jobs_are_run_though_a_listener_fails_when_it_hears_that_they_were_claimed(
    database_url: str,
) -> None:
    ran: list[int] = []
    async with shop(database_url) as node:

        async def note() -> None:
            ran.append(1)

        def fails(notice: Any) -> None:
            if notice.name == "jobs_claimed" and len(node.told("jobs_claimed")) == 1:
                raise ValueError("a listener of the user's")

        node.job(note)
        node.wiring.signals.listen(fails)
        await node.start()
        await node.enqueue("note", ["{}"] * 3)

        await holds(lambda: len(ran) == 3, SOON)


async def test_jobs_that_waited_too_long_are_given_back_though_a_listener_fails(
    database_url: str,
) -> None:
    gate = asyncio.Event()
    async with shop(database_url, job_concurrency=1, job_buffer_seconds=1.0) as node:

        async def quick() -> None: ...

        async def slow() -> None:
            await gate.wait()

        def fails(notice: Any) -> None:
            if notice.name == "jobs_ran":
                raise ValueError("a listener of the user's")

        async def goes_on() -> None:
            while True:
                await node.enqueue("quick", queue="b")
                await asyncio.sleep(0.02)

        node.job(slow, queue="a")
        node.job(quick, queue="b")
        await node.start()
        node.fetch_ahead()
        await node.enqueue("slow", queue="a", priority=1, wake=False)
        waiting = await node.enqueue("slow", ["{}"] * 20, queue="a")
        await holds(lambda: node.workers.statistics().queues[0].buffered == 20)
        node.wiring.signals.listen(fails)
        others = asyncio.create_task(goes_on())
        await holds(lambda: node.workers.statistics().queues[0].buffered == 0)

        async def are_back() -> bool:
            rows = await node.fetch(
                "SELECT FROM strandline.jobs WHERE id = ANY ($1) AND state = 0", waiting
            )
            return len(rows) == 20

        try:
            await holds(are_back, SOON)
        finally:
            others.cancel()
            gate.set()


async def test_a_process_that_was_frozen_begins_none_of_the_jobs_that_it_has_fetched(
    database_url: str,
) -> None:
    """They are others' by now: whoever wakes up must not begin them, not for a millisecond."""
    begun: list[float] = []
    until = [float("inf")]
    async with shop(database_url, job_concurrency=1, job_buffer_seconds=60.0) as node:
        node.workers._trusts = lambda: time.monotonic() < until[0]

        async def freezes() -> None:
            until[0] = time.monotonic() + 0.2
            time.sleep(0.6)  # the whole process stands still

        async def quick() -> None:
            begun.append(time.monotonic())

        node.job(freezes)
        node.job(quick)
        await node.start()
        node.fetch_ahead()
        await node.enqueue("quick", ["{}"] * 5)
        await holds(lambda: node.completer.statistics().completed == 5)
        node.fetch_ahead()
        begun.clear()
        await node.enqueue("freezes", priority=1, wake=False)
        await node.enqueue("quick", ["{}"] * 200)
        await holds(lambda: until[0] < time.monotonic())
        await asyncio.sleep(0.5)

        assert [one for one in begun if one > until[0]] == []


async def test_a_job_that_was_cancelled_while_it_waited_in_a_buffer_is_not_given_back_to_run(
    database_url: str,
) -> None:
    async with desk(database_url) as here:
        (job,) = await here.running(1)
        changed = await here.control.cancel(Which(ids=(job.id,)), "not wanted")
        assert changed.asked == 1

        async with here.wiring.pools.control.transaction() as session:
            await session.run(give_back([job]))
            again = await session.run(claim("default", ["note"], 10, 78 << COUNTER_BITS | 1))

        assert again == [], "somebody was told that it would end, and it had not even begun"


async def test_a_job_with_the_most_attempts_that_a_row_can_hold_does_not_block_its_queue(
    database_url: str,
) -> None:
    async with desk(database_url) as here:
        (bad,) = await here.enqueued(1, attempt=32_766, max_attempts=32_767)
        (good,) = await here.enqueued(1)
        (job,) = await here.claimed([bad])
        await here.ended(job, "dead", error=ERROR)
        await here.control.retry(Which(ids=(bad,)))

        async with here.wiring.pools.control.transaction() as session:
            jobs = await session.run(claim("default", ["note"], 10, 78 << COUNTER_BITS | 1))

        assert good in [one.id for one in jobs]


async def test_a_time_limit_that_is_no_number_of_seconds_does_not_end_a_runner(
    database_url: str,
) -> None:
    """meta is written by hand, or by another language."""
    async with shop(database_url, job_concurrency=1) as node:

        async def note() -> None: ...

        node.job(note)
        await node.start()
        await node.enqueue("note", meta='{"timeout": ' + "9" * 400 + "}")

        await holds(lambda: node.completer.statistics().completed == 1, SOON)


@pytest.mark.skipif(
    os.environ.get("STRANDLINE_CHAOS") != "long", reason="a million rows: in the long form"
)
async def test_many_jobs_of_kinds_that_are_not_known_here_do_not_hide_those_behind_them(
    database_url: str,
) -> None:
    """A full look takes longer than a statement may: it must not be tried again and again."""
    ran: list[int] = []
    async with shop(database_url, statement_timeout=0.1) as node:

        async def note() -> None:
            ran.append(1)

        node.job(note)
        async with tables(database_url) as t:
            await t.rows(
                """INSERT INTO strandline.jobs (id, kind, priority)
                   SELECT n, 'strange', 1 FROM generate_series(1, 1000000) n"""
            )
            await t.rows("ANALYZE strandline.jobs")
        await node.enqueue("note")
        await node.start()

        await holds(lambda: ran, SOON)


async def test_a_job_that_the_table_gives_to_a_node_which_knows_nothing_of_it_is_run(
    database_url: str,
) -> None:
    """A fail-over has lost the commit of its completion; or a claim committed long after its answer."""
    claims: list[tuple[int, int]] = []
    async with shop(database_url) as node:

        async def note() -> None:
            claims.append((current().id, current().fencing_token))

        node.job(note)
        await node.start()
        await node.enqueue("note")
        await holds(lambda: node.completer.statistics().completed == 1)
        job, claim_of_the_past = claims[0]
        await node.fetch(
            """INSERT INTO strandline.jobs (id, kind, state, claim, attempt, claimed_at)
               VALUES ($1, 'note', 2, $2, 1, now())""",
            *(job, claim_of_the_past),
        )

        await holds(lambda: len(claims) == 2, 2.5 * SOON)


async def test_a_job_that_never_began_is_not_given_up_when_its_node_dies(database_url: str) -> None:
    """It was fetched ahead for its only attempt: a committed job runs at least once (I8)."""
    gate, begun = asyncio.Event(), []
    async with shop(database_url, job_concurrency=1, job_buffer_seconds=60.0) as node:

        async def slow() -> None:
            await gate.wait()

        async def once() -> None:
            begun.append(1)

        node.job(slow)
        node.job(once)
        await node.start()
        node.fetch_ahead()
        await node.enqueue("slow", priority=1, wake=False)
        await node.enqueue("once", ["{}"] * 5, max_attempts=1)
        await holds(lambda: node.workers.statistics().queues[0].running == 1)
        async with tables(database_url) as t:
            for _ in range(3):
                await t.run(rescue(ALONE))  # number 1 is no node (any more)

            assert begun == []
            assert await t.one("SELECT count(*) FROM strandline.dead_jobs WHERE kind = 'once'") == 0
        gate.set()


async def test_a_node_that_is_evicted_while_it_begins_leaves_nothing_of_its_old_number(
    database_url: str,
) -> None:
    app = App("jobs", database_url, mode="solo", job_poll_interval=0.1)
    claims: list[int] = []

    @app.job
    async def note() -> None: ...

    async with app:
        part: Any = _part(app)
        real = part._make
        made: list[Any] = []
        held, go = asyncio.Event(), asyncio.Event()

        def make(number: int) -> Any:
            running = real(number)
            made.append(running)
            start = running.queues.start

            async def slow() -> None:
                held.set()
                await go.wait()
                await start()

            if len(made) == 1:
                running.queues.start = slow
            return running

        part._make = make
        joining = asyncio.create_task(part.begin(7))
        await held.wait()
        leaving = asyncio.create_task(part.out(timeout=2.0))
        await asyncio.sleep(0.05)
        go.set()
        await asyncio.gather(joining, leaving, return_exceptions=True)
        await part.begin(8)

        async with tables(database_url) as t:
            await app.enqueue_many([note.call() for _ in range(20)])

            async def all_done() -> bool:
                return not await t.one(LIVE)

            await holds(all_done)
        claims = [one.workers.statistics().queues for one in made]
        try:
            assert not claims[0], "the workers of number 7 go on beside those of number 8"
        finally:
            for one in made[:1]:
                one.completer.abandon()
                await one.workers.abandon(0.5)
                await part._close(one, flush=0.1)
            await part.close()


def _part(app: App) -> JobsPart:
    return JobsPart(app._job_ties(), trusts=lambda: True, leadership=lambda: None)
