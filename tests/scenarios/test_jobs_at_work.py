"""Jobs on a node that meets trouble, seen by somebody who uses nothing but the app."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from time import monotonic
from typing import Any

import pytest
from bouncer import bouncer, needs_pgbouncer
from tally import connected, end_backends, holds

import strandline as sl
from strandline.errors import JobNotDone, JobNotFound

QUICK: dict[str, Any] = {
    "pulse": "loop",
    "pulse_interval": 0.1,
    "poll_interval": 0.05,
    "job_poll_interval": 0.1,
}

RECONNECTED = """
    SELECT count(*) > 2 FROM pg_stat_activity
     WHERE datname = current_database() AND application_name LIKE 'strandline%'
"""


async def test_a_job_decides_by_itself_when_it_goes_on_and_whether(database_url: str) -> None:
    app = sl.App("shop", database_url, **QUICK)
    asked: list[int] = []

    @app.job(max_attempts=1)
    async def charge(order: str) -> str:
        asked.append(sl.current().attempt)
        if len(asked) < 3:
            raise sl.Snooze(0.05, "the bank is closed")
        return f"charged {order}"

    @app.job
    async def ship(order: str) -> None:
        raise sl.Cancel(f"{order} is gone")

    async with app:
        await app.start()
        charged = await app.enqueue(charge, "order-1")
        shipped = await app.enqueue(ship, "order-1")

        assert await charged.result(timeout=30) == "charged order-1"
        with pytest.raises(JobNotDone, match="order-1 is gone"):
            await shipped.result(timeout=30)
        assert asked == [1, 1, 1]  # it has one attempt, and none was used
        assert (await shipped.status()).state == "cancelled"


async def test_what_becomes_of_jobs_is_heard(database_url: str) -> None:
    app = sl.App("shop", database_url, **QUICK)
    heard: list[tuple[str, str]] = []

    @app.job(retry=sl.Retry(max_attempts=2, first=0.05))
    async def fail() -> None:
        raise ValueError("no")

    @app.job
    async def work() -> None: ...

    @app.job
    async def refuse() -> None:
        raise sl.Cancel("not today")

    for one in ("started", "completed", "failed", "dead", "cancelled"):
        app.on_job(one, lambda event: heard.append((event.kind, event.happened)))
    async with app:
        await app.start()
        await app.enqueue_many([fail.call(), work.call(), refuse.call()])
        await holds(lambda: ("fail", "dead") in heard and len(heard) >= 8)

    assert [what for kind, what in heard if kind == "fail"] == [
        "started",
        "failed",
        "started",
        "dead",
    ]
    assert [what for kind, what in heard if kind == "work"] == ["started", "completed"]
    assert [what for kind, what in heard if kind == "refuse"] == ["started", "cancelled"]


async def test_a_job_that_runs_for_months_is_left_to_its_node(database_url: str) -> None:
    """No age makes a running job one that is lost; that its node is gone does."""
    app = sl.App("shop", database_url, **QUICK)
    begun: list[str] = []
    enough = asyncio.Event()

    @app.job(keep="all")
    async def work(name: str) -> None:
        begun.append(name)
        await enough.wait()

    async with app, connected(database_url) as operator:
        await app.start()
        old = await app.enqueue(work, "old")
        await holds(lambda: begun == ["old"])
        lost = await app.enqueue(work.call("lost").with_(delay=3600))
        await operator.execute(
            "UPDATE strandline.jobs SET created_at = now() - interval '90 days',"
            " claimed_at = now() - interval '90 days' WHERE id = $1",
            old.id,
        )
        place = "SELECT ctid::text FROM strandline.jobs WHERE id = $1"
        before = await operator.fetchval(place, old.id)
        await operator.execute(  # as a node that is gone has left it, a moment ago
            "UPDATE strandline.jobs SET state = 2, attempt = 1, claim = (1000000::bigint << 32) + 1,"
            " claimed_at = now() WHERE id = $1",
            lost.id,
        )

        await holds(lambda: begun == ["old", "lost"], timeout=30)

        assert (await lost.status()).errors[0]["class"] == "NodeLost"
        assert await operator.fetchval(place, old.id) == before  # nor is it written to meanwhile
        status = await old.status()
        assert (status.state, status.attempt, status.errors) == ("running", 1, ())
        enough.set()
        await old.result(timeout=30)
        await lost.result(timeout=30)
        assert begun == ["old", "lost"]


async def test_jobs_go_on_while_the_application_holds_every_connection(database_url: str) -> None:
    """Leaked transactions starve what shares their pool."""
    app = sl.App("shop", database_url, **QUICK, work_connections=2, acquire_timeout=0.2)
    tried: list[int] = []

    @app.job(retry=sl.Retry(first=0.05))
    async def work() -> str:
        tried.append(sl.current().attempt)
        if len(tried) == 1:
            raise ConnectionError
        return "done"

    @app.cron("* * * * * *", name="every second")
    @app.job(keep="all")
    async def tick() -> None: ...

    async with app, connected(database_url) as other:
        await app.start()
        async with AsyncExitStack() as leaked:
            for _ in range(2):
                tx = await leaked.enter_async_context(app.transaction())
                await tx.fetch("SELECT 1")
            await other.fetchval("SELECT strandline.enqueue('work')")
            await holds(lambda: tried == [1, 2], timeout=30)
            ended = "SELECT count(*) FROM strandline.job_history WHERE kind = $1"

            async def both_have_ended() -> bool:
                return await other.fetchval(ended, "work") and await other.fetchval(ended, "tick")

            await holds(both_have_ended, timeout=30)


async def test_a_database_that_takes_no_writes_for_a_while_costs_no_job(database_url: str) -> None:
    """As after a fail-over that clients have not noticed."""
    app = sl.App("shop", database_url, **QUICK)
    begun: list[str] = []
    enough = asyncio.Event()

    @app.job(keep="all")
    async def work(name: str) -> str:
        begun.append(name)
        if name == "running":
            await enough.wait()
        return name

    async with app, connected(database_url) as operator:
        name = await operator.fetchval("SELECT current_database()")
        await app.start()
        running = await app.enqueue(work, "running")
        waiting = await app.enqueue(work.call("waiting").with_(delay=1.0))
        await holds(lambda: begun == ["running"])

        await operator.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        await end_backends(operator)
        enough.set()
        assert await holds(lambda: operator.fetchval(RECONNECTED), timeout=30)
        assert (
            await operator.fetchval("SELECT state FROM strandline.jobs WHERE id = $1", running.id)
            == 2
        )
        await operator.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
        await end_backends(operator)

        assert await running.result(timeout=30) == "running"
        assert await waiting.result(timeout=30) == "waiting"
        assert begun == ["running", "waiting"]
        assert (await running.status()).attempt == (await waiting.status()).attempt == 1


async def test_a_running_job_that_somebody_deletes_hurts_no_other(database_url: str) -> None:
    app = sl.App("shop", database_url, **QUICK)
    begun = asyncio.Event()
    enough = asyncio.Event()

    @app.job(keep="all")
    async def work(name: str) -> str:
        if name == "deleted":
            begun.set()
            await enough.wait()
        return name

    async with app, connected(database_url) as operator:
        await app.start()
        deleted = await app.enqueue(work, "deleted")
        await asyncio.wait_for(begun.wait(), 30)
        await operator.execute("DELETE FROM strandline.jobs WHERE id = $1", deleted.id)
        fenced: list[int] = []
        app.signals.listen(
            lambda notice: fenced.append(1) if notice.name == "jobs_fenced" else None
        )
        others = await app.enqueue_many(work.call(f"other {number}") for number in range(20))
        enough.set()

        for number, one in enumerate(others):
            assert await one.result(timeout=30) == f"other {number}"
        with pytest.raises(JobNotFound):
            await deleted.result(timeout=30)
        assert fenced == [1]


async def test_many_transactions_that_enqueue_make_few_notices(database_url: str) -> None:
    app = sl.App("shop", database_url, **QUICK, job_notify_interval=0.1)
    heard: list[str] = []

    @app.job
    async def work(number: int) -> None: ...

    async def ask(number: int) -> None:
        async with app.transaction() as tx:
            await tx.enqueue(work, number)

    async with app, connected(database_url) as other:
        await other.add_listener("strandline.jobs", lambda *about: heard.append(about[3]))
        begun = monotonic()
        await asyncio.gather(*(ask(number) for number in range(200)))
        await holds(lambda: heard)
        most = (monotonic() - begun) / 0.1 + 2

    assert len(heard) <= most


@needs_pgbouncer
async def test_without_any_notice_jobs_and_results_are_found_and_cancelled(
    database_url: str,
) -> None:
    """A pooler in transaction mode lets nobody listen."""
    began = asyncio.Event()
    ran: list[str] = []
    options = {**QUICK, "pooler": "transaction", "pulse": "thread", "pulse_interval": 0.2}

    def declare(app: sl.App) -> Any:
        @app.job(keep="all")
        async def work(name: str) -> str:
            ran.append(name)
            if name == "long":
                began.set()
                await asyncio.sleep(3600)
            return name

        return work

    async with bouncer(database_url) as url:
        node = sl.App("node", url, **options)
        writer = sl.App("writer", url, **options)
        declare(node)
        work = declare(writer)
        async with node, writer:
            await node.start()
            first = await writer.enqueue(work, "first")
            long = await writer.enqueue(work, "long")
            assert await first.result(timeout=30) == "first"
            await asyncio.wait_for(began.wait(), 30)

            await long.cancel("nobody wants it any more")
            with pytest.raises(JobNotDone, match="nobody wants it"):
                await long.result(timeout=30)
            assert ran == ["first", "long"]
