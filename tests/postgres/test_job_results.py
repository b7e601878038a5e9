"""References to jobs: their state and their result, from another process than the one that runs them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import pytest
from ended import Desk, desk, holds

from strandline.errors import (
    AnswerTimedOut,
    InvalidInput,
    JobNotDone,
    JobNotFound,
    NotOpen,
    ResultNotKept,
)
from strandline.jobs.job import AsyncJob
from strandline.jobs.ref import JobRef
from strandline.jobs.row import Ended, Flag, JobState, Kept

ERROR = {"attempt": 1, "class": "ValueError", "message": "no such order"}


@dataclass
class Sum:
    total: int


async def add(a: int, b: int) -> Sum:
    return Sum(a + b)


def ref(here: Desk, job: int, kind: str = "note", kept: Kept | None = "failed") -> JobRef[Any]:
    return JobRef(job, kind, here.results, kept=kept)


def declare(here: Desk) -> None:
    here.wiring.kinds.add(AsyncJob(add, "add"))
    here.wiring.kinds.bind()


async def test_a_result_is_awaited_where_the_job_does_not_run(database_url: str) -> None:
    async with desk(database_url) as there, desk(database_url) as here:
        declare(here)
        (job,) = await there.running(kind="add")
        waiting = asyncio.create_task(ref(here, job.id, "add").result(timeout=30.0))
        again = asyncio.create_task(ref(here, job.id, "add").result(timeout=30.0))
        await holds(lambda: here.wiring.listener.statistics().connected)
        assert not waiting.done()
        there.completer.done(job, '{"total": 3}')

        assert await waiting == await again == Sum(3)
        assert await ref(here, job.id, "add").result(timeout=30.0) == Sum(3)
        assert (await ref(here, job.id).status()).result == {"total": 3}


async def test_a_thousand_results_are_awaited_by_few_statements(database_url: str) -> None:
    async with desk(database_url) as here:
        jobs = await here.running(1_000)
        waiting = [asyncio.create_task(ref(here, job.id).result(timeout=60.0)) for job in jobs]
        before = here.wiring.pools.control.statistics().taken
        await asyncio.sleep(0)
        for number, job in enumerate(jobs):
            here.completer.done(job, str(number))

        assert await asyncio.gather(*waiting) == list(range(1_000))
        assert here.wiring.pools.control.statistics().taken - before < 200


async def test_a_job_that_returned_nothing_answers_none_though_nothing_is_kept_of_it(
    database_url: str,
) -> None:
    async with desk(database_url) as here:
        first, second, third = await here.running(3)
        (secret,) = await here.running(flags=int(Flag.KEEP_NOTHING))
        unknown = asyncio.create_task(ref(here, first.id, kept=None).result(timeout=30.0))
        nothing = asyncio.create_task(ref(here, secret.id, kept=None).result(timeout=30.0))
        await holds(lambda: all(one.seen for one in here.results._awaited.values()))
        for job in (first, second, third, secret):
            here.completer.done(job, "1" if job is secret else None)
        await here.written()

        assert await unknown is None, "it was seen alive"
        assert await ref(here, second.id).result(timeout=30.0) is None
        with pytest.raises(JobNotFound):
            await ref(here, third.id, kept=None).result(timeout=30.0)
        with pytest.raises(ResultNotKept):
            await nothing
        with pytest.raises(ResultNotKept):
            await ref(here, secret.id, kept="none").result(timeout=30.0)
        with pytest.raises(JobNotFound):
            await ref(here, first.id).status()


async def test_what_ended_otherwise_has_no_result(database_url: str) -> None:
    async with desk(database_url) as here:
        cancelled, dead, large = await here.running(3)
        waiting = [asyncio.create_task(ref(here, one.id).result()) for one in (cancelled, dead)]
        here.completer.put(Ended(cancelled, "cancelled", reason="never mind"))
        here.completer.put(Ended(dead, "dead", error=ERROR))
        here.completer.done(large, "x" * 1_000_001)

        with pytest.raises(JobNotDone, match="cancelled: never mind"):
            await waiting[0]
        with pytest.raises(JobNotDone, match="dead: ValueError: no such order"):
            await waiting[1]
        with pytest.raises(ResultNotKept, match="1000001 characters"):
            await ref(here, large.id).result(timeout=30.0)
        with pytest.raises(JobNotFound):
            await ref(here, 5, kept=None).result(timeout=30.0)


async def test_whoever_does_not_wait_long_enough_learns_how_far_it_is(database_url: str) -> None:
    async with desk(database_url) as here:
        (job,) = await here.running()
        with pytest.raises(AnswerTimedOut, match="it is running"):
            await ref(here, job.id).result(timeout=0.3)
        assert here.results._awaited == {}

        with pytest.raises(asyncio.CancelledError):
            waiting = asyncio.create_task(ref(here, job.id).result())
            await holds(lambda: here.results._awaited)
            waiting.cancel()
            await waiting
        assert here.results._awaited == {}


async def test_whoever_waits_when_the_app_is_closed_is_told(database_url: str) -> None:
    async with desk(database_url) as here:
        (job,) = await here.running()
        waiting = asyncio.create_task(ref(here, job.id).result())
        await holds(lambda: here.results._awaited)
        await here.results.stop()
        for answer in (waiting, ref(here, job.id).result()):
            with pytest.raises(NotOpen, match="the job goes on"):
                await answer


async def test_a_result_of_another_type_than_the_function_says_is_told(database_url: str) -> None:
    async with desk(database_url) as here:
        declare(here)
        (job,) = await here.running(kind="add")
        here.completer.done(job, '{"sum": 3}')
        with pytest.raises(InvalidInput, match="not what its function says"):
            await ref(here, job.id, "add").result(timeout=30.0)
        assert (await ref(here, job.id).status()).result == {"sum": 3}


async def test_a_status_shows_a_job_in_every_state(database_url: str) -> None:
    async with desk(database_url) as here:
        (waiting,) = await here.enqueued()
        (blocked,) = await here.enqueued(state=3)
        running, snoozed, again, done, dead, cancelled = await here.running(6)
        progress = json.dumps({"done": 1, "total": 2})
        await here.fetch(
            "UPDATE strandline.jobs SET progress = $1 WHERE id = $2", progress, running.id
        )
        await here.ended(snoozed, "snoozed", delay=60.0)
        await here.ended(again, "retry", delay=60.0, error=ERROR)
        await here.ended(dead, "dead", error=ERROR)
        await here.ended(cancelled, "cancelled", reason="x")
        here.completer.done(done, "1")
        await here.written()

        found = {
            job: await ref(here, job).status()
            for job in (waiting, blocked, *(one.id for one in (running, snoozed, again)))
        }
        assert [one.state for one in found.values()] == [
            JobState.AVAILABLE,
            JobState.BLOCKED,
            JobState.RUNNING,
            JobState.SCHEDULED,
            JobState.RETRYABLE,
        ]
        assert found[running.id].progress == {"done": 1, "total": 2}
        assert found[again.id].errors == ({**ERROR, "claim": again.claim},)
        assert not any(one.is_final for one in found.values())
        ended = [await ref(here, one.id).status() for one in (done, dead, cancelled)]
        assert [one.state for one in ended] == [
            JobState.COMPLETED,
            JobState.DEAD,
            JobState.CANCELLED,
        ]
        assert all(one.is_final and one.finished_at for one in ended)


async def test_a_job_is_cancelled_by_its_reference(database_url: str) -> None:
    async with desk(database_url) as here:
        (waiting,) = await here.enqueued()
        (running,) = await here.running()

        assert await ref(here, waiting).cancel("never mind")
        assert not await ref(here, waiting).cancel()
        assert await ref(here, running.id).cancel("too late")
        with pytest.raises(JobNotDone, match="cancelled: never mind"):
            await ref(here, waiting).result(timeout=30.0)
        assert (await ref(here, running.id).status()).state == JobState.RUNNING
