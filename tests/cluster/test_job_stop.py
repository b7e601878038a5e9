"""A node that is told to stop: jobs end by themselves, are cancelled, or are left behind, in bounded time."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

from crowd import PATIENCE, QUICK
from duties import AVAILABLE, SCHEDULED, tables
from job_crowd import JobCrowd
from tally import Positions, fill, holds, tally_app

from strandline.app import App
from strandline.cluster import membership
from strandline.termination import ECHO

SHORT = {"job_drain_timeout": 1.0, "job_cancel_timeout": 0.5}


async def test_a_stop_lets_jobs_end_then_cancels_them_and_leaves_those_that_do_not_end(
    database_url: str, tmp_path: Path
) -> None:
    async with JobCrowd(database_url, tmp_path, **SHORT) as crowd:
        (node,) = await crowd.start("only")
        short = await crowd.enqueue("hold", name="short", seconds=0.5)
        long = await crowd.enqueue("hold", name="long", seconds=3600)
        stubborn = await crowd.enqueue("cling", name="stubborn")
        for name in ("short", "long", "stubborn"):
            await crowd.until_begun(name)
        begun = time.monotonic()
        node.terminate()

        code = await node.gone(timeout=PATIENCE)

        assert time.monotonic() - begun < QUICK["stop_hard"] + 10
        assert code == 3  # something was left behind
        assert (await crowd.until_ended(short))["outcome"] == "completed"
        row = await crowd.live(long)  # available at once, and it was not its fault
        assert (row["state"], row["attempt"], row["claim"]) == (0, 0, None)
        assert (await crowd.live(stubborn))["state"] == 2
        (report,) = await crowd.connection.fetchrow("SELECT report::text FROM strandline.nodes")
        assert json.loads(report)["jobs"] == {"finished": 1, "interrupted": 1, "abandoned": 1}

        await crowd.start("next")
        await crowd.until_begun("long", times=2)
        await crowd.until_begun("stubborn", times=2)
        assert (await crowd.live(stubborn))["attempt"] == 2
        assert (await crowd.live(long))["attempt"] == 1


async def test_a_second_signal_gives_the_jobs_back_at_once(
    database_url: str, tmp_path: Path
) -> None:
    slow = {"job_drain_timeout": 60.0, "stop_timeout": 90.0, "stop_hard": 100.0, "stop_fast": 3.0}
    async with JobCrowd(database_url, tmp_path, **slow) as crowd:
        (node,) = await crowd.start("only")
        job = await crowd.enqueue("hold", name="long", seconds=3600)
        await crowd.until_begun("long")
        begun = time.monotonic()
        node.terminate()
        await node.until("draining", timeout=PATIENCE)
        await holds(lambda: time.monotonic() > begun + 3 * ECHO, PATIENCE)  # else it is an echo
        node.terminate()

        await node.gone(timeout=PATIENCE)

        assert time.monotonic() - begun < 30
        row = await crowd.live(job)
        assert (row["state"], row["attempt"]) == (0, 0)


async def test_a_draining_node_begins_nothing_new_and_lets_its_jobs_end(database_url: str) -> None:
    app = App("jobs", database_url, **{**QUICK, "pulse": "loop", "node_ttl": 20.0})
    ran: list[str] = []
    go_on = asyncio.Event()

    @app.job
    async def hold(name: str) -> None:
        ran.append(name)
        await go_on.wait()
        ran.append(f"{name} ended")

    async with app, tables(database_url) as t:
        await app.start()
        await app.enqueue(hold.call("first"))
        await holds(lambda: ran, PATIENCE)
        drained = asyncio.ensure_future(app.signals.wait_for("drained", timeout=PATIENCE))
        await t.run(_drain(app))
        await drained

        await app.enqueue(hold.call("second"))
        go_on.set()
        await holds(lambda: ran == ["first", "first ended"], PATIENCE)
        await holds(lambda: _left(t, 1), PATIENCE)
        report = await app.stop()

        assert report is not None and report.result == "clean"
        assert ran == ["first", "first ended"]
        assert await t.one("SELECT state FROM strandline.jobs") == 0


def _drain(app: App) -> Any:
    assert app.node_id is not None
    return membership.request_drain(app.node_id, "a test", channel="strandline.cluster")


async def _left(t: Any, wanted: int) -> bool:
    return bool(await t.one("SELECT count(*) FROM strandline.jobs") == wanted)


async def test_an_app_can_stop_and_start_again_with_its_jobs(database_url: str) -> None:
    app = App("jobs", database_url, **{**QUICK, "pulse": "loop", "node_ttl": 20.0})
    ran: list[int] = []

    @app.job
    async def count(number: int) -> None:
        ran.append(number)

    async with app:
        for number in range(3):
            await app.start()
            await app.enqueue(count.call(number))
            await holds(lambda: len(ran) == number + 1, PATIENCE)  # noqa: B023
            report = await app.stop()
            assert report is not None and report.result == "clean", report
            assert report.jobs == {"finished": 0, "interrupted": 0, "abandoned": 0}
    assert ran == [0, 1, 2]


async def test_a_node_that_is_told_to_work_no_queue_runs_no_job_and_leads_for_the_others(
    database_url: str,
) -> None:
    app = App("jobs", database_url, queues="none", **{**QUICK, "pulse": "loop", "node_ttl": 20.0})

    @app.job
    async def never() -> None:
        raise AssertionError

    async with app, tables(database_url) as t:
        await app.start()
        job = await t.job(1, kind="'never'", run_at="now()")
        await holds(lambda: _is_available(t, job), PATIENCE)
        assert app._node is not None
        assert app._node.jobs.statistics()["job_workers"] is None
        report = await app.stop()
        assert report is not None and report.result == "clean"
        assert await t.state(job) == 0


async def _is_available(t: Any, job: int) -> bool:
    return bool(await t.state(job) == 0)


async def test_catching_up_touches_no_job_and_named_projections_run_none(
    database_url: str,
) -> None:
    app = tally_app(database_url, **{**QUICK, "pulse": "loop", "node_ttl": 20.0})

    @app.job
    async def never() -> None:
        raise AssertionError

    async with app, tables(database_url) as t:
        job = await app.enqueue(never.call())
        due = await t.job(SCHEDULED, id=1 << 40, kind="'never'", run_at="now()")
        await fill(app, 20)

        assert await app.catch_up() >= 20
        assert await t.rows("SELECT state FROM strandline.jobs ORDER BY id") == [(0,), (1,)]

        await app.start(Positions)  # it leads: without its duties nobody would rescue anything
        await holds(lambda: _is_available(t, 1 << 40), PATIENCE)
        await app.stop()
        assert await t.state(job.id) == AVAILABLE
        assert due


async def test_a_node_works_the_queues_that_its_code_declares_too(database_url: str) -> None:
    app = App("jobs", database_url, **{**QUICK, "pulse": "loop", "node_ttl": 20.0})
    app.queue("elsewhere", concurrency=3)
    ran: list[int] = []

    @app.job
    def in_a_thread() -> None:
        ran.append(1)

    async with app:
        await app.start()
        await app.enqueue(in_a_thread.call().with_(queue="elsewhere"))
        await holds(lambda: ran, PATIENCE)
        assert app._node is not None
        running = app._node.jobs._running
        assert running is not None
        assert running.executors.threads.most == 103
