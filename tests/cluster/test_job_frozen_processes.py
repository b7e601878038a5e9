"""A process that is frozen while it claims or completes jobs, or makes a day, keeps nobody from them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parents[1]
QUICK = {
    "pulse": "thread",
    "pulse_interval": 0.1,
    "node_ttl": 5.0,
    "leader_ttl": 3.0,
    "leader_margin": 0.5,
    "job_poll_interval": 0.1,
    "idle_transaction_timeout": 1.0,
}
SOON = 20.0


@pytest.mark.parametrize("where", ["flush", "transaction"])
async def test_a_job_of_a_process_that_was_frozen_while_it_completed_it_is_run_by_others(
    database_url: str, where: str
) -> None:
    """In a statement that is parsed and not run: no time-out ends it, and in a transaction it has the row."""
    from crowd import PATIENCE
    from duties import tables
    from tally import holds

    from strandline.app import App

    ran: list[int] = []
    app = App("jobs", database_url, **QUICK)

    @app.job(name="note")
    async def note() -> None:
        ran.append(1)

    async with app, tables(database_url) as t:
        number = await t.node("dead")
        job = await t.running(number, kind="'note'", flags=2)
        environment = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, __file__, database_url, str(job), str(number), where),
            env=environment,
        )
        try:
            await holds(lambda: _is_stopped(child.pid), PATIENCE)
            await app.start()

            await holds(lambda: ran, SOON)
        finally:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()


async def test_jobs_that_a_process_was_claiming_when_it_was_frozen_are_run_by_others(
    database_url: str,
) -> None:
    """Its answer is larger than what the network holds: the server waits, and keeps the rows."""
    from crowd import PATIENCE
    from duties import tables
    from tally import holds

    from strandline.app import App

    ran: list[int] = []
    app = App("jobs", database_url, **QUICK)

    @app.job(name="note")
    async def note(text: str) -> None:
        ran.append(len(text))

    async with app, tables(database_url) as t:
        number = await t.node("dead")
        await t.rows(
            """INSERT INTO strandline.jobs (id, kind, args)
               SELECT n, 'note', jsonb_build_object('text', repeat('x', 100000))::text
                 FROM generate_series(1, 400) n"""
        )
        environment = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, __file__, database_url, "0", str(number), "claiming"),
            env=environment,
        )
        try:
            await holds(lambda: _is_stopped(child.pid), PATIENCE)
            await app.start()

            await holds(lambda: len(ran) >= 400, SOON)
        finally:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()


async def test_a_leader_that_was_frozen_while_it_made_a_day_keeps_nobody_from_the_history(
    database_url: str,
) -> None:
    """It has the history alone, and its next statement is parsed and not run: no time-out ends it."""
    from crowd import PATIENCE
    from duties import tables
    from tally import holds

    from strandline.app import App

    app = App("jobs", database_url, **QUICK)

    @app.job(name="note", keep="all")
    async def note() -> None: ...

    async with app, tables(database_url) as t:
        number = await t.node("dead")
        environment = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, __file__, database_url, "0", str(number), "days"), env=environment
        )
        try:
            await holds(lambda: _is_stopped(child.pid), PATIENCE)
            await app.enqueue(note.call())
            await app.start()

            async def is_over() -> bool:
                return not await t.one("SELECT count(*) FROM strandline.jobs")

            await holds(is_over, SOON)
        finally:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()


def _is_stopped(pid: int) -> bool:
    text = Path(f"/proc/{pid}/stat").read_text()
    return text.rpartition(")")[2].split()[0] == "T"


async def claims(url: str, number: int) -> None:
    """Claim jobs, and stand still before the answer is read."""
    import asyncpg
    from ended import desk

    from strandline.jobs.fetcher import Fetcher
    from strandline.jobs.limits import Limits

    get: Any = asyncpg.Connection._get_statement

    async def prepared(self: Any, query: str, *arguments: Any, **named: Any) -> Any:
        statement = await get(self, query, *arguments, **named)
        if "SKIP LOCKED" in query:
            asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGSTOP)
        return statement

    asyncpg.Connection._get_statement = prepared
    async with desk(url, idle_transaction_timeout=1.0) as here:
        fetcher = Fetcher(here.wiring, Limits(), lambda: None, here.completer.put)
        fetcher.begin(number)
        await fetcher.claim("default", ["note"], 400, (0, 0))


async def makes_days(url: str) -> None:
    """Make a day of the history, and stand still within."""
    import asyncpg
    from ended import desk

    from strandline.jobs import days
    from strandline.jobs.right import Right

    get: Any = asyncpg.Connection._get_statement

    async def prepared(self: Any, query: str, *arguments: Any, **named: Any) -> Any:
        statement = await get(self, query, *arguments, **named)
        if "make_job_day" in query:
            os.kill(os.getpid(), signal.SIGSTOP)
        return statement

    asyncpg.Connection._get_statement = prepared
    async with desk(url, start=False, idle_transaction_timeout=1.0) as here:
        control = here.wiring.pools.control
        first = next(one for one in await control.run(days.days(keep=7)) if not one.is_there)
        await control.run(days.make(Right(), first))


async def freezes(url: str, job: int, number: int, where: str) -> None:
    """Complete *job*, and stand still where a statement of that is parsed and not run."""
    import asyncpg
    from ended import desk

    from strandline.jobs.completing import completing
    from strandline.jobs.row import Claimed

    word = "settle_linked_jobs" if where == "flush" else "pg_current_xact_id"
    get: Any = asyncpg.Connection._get_statement

    async def prepared(self: Any, query: str, *arguments: Any, **named: Any) -> Any:
        statement = await get(self, query, *arguments, **named)
        if word in query:
            os.kill(os.getpid(), signal.SIGSTOP)
        return statement

    asyncpg.Connection._get_statement = prepared
    async with desk(url, idle_transaction_timeout=1.0) as here:
        (row,) = await here.fetch(
            """SELECT id, claim, kind, args, attempt, max_attempts, flags, queue, key, tenant,
                      batch, meta, seq, priority, created_at FROM strandline.jobs WHERE id = $1""",
            job,
        )
        if where == "flush":
            here.completer.done(Claimed(*row))
            await here.written()
        else:
            async with completing(here.wiring, Claimed(*row), on_available=here.woken.extend):
                pass


if __name__ == "__main__" and sys.argv[4] == "claiming":
    asyncio.run(claims(sys.argv[1], int(sys.argv[3])))
elif __name__ == "__main__" and sys.argv[4] == "days":
    asyncio.run(makes_days(sys.argv[1]))
elif __name__ == "__main__":
    asyncio.run(freezes(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
