"""Jobs of nodes that are gone, frozen or evicted: run again by others, and recorded once."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from crowd import PATIENCE, QUICK
from duties import tables
from job_crowd import JobCrowd
from tally import holds

from strandline.app import App
from strandline.cluster import membership
from strandline.errors import Unavailable
from strandline.jobs.context import current
from strandline.jobs.part import JobsPart
from strandline.testing.nodes import NodeProcess

LONG = 120.0  # seconds of a ttl that no test waits for


async def test_after_kill_9_the_side_process_tells_and_another_node_runs_the_job_at_once(
    database_url: str, tmp_path: Path
) -> None:
    async with JobCrowd(database_url, tmp_path, node_ttl=LONG) as crowd:
        nodes = await crowd.start("first", "second")
        job = await crowd.enqueue("hold", name="job", seconds=3600)
        victim, heir = await _roles(crowd, nodes, "job")
        begun = time.monotonic()
        victim.kill()

        pids = await crowd.until_begun("job", times=2)

        assert time.monotonic() - begun < LONG / 4  # nobody waited for the ttl
        assert pids == [victim.pid, heir.pid]
        row = await crowd.live(job)
        assert row["attempt"] == 2
        assert json.loads(row["errors"])[0]["class"] == "NodeLost"


async def test_a_frozen_process_completes_nothing_that_others_have_run_and_a_killed_one_is_missed_in_time(
    database_url: str, tmp_path: Path
) -> None:
    """The process is frozen as a whole and wakes up too late; later on one is killed as a whole."""
    async with JobCrowd(database_url, tmp_path) as crowd:
        nodes = await crowd.start("first", "second")
        numbers = {node.pid: (await node.rows())[-1].number for node in nodes}
        job = await crowd.enqueue("hold", name="job", seconds=3.0, again=0)
        frozen, heir = await _roles(crowd, nodes, "job")
        frozen.freeze(with_side_process=True)
        try:
            ended = await crowd.until_ended(job)
        finally:
            frozen.thaw()
        assert int(ended["result"]) == heir.pid

        await frozen.until("active", timeout=PATIENCE, newer_than=numbers[frozen.pid])
        job_of_the_dead = await crowd.enqueue("hold", name="of the dead", seconds=3600, again=0)
        victim, heir = await _roles(crowd, nodes, "of the dead")
        stays = await _one_of(crowd, heir.pid)
        victim.freeze(with_side_process=True)  # so that neither says a word about the other
        victim.kill_side_process()
        victim.kill()
        ended = await crowd.until_ended(job_of_the_dead)

        assert (ended["outcome"], ended["attempt"]) == ("completed", 2)
        assert int(ended["result"]) == heir.pid
        row = await crowd.live(stays)  # its node is there: it is nobody else's, however old
        assert (row["state"], row["attempt"]) == (2, 1)
        assert len(await crowd.history(job)) == 1  # what woke up has had its time
        assert await crowd.live(job) is None


async def _roles(
    crowd: JobCrowd, nodes: list[NodeProcess], name: str
) -> tuple[NodeProcess, NodeProcess]:
    """Of two nodes the one that has begun the job *name*, and the other one."""
    pid = (await crowd.until_begun(name))[0]
    first, second = nodes
    return (first, second) if pid == first.pid else (second, first)


async def _one_of(crowd: JobCrowd, pid: int) -> int:
    """A job that process *pid* runs, and that seems to have been running for ten days."""
    for number in range(200):
        name = f"try {number}"
        job = await crowd.enqueue("hold", name=name, seconds=3600)
        if (await crowd.until_begun(name))[0] == pid:
            await crowd.connection.execute(
                "UPDATE strandline.jobs SET claimed_at = now() - interval '10 days' WHERE id = $1",
                job,
            )
            return job
    raise AssertionError("that process takes no jobs")


async def test_an_evicted_node_ends_its_jobs_and_works_on_under_another_number(
    database_url: str,
) -> None:
    app = App("jobs", database_url, **{**QUICK, "pulse": "thread", "node_ttl": 20.0})
    told: list[Any] = []
    claims: list[int] = []
    cancelled: list[int] = []

    @app.job(keep="all")
    async def hold(seconds: float) -> None:
        claims.append(current().fencing_token)
        try:
            await asyncio.sleep(seconds if len(claims) == 1 else 0)
        except asyncio.CancelledError:
            cancelled.append(claims[-1])
            raise

    app.signals.listen(told.append)
    async with app, tables(database_url) as t:
        await app.start()
        await app.enqueue(hold.call(3600))
        await holds(lambda: claims, PATIENCE)
        assert app.node_id is not None
        await t.run(membership.evict(app.node_id, "a test", channel="strandline.cluster"))

        await holds(lambda: len(claims) == 2, PATIENCE)
        await holds(lambda: t.one("SELECT count(*) FROM strandline.job_history"), PATIENCE)

        assert cancelled == claims[:1]
        assert claims[0] >> 32 < claims[1] >> 32
        (row,) = await t.rows("SELECT * FROM strandline.job_history")
        assert (row["outcome"], row["attempt"]) == ("completed", 2)


async def test_a_job_that_was_to_be_cancelled_when_its_node_went_is_cancelled(
    database_url: str,
) -> None:
    app = App("jobs", database_url, **{**QUICK, "pulse": "loop", "node_ttl": 20.0})
    ran: list[int] = []

    @app.job(keep="all")
    async def hold() -> None:
        ran.append(1)

    async with app, tables(database_url) as t:
        job = await t.running(
            999_999,
            kind="'hold'",
            queue="'elsewhere'",
            max_attempts=1,
            cancel_at="now()",
            cancel_reason="'enough'",
        )
        await app.start()

        await holds(lambda: t.one("SELECT count(*) FROM strandline.job_history"), PATIENCE)

        (row,) = await t.rows("SELECT * FROM strandline.job_history")
        assert (row["id"], row["outcome"], row["reason"]) == (job, "cancelled", "enough")
        assert not ran


async def test_alone_a_process_takes_over_what_others_ran(database_url: str) -> None:
    app = App("jobs", database_url, mode="solo")
    ran: list[int] = []

    @app.job
    async def hold() -> None:
        ran.append(1)

    async with app, tables(database_url) as t:
        await t.running(await t.node(), kind="'hold'")
        await app.start()
        await holds(lambda: ran, PATIENCE)
        await app.enqueue(hold.call())
        await holds(lambda: len(ran) == 2, PATIENCE)
        report = await app.stop()

        assert report is not None and report.result == "clean"
        assert await holds(lambda: _is_empty(t), PATIENCE)


async def test_alone_a_claim_of_a_former_process_that_commits_late_is_found(
    database_url: str,
) -> None:
    """Its session was still at the statement when the new process looked."""
    app = App("jobs", database_url, mode="solo", job_poll_interval=0.1)
    ran: list[int] = []

    @app.job
    async def hold() -> None:
        ran.append(1)

    async with app, tables(database_url) as former:
        await former.rows("SELECT setval(pg_get_serial_sequence('strandline.nodes', 'number'), 10)")
        await app.enqueue(hold.call())
        async with former.connection.transaction():
            await former.rows(
                "UPDATE strandline.jobs SET state = 2, attempt = 1, claim = $1", (7 << 32) + 1
            )
            await app.start()

        await holds(lambda: ran, PATIENCE)


async def _is_empty(t: Any) -> bool:
    return bool(await t.one("SELECT count(*) = 0 FROM strandline.jobs"))


async def test_a_node_that_is_evicted_while_its_jobs_begin_claims_nothing(
    database_url: str,
) -> None:
    app = App("jobs", database_url)
    ran: list[int] = []

    @app.job
    async def hold() -> None:
        ran.append(1)

    async with app, tables(database_url) as t, tables(database_url) as other:
        part = JobsPart(app._job_ties(), trusts=lambda: True, leadership=lambda: None)
        async with other.connection.transaction():
            await other.rows("LOCK TABLE strandline.queues IN ACCESS EXCLUSIVE MODE")
            beginning = asyncio.create_task(part.begin(17))
            await holds(lambda: t.one("SELECT count(*) FROM pg_locks WHERE NOT granted"), PATIENCE)
            await part.out(timeout=1.0)
        with pytest.raises(Unavailable):
            await beginning
        job = await t.job(kind="'hold'")

        await part.begin(18)
        await holds(lambda: ran, PATIENCE)
        await part.end(cancel=1.0)
        await part.close()

        assert await t.state(job) is None
