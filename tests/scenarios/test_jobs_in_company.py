"""Jobs of several programs, queues, tenants and operators in one database."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import datetime
from typing import Any

import pytest
from commands import rows, run
from tally import connected, holds

import strandline as sl

QUICK: dict[str, Any] = {
    "pulse": "loop",
    "pulse_interval": 0.1,
    "poll_interval": 0.05,
    "job_poll_interval": 0.1,
}


async def test_schedules_and_jobs_of_two_programs_in_one_database_all_run(
    database_url: str,
) -> None:
    """One of the two leads, and has not the code of the other's jobs."""
    fired: Counter[str] = Counter()
    ran: list[str] = []

    def program(name: str) -> sl.App:
        app = sl.App(name, database_url, **QUICK)

        @app.cron("* * * * * *", name=f"{name}'s clock")
        @app.job(name=f"{name}_ticks")
        async def tick(fire_time: datetime) -> None:
            fired[name] += 1

        @app.job(name=f"{name}_works")
        async def work() -> None:
            ran.append(name)

        return app

    async with program("shop") as shop, program("bank") as bank:
        await shop.start()
        await bank.start()
        await shop.enqueue_many([shop.kinds.get("shop_works").call()] * 20)
        await bank.enqueue_many([bank.kinds.get("bank_works").call()] * 20)

        await holds(lambda: len(ran) == 40 and fired["shop"] and fired["bank"], timeout=30)
        assert Counter(ran) == {"shop": 20, "bank": 20}


async def test_two_schemas_of_one_database_have_jobs_of_their_own(database_url: str) -> None:
    ran: list[str] = []

    def program(schema: str) -> tuple[sl.App, Any]:
        app = sl.App("shop", database_url, schema=schema, **QUICK)

        @app.job
        async def work(name: str) -> None:
            ran.append(f"{name} in {schema}")

        return app, work

    (east, work_east), (west, work_west) = program("east"), program("west")
    async with east, west:
        await east.queues.pause("default")
        await west.start()
        await east.start()
        first = await east.enqueue(work_east, "first")
        await west.enqueue(work_west, "second")
        await holds(lambda: ran)

        assert ran == ["second in west"]
        assert [one.id for one in await east.jobs.list(state="available")] == [first.id]
        await east.queues.resume("default")
        await holds(lambda: len(ran) == 2)
        assert ran[1] == "first in east"


async def test_a_queue_that_code_declares_is_worked(database_url: str) -> None:
    """Calls may go to another queue than their job says."""
    app = sl.App("shop", database_url, **QUICK)
    app.queue("bulk", concurrency=2)

    @app.job
    async def work() -> str:
        return sl.current().queue

    async with app:
        await app.start()
        ref = await app.enqueue(work.call().with_(queue="bulk"))

        assert await ref.result(timeout=10) == "bulk"


async def test_an_operator_pauses_limits_and_resumes_a_queue_that_is_worked(
    database_url: str,
) -> None:
    app = sl.App("shop", database_url, **QUICK)
    at_once: list[int] = []
    running = 0

    @app.job(queue="mail")
    async def send(number: int) -> None:
        nonlocal running
        running += 1
        at_once.append(running)
        await asyncio.sleep(0.005)
        running -= 1

    def strandline(*words: str) -> Any:
        return asyncio.to_thread(run, database_url, *words)

    async with app:
        await app.start()
        await strandline("queues", "pause", "mail", "--reason", "the server is being moved")
        await app.enqueue_many(send.call(number) for number in range(40))
        (mail,) = await asyncio.to_thread(rows, database_url, "queues", "list")
        assert (mail["available"], mail["paused_reason"]) == (40, "the server is being moved")
        assert at_once == []

        await strandline("queues", "set", "mail", "--at-most", "3")
        await strandline("queues", "resume", "mail")
        await holds(lambda: len(at_once) == 40, timeout=30)

        assert max(at_once) <= 3


async def test_a_flow_goes_on_once_its_dead_job_was_mended_and_tried_again(
    database_url: str,
) -> None:
    app = sl.App("shop", database_url, **QUICK)
    is_mended = False

    @app.job(max_attempts=2, retry=sl.Retry(first=0.05))
    async def load(month: int) -> list[int]:
        if not is_mended:
            raise ValueError(f"month {month} has 13 weeks")
        return [month, 20]

    @app.job
    async def total() -> int:
        (found,) = (await sl.current().results()).values()
        return sum(found)

    async with app:
        await app.start()
        flow = await app.enqueue(sl.chain(load.call(10), total.call()))

        async def is_dead() -> bool:
            return bool(await app.jobs.list(state="dead"))

        await holds(is_dead, timeout=30)
        (dead,) = await asyncio.to_thread(rows, database_url, "jobs", "list", "--state", "dead")
        shown = (await asyncio.to_thread(run, database_url, "jobs", "show", str(dead["id"])))[0]
        assert "month 10 has 13 weeks" in shown
        assert (await flow.last.status()).state == "blocked"

        is_mended = True
        await asyncio.to_thread(run, database_url, "jobs", "retry", str(dead["id"]))

        assert await flow.last.result(timeout=30) == 30
        assert await app.jobs.list(state="dead") == []


async def test_a_flow_ends_with_its_dead_job_that_was_given_up(database_url: str) -> None:
    app = sl.App("shop", database_url, **QUICK)

    @app.job(max_attempts=1)
    async def load() -> None:
        raise ValueError

    @app.job
    async def total() -> None: ...

    @app.job
    async def clean_up() -> str:
        return "cleaned up"

    async with app:
        await app.start()
        flow = await app.enqueue(sl.batch([load.call()], then=total.call(), always=clean_up.call()))

        async def is_dead() -> bool:
            return bool(await app.jobs.list(kind=load, state="dead"))

        await holds(is_dead, timeout=30)
        words = ("jobs", "discard", "--kind", "load", "--reason", "the customer is gone", "--yes")
        await asyncio.to_thread(run, database_url, *words)

        assert await flow.last.result(timeout=30) == "cleaned up"
        assert [one.state for one in await app.jobs.list(kind=total)] == ["cancelled"]
        (given_up,) = await app.jobs.list(kind=load)
        assert (given_up.state, given_up.reason) == ("discarded", "the customer is gone")


async def test_keys_are_rotated_while_encrypted_jobs_wait(database_url: str) -> None:
    fernet = pytest.importorskip("cryptography.fernet")
    old, new = (fernet.Fernet.generate_key().decode() for _ in range(2))

    def clinic(keys: str) -> tuple[sl.App, Any]:
        app = sl.App("clinic", database_url, **QUICK, job_keys=keys)

        @app.job(encrypted=True, keep="all", retry=sl.Retry(first=0.2, jitter=0.0))
        async def send_findings(patient: str) -> str:
            return f"{len(patient)} letters"

        return app, send_findings

    before, send_findings = clinic(old)
    async with before, connected(database_url) as other:
        ref = await before.enqueue(send_findings, "Ada Lovelace")
        assert "Lovelace" not in await other.fetchval("SELECT args::text FROM strandline.jobs")
        shown = (await asyncio.to_thread(run, database_url, "jobs", "show", str(ref.id)))[0]
        assert "Lovelace" not in shown

        without, _ = clinic("")
        async with without:
            await without.start()
            await holds(lambda: without.jobs.list(state="retryable"), timeout=30)
        after, _ = clinic(f"{new},{old}")
        async with after:
            await after.start()

            assert await ref.result(timeout=30) == "12 letters"
        kept = await other.fetchval("SELECT args::text FROM strandline.job_history")
        assert "Lovelace" not in kept


async def test_a_call_says_what_it_is_and_jobs_are_found_by_it(database_url: str) -> None:
    app = sl.App("shop", database_url, **QUICK)

    @app.job
    async def send(to: str) -> None: ...

    async with app:
        call = send.call("ada").with_(tenant="acme", tags=["invoice"], key="ada", priority=2)
        one = await app.enqueue(call)
        await app.enqueue(send.call("bo").with_(tenant="other", run_at=datetime.now().astimezone()))

        for chosen in ({"tenant": "acme"}, {"tag": "invoice"}, {"key": "ada"}):
            assert [row.id for row in await app.jobs.list(**chosen)] == [one.id]
        found = await asyncio.to_thread(
            rows, database_url, "jobs", "list", "--kind", "send", "--tag", "invoice"
        )
        assert [row["id"] for row in found] == [one.id]
        changed = await app.jobs.cancel(tenant="acme", reason="they have left")
        assert changed.done == 1
        assert (await one.status()).reason == "they have left"
