"""The server goes away while jobs end: nothing is lost, nothing doubled, and all is counted right (I8)."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ended import Desk, desk, holds
from tally import connected

from strandline.errors import DatabaseUnavailable
from strandline.jobs import completer as completers
from strandline.jobs.row import Ended, Flag
from strandline.postgres.embedded import Embedded, EmbeddedServer
from strandline.testing.database import fresh_database

LIVE = "SELECT count(*) FROM strandline.jobs"
ERROR = {"attempt": 1, "class": "ValueError", "message": "no"}
END = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
          WHERE datname = current_database() AND application_name = $1"""
OURS = "strandline jobs done"


def lose_answers(here: Desk) -> list[Any]:
    """Whatever is sent for the first time is done, and its answer lost; those so far."""
    line: Any = here.completer._line
    lost: list[Any] = []

    def lossy(real: Any) -> Any:
        async def call(*arguments: Any) -> Any:
            answer = await real(*arguments)
            (flush, *_) = here.completer._flushes
            if flush.is_doubtful:
                return answer
            lost.append(answer)
            raise DatabaseUnavailable("the answer was lost")

        return call

    line.affected, line.run = lossy(line.affected), lossy(line.run)
    return lost


def postmaster(server: EmbeddedServer) -> int:
    """Its process id; 0 while there is none."""
    try:
        return int((server.folder / "data/postmaster.pid").read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return 0


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    """A server of its own; commits it acknowledged survive a stop in a hurry."""
    base = Path(tempfile.mkdtemp(prefix="strandline-", dir="/tmp"))
    base.chmod(0o755)
    embedded = Embedded(base / "server", durable=False, options={"synchronous_commit": "on"})
    try:
        yield embedded.start()
    finally:
        embedded.stop()
        shutil.rmtree(base, ignore_errors=True)


async def test_what_was_written_when_the_answer_was_lost_is_not_taken_for_a_lost_claim(
    database_url: str,
) -> None:
    async with desk(database_url, start=False) as here:
        node = await here.joined()
        jobs = await here.running(20, node=node)
        kept = await here.running(5, node=node, flags=int(Flag.KEEP_ALL))
        endings = ["retry", "snoozed", "released", "cancelled", "dead"]
        others = await here.running(5, node=node)
        lost = jobs[:3]
        await here.claimed([one.id for one in lost], node=node + 1)
        lost_answers = lose_answers(here)

        for job in jobs:
            here.completer.done(job)
        for job in kept:
            here.completer.done(job, "1")
        for job, ending in zip(others, endings, strict=True):
            here.completer.put(Ended(job, ending, delay=9.0, error=ERROR))  # type: ignore[arg-type]
        here.completer.start()
        await here.written()

        found = here.completer.statistics()
        assert len(lost_answers) == 3
        assert (found.completed, found.settled) == (22, 5)
        assert (found.fenced, found.untold) == (3, 0)
        assert [one["ids"] for one in here.told("jobs_fenced")] == [tuple(one.id for one in lost)]
        assert await here.value("SELECT count(*) FROM strandline.job_history") == 6
        assert await here.value("SELECT count(*) FROM strandline.dead_jobs") == 1
        states = await here.fetch("SELECT state FROM strandline.jobs WHERE state <> 2 ORDER BY 1")
        assert [row[0] for row in states] == [0, 1, 1]


async def test_without_its_node_what_was_written_tells_and_nothing_else_is_guessed(
    database_url: str,
) -> None:
    async with desk(database_url, start=False) as here:
        node = await here.joined("dead")
        plain = await here.running(4, node=node)
        kept = await here.running(3, node=node, flags=int(Flag.KEEP_ALL))
        again, dead, snoozed = await here.running(3, node=node)
        lose_answers(here)
        for job in plain:
            here.completer.done(job)
        for job in kept:
            here.completer.done(job, "1")
        here.completer.put(Ended(again, "retry", delay=9.0, error=ERROR))
        here.completer.put(Ended(dead, "dead", error=ERROR))
        here.completer.put(Ended(snoozed, "snoozed", delay=9.0))
        here.completer.start()
        await here.written()

        found = here.completer.statistics()
        assert (found.completed, found.settled, found.fenced) == (3, 2, 0)
        assert found.untold == 5, (
            "the plain ones are gone, and who snoozed the other is not written"
        )


async def test_a_job_that_was_retried_by_us_and_has_gone_on_since_was_ours(
    database_url: str,
) -> None:
    async with desk(database_url, start=False) as here:
        node = await here.joined("dead")
        (job,) = await here.running(node=node)
        (other,) = await here.running(node=node)
        lose_answers(here)
        here.completer.put(Ended(job, "retry", error=ERROR))
        here.completer.put(Ended(other, "retry", error=ERROR))
        line: Any = here.completer._line
        real = line.run

        async def after_others(op: Any) -> Any:
            try:
                return await real(op)
            except DatabaseUnavailable:
                await here.claimed([job.id], node=node + 1)
                await here.fetch("UPDATE strandline.jobs SET errors = NULL WHERE id = $1", other.id)
                raise

        line.run = after_others
        here.completer.start()
        await here.written()

        found = here.completer.statistics()
        assert (found.settled, found.fenced) == (1, 1)
        assert await here.value("SELECT state FROM strandline.jobs WHERE id = $1", job.id) == 2


async def test_a_flush_that_loses_its_backend_is_sent_again(database_url: str) -> None:
    async with desk(database_url) as here, connected(database_url) as other:
        node = await here.joined()
        jobs = await here.running(500, node=node)
        kept = await here.running(100, node=node, flags=int(Flag.KEEP_ALL))
        await other.execute("BEGIN")
        await other.execute("SELECT FROM strandline.jobs WHERE id = $1 FOR UPDATE", jobs[250].id)
        for job in (*jobs, *kept):
            here.completer.done(job)
        waiting = """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                        AND application_name = $1 AND wait_event_type = 'Lock'"""
        for _ in range(2):
            await holds(lambda: here.value(waiting, OURS))
            failures = here.completer.statistics().failures
            await here.fetch(END, OURS)
            await holds(lambda seen=failures: here.completer.statistics().failures > seen)
        assert here.completer.statistics().pending == 600
        await other.execute("ROLLBACK")
        await here.written()

        found = here.completer.statistics()
        assert (found.completed, found.fenced, found.untold, found.failures) == (600, 0, 0, 0)
        assert await here.value(LIVE) == 0
        assert await here.value("SELECT count(*) FROM strandline.job_history") == 100


async def test_completions_outlive_a_killed_server(server: EmbeddedServer) -> None:
    async with fresh_database(server.url, keep=True) as url, desk(url) as here:
        node = await here.joined()
        jobs = await here.running(3_000, node=node)
        kept = await here.running(500, node=node, flags=int(Flag.KEEP_ALL))
        for job in jobs[:1_000]:
            here.completer.done(job)
        await here.written()
        killed = postmaster(server)
        os.kill(killed, signal.SIGKILL)
        for job in (*jobs[1_000:], *kept):
            here.completer.done(job)
        await holds(lambda: here.completer.statistics().failures)
        await holds(lambda: postmaster(server) not in (0, killed))
        await here.written()

        found = here.completer.statistics()
        assert (found.completed, found.fenced, found.untold) == (3_500, 0, 0)
        async with connected(url) as operator:
            assert await operator.fetchval(LIVE) == 0
            history = "SELECT count(DISTINCT id) = count(*), count(*) FROM strandline.job_history"
            assert tuple(await operator.fetchrow(history)) == (True, 500)


async def test_an_evicted_node_writes_nothing_more(database_url: str) -> None:
    async with desk(database_url) as here, connected(database_url) as other:
        jobs = await here.running(10)
        await other.execute("BEGIN")
        await other.execute("SELECT FROM strandline.jobs WHERE id = $1 FOR UPDATE", jobs[5].id)
        for job in jobs:
            here.completer.done(job)
        await holds(lambda: here.completer.statistics().flushes)
        here.completer.abandon()
        for job in jobs:
            here.completer.done(job)
        async with asyncio.timeout(30):
            await here.completer.room()
        assert await here.completer.stop(5.0)
        await other.execute("ROLLBACK")

        assert here.completer.statistics().completed == 0
        gone = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database())"
        await holds(lambda: here.value(gone, OURS))
        assert await here.value(LIVE) == 10


async def test_stopping_writes_what_is_pending(database_url: str) -> None:
    async with desk(database_url) as here:
        jobs = await here.running(2_000)
        for job in jobs:
            here.completer.done(job)

        assert await here.completer.stop(30.0)
        assert await here.value(LIVE) == 0


async def test_stopping_does_not_wait_for_ever_for_a_server_that_does_not_answer(
    database_url: str,
) -> None:
    async with desk(database_url) as here, connected(database_url) as other:
        (job,) = await here.running()
        await other.execute("BEGIN")
        await other.execute("SELECT FROM strandline.jobs FOR UPDATE")
        here.completer.done(job)

        async with asyncio.timeout(30):
            assert not await here.completer.stop(0.3)
        await other.execute("ROLLBACK")


async def test_workers_wait_while_too_much_is_pending(database_url: str) -> None:
    async with desk(database_url, start=False) as here:
        jobs = await here.running(completers.MOST_PENDING)
        async with asyncio.timeout(30):
            await here.completer.room()
        for job in jobs:
            here.completer.done(job)
        waiting = asyncio.create_task(here.completer.room())
        await asyncio.sleep(0)
        assert not waiting.done()
        assert not here.completer.has_room
        here.completer.start()
        async with asyncio.timeout(30):
            await waiting
        await here.written()

        assert here.completer.statistics().completed == len(jobs)


async def test_what_the_server_refuses_waits_aside_and_keeps_nobody_waiting(
    database_url: str,
) -> None:
    async with desk(database_url, start=False) as here:
        jobs = await here.running(400)
        kept = await here.running(50, flags=int(Flag.KEEP_ALL))
        await here.fetch(
            f"""CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN IF old.id IN ({jobs[77].id}, {kept[3].id}) THEN RAISE 'not this one';
                END IF; RETURN old; END $$"""
        )
        await here.fetch(
            "CREATE TRIGGER t BEFORE DELETE ON strandline.jobs FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
        for job in (*jobs, *kept):
            here.completer.done(job)
        here.completer.start()
        await holds(lambda: here.completer.statistics().aside == 2)
        await holds(lambda: here.completer.statistics().completed == 448)
        assert await here.value(LIVE) == 2
        assert here.told("jobs_refused")

        await here.fetch("DROP TRIGGER t ON strandline.jobs")
        assert await here.completer.stop(30.0)
        assert await here.value(LIVE) == 0
        assert here.completer.statistics().completed == 450


async def test_whoever_listens_and_fails_does_not_disturb_what_is_written(
    database_url: str,
) -> None:
    async with desk(database_url, start=False) as here:
        plain, kept = await here.running(5), await here.running(5, flags=int(Flag.KEEP_ALL))
        again = await here.running(5)
        await here.claimed([plain[0].id, kept[0].id, again[0].id], node=78)

        def fail(_: object) -> None:
            raise ZeroDivisionError

        here.completer._on_available = fail
        here.wiring.signals.listen(fail)
        for job in (*plain, *kept):
            here.completer.done(job)
        for job in again:
            here.completer.put(Ended(job, "retry", error=ERROR))
        here.completer.start()
        await here.written()

        found = here.completer.statistics()
        assert (found.completed, found.settled, found.fenced) == (8, 4, 3)
        assert await here.value("SELECT count(*) FROM strandline.job_history") == 4
