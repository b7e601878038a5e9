"""What a running job can reach on a node: its progress, one commit with its end, its parents, others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attempts
import pytest
from tally import connected, holds

import strandline as sl
from strandline.jobs.job import Job
from strandline.jobs.progress import ProgressBoard
from strandline.jobs.retry import Retry


def app_at(url: str, **settings: Any) -> sl.App:
    return sl.App(
        "context",
        url,
        **{"mode": "solo", "job_poll_interval": 0.1, "job_cancel_timeout": 1.0, **settings},
    )


@asynccontextmanager
async def node_of(app: sl.App) -> AsyncIterator[sl.App]:
    async with app:
        await app.start()
        yield app


async def test_progress_is_coalesced_and_seen_by_others_while_the_job_runs(
    database_url: str,
) -> None:
    app = app_at(database_url)
    go_on = asyncio.Event()

    @app.job
    async def count(to: int) -> None:
        for number in range(to):
            sl.current().progress(number + 1, to, "counting \0 \ud800")
        await go_on.wait()

    async with node_of(app), connected(database_url) as other:
        ref = await app.enqueue(count, 10_000)
        written = (
            "SELECT progress ->> 'done', progress ->> 'message' FROM strandline.jobs WHERE id = $1"
        )

        async def seen() -> bool:
            row = await other.fetchrow(written, ref.id)
            return row is not None and row[0] == "10000"

        await holds(seen, timeout=30)
        assert "counting" in (await other.fetchrow(written, ref.id))[1]
        assert (await ref.status()).state == "running"
        go_on.set()


async def test_progress_is_written_once_in_a_gap_and_only_under_the_claim(
    database_url: str,
) -> None:
    app = app_at(database_url)

    @app.job
    async def work() -> None: ...

    async with app, connected(database_url) as other:
        ref = await app.enqueue(work)
        own = attempts.claimed(ref.id, "work")
        stale = own._replace(claim=own.claim - 1)
        await other.execute(
            "UPDATE strandline.jobs SET state = 2, claim = $2 WHERE id = $1", ref.id, own.claim
        )
        board = ProgressBoard(app.pools.control, gap=0.2)
        board.start()

        async def done() -> Any:
            return await other.fetchval("SELECT progress ->> 'done' FROM strandline.jobs")

        async def is_one() -> bool:
            return await done() == "1"

        for number in range(100):
            threading.Thread(target=board.note, args=(own, number, None, "")).start()
        board.note(own, 1, None, "")
        await holds(is_one)
        steps = board._loop.statistics().steps
        board.note(stale, 99, 100, "")
        await board.stop()
        assert await done() == "1"
        assert steps <= 2
        with pytest.raises(sl.InvalidInput, match="numbers"):
            board.note(own, "half", None, "")  # type: ignore[arg-type]


async def test_progress_waits_for_nobody_who_settles_the_job(database_url: str) -> None:
    app = app_at(database_url)

    @app.job
    async def work() -> None: ...

    async with app, connected(database_url) as other:
        first, second = await app.enqueue(work), await app.enqueue(work)
        await other.execute("UPDATE strandline.jobs SET state = 2, claim = 5")
        board = ProgressBoard(app.pools.control, gap=0.0)
        async with other.transaction():
            await other.execute("SELECT FROM strandline.jobs WHERE id = $1 FOR UPDATE", first.id)
            for ref in (first, second):
                board.note(attempts.claimed(ref.id, "work", claim=5), 1, 2, "")
            async with asyncio.timeout(20):
                await board.stop()

        told = await other.fetch("SELECT id FROM strandline.jobs WHERE progress IS NOT NULL")
        assert [row["id"] for row in told] == [second.id]


@pytest.mark.parametrize("fails", ["", "before the commit", "after the commit"])
async def test_an_effect_and_the_end_of_its_job_are_one_commit(
    database_url: str, fails: str
) -> None:
    app = app_at(database_url)
    attempted: list[int] = []

    app.event("moved")(attempts.Moved)

    @app.job(keep="all", retry=Retry(first=0.0, jitter=0))
    async def move(amount: int) -> str:
        job = sl.current()
        attempted.append(job.attempt)
        async with job.completing(result="moved") as tx:
            await tx.append("account", [attempts.Moved(amount)])
            if fails == "before the commit" and job.attempt == 1:
                raise ValueError(fails)
        if fails == "after the commit":
            raise ValueError(fails)
        return "ignored"

    async with node_of(app):
        failed: list[str] = []
        app.on_job("failed", lambda event: failed.append(str(event.error)))
        app.signals.listen(lambda notice: notice.name == "jobs_fenced" and failed.append("fenced"))
        ref = await app.enqueue(move, 5)

        assert await ref.result(timeout=30) == "moved"
        assert [event.data.amount for event in await app.read_stream("account")] == [5]
    again = fails == "before the commit"
    assert attempted == ([1, 2] if again else [1]), failed
    assert failed == ([fails] if again else [])


async def test_a_job_enqueues_others_from_the_loop_and_from_a_thread(database_url: str) -> None:
    app = app_at(database_url)

    @app.job(keep="all")
    async def child(number: int) -> list[Any]:
        return [number, sl.current().meta["causation"]]

    @app.job(keep="all")
    def from_a_thread() -> int:
        job = sl.current()
        return job.wait(job.enqueue(child.call(1))).id

    @app.job(keep="all")
    async def from_the_loop() -> int:
        return (await sl.current().enqueue(child.call(2))).id

    async with node_of(app):
        for parent, number in ((from_a_thread, 1), (from_the_loop, 2)):
            ref = await app.enqueue(parent)
            made = await ref.result(timeout=30)
            found = await holds(lambda made=made: _completed(app, made), timeout=30)
            assert found == [number, f"job:{ref.id}"]


async def _completed(app: sl.App, number: int) -> Any:
    import json

    row = await app.jobs.get(number)
    return json.loads(row.result) if row.result else None


async def test_jobs_on_a_node_are_killed_interrupted_and_cancelled_where_they_run(
    database_url: str, tmp_path: Path
) -> None:
    app = app_at(database_url)
    happened: list[tuple[str, str]] = []
    for one in ("failed", "dead", "cancelled", "completed", "started"):
        app.on_job(one, lambda event: happened.append((event.happened, event.kind)))
    begun = threading.Event()

    spin: Job[..., Any] = app.job(
        name="spin", executor="process", timeout=1.0, retry=Retry(max_attempts=1)
    )(attempts.spin)
    crash: Job[..., Any] = app.job(name="crash", executor="process", retry=Retry(max_attempts=1))(
        attempts.crash
    )
    whereabouts: Job[..., Any] = app.job(name="whereabouts", executor="process", keep="all")(
        attempts.whereabouts
    )

    @app.job
    def obliging() -> None:
        begun.set()
        while True:
            sl.current().raise_if_cancelled()

    async with node_of(app):
        spun = await app.enqueue(spin, str(tmp_path / "pid"))
        crashed = await app.enqueue(crash)
        where = await app.enqueue(whereabouts)
        threaded = await app.enqueue(obliging)
        await holds(begun.is_set, timeout=30)
        await threaded.cancel("enough")

        assert (await where.result(timeout=30))[1] == where.id
        for ref, told in ((spun, "took longer than 1 s"), (crashed, "SIGSEGV")):
            with pytest.raises(sl.JobNotDone, match=told):
                await ref.result(timeout=30)
        with pytest.raises(sl.JobNotDone, match="cancelled"):
            await threaded.result(timeout=30)
        await holds(lambda: ("cancelled", "obliging") in happened)
        assert {("dead", "spin"), ("dead", "crash"), ("completed", "whereabouts")} <= set(happened)
        assert ("completed", "spin") not in happened
