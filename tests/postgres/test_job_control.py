"""Looking at jobs and steering them: lists, counts, cancel, retry, discard."""

from __future__ import annotations

import asyncio
import json

import pytest
from duties import tables
from ended import desk, holds

from strandline.errors import InvalidInput
from strandline.jobs import control
from strandline.jobs.control import Which, counts, find, listed
from strandline.jobs.row import Ended, Flag, JobState

ERROR = {"attempt": 1, "class": "ValueError", "message": "no"}
LIVE = "SELECT id, state, attempt, max_attempts FROM strandline.jobs ORDER BY id"
HISTORY = "SELECT id, outcome, reason FROM strandline.job_history ORDER BY id"
DEAD = "SELECT count(*) FROM strandline.dead_jobs"
BATCH = """INSERT INTO strandline.job_batches (id, members) VALUES (1, 3)"""
EDGE = "INSERT INTO strandline.job_edges (child, parent, name) VALUES ($1, $2, 'p')"


async def test_waiting_jobs_are_cancelled_at_once_and_running_ones_are_told(
    database_url: str,
) -> None:
    async with desk(database_url) as here, desk(database_url) as there:
        heard: list[str] = []
        there.wiring.listener.on("job_cancel", heard.append)
        await holds(lambda: there.wiring.listener.statistics().connected)
        waiting = await here.enqueued(2)
        scheduled = await here.enqueued(1, state=1)
        secret = await here.enqueued(1, flags=int(Flag.KEEP_NOTHING))
        (running,) = await here.running()
        (dead,) = await here.running()
        await here.ended(dead, "dead", error=ERROR)

        changed = await here.control.cancel(Which(), "all of \0 it")

        assert (changed.done, changed.asked) == (4, 1)
        rows = [tuple(row) for row in await here.fetch(HISTORY)]
        reason = "all of \N{SYMBOL FOR NULL} it"
        assert rows == [(one, "cancelled", reason) for one in (*waiting, *scheduled)]
        assert secret[0] not in [row[0] for row in rows]
        (row,) = await here.fetch("SELECT id, cancel_at, cancel_reason FROM strandline.jobs")
        assert (row[0], row[2]) == (running.id, reason)
        first = row[1]
        assert await here.value(DEAD) == 1, "it runs no more anyway"
        await holds(lambda: heard)

        assert (await here.control.cancel(Which(ids=(running.id,)), "again")).asked == 1
        assert await here.value("SELECT cancel_at FROM strandline.jobs") == first
        await here.ended(running, "cancelled", reason="cancelled while it ran")
        assert [tuple(row) for row in await here.fetch(HISTORY)][-1] == (
            running.id,
            "cancelled",
            "again",
        )


async def test_a_job_that_is_claimed_while_it_is_cancelled_is_one_or_the_other(
    database_url: str,
) -> None:
    async with desk(database_url) as here, desk(database_url) as other:
        ids = await here.enqueued(200)

        async def claim() -> None:
            for one in ids:
                await other.claimed([one], fetch=one)

        claiming = asyncio.create_task(claim())
        changed = await here.control.cancel(Which(ids=ids), "x")
        await claiming

        assert changed.done + changed.asked == 200
        rows = await here.fetch("SELECT cancel_at IS NOT NULL FROM strandline.jobs")
        assert all(row[0] for row in rows)
        assert len(rows) == changed.asked
        assert len(await here.fetch(HISTORY)) == changed.done


async def test_filters_choose(database_url: str) -> None:
    async with desk(database_url) as here:
        meta = json.dumps({"tags": ["blue", "red"]})
        a = await here.enqueued(1, queue="mail", kind="send", tenant="x", key="k", meta=meta)
        b = await here.enqueued(1, queue="mail", kind="read", meta='{"correlation": "1"}')
        c = await here.enqueued(1, state=1, attempt=2)
        d = await here.enqueued(1, state=1)
        jobs = await here.running(2, kind="die")
        for job, mark in zip(jobs, "fg", strict=True):
            await here.ended(job, "dead", error=ERROR, fingerprint=mark)
        (done,) = await here.running(kind="done")
        here.completer.done(done, "1")
        await here.written()
        run = here.wiring.pools.control.run

        async def ids(**what: object) -> list[int]:
            return [row.id for row in await run(listed(Which(**what)))]  # type: ignore[arg-type]

        everything = [*a, *b, *c, *d, *(job.id for job in jobs), done.id]
        assert await ids() == everything
        assert await ids(queue="mail") == [*a, *b]
        assert await ids(kind="send") == a
        assert await ids(tag="red") == a
        assert await ids(tag="yellow") == []
        assert await ids(tenant="x") == await ids(key="k") == a
        assert await ids(state="retryable") == c
        assert await ids(state="scheduled") == d
        assert await ids(state="available", queue="mail", kind="read") == b
        assert await ids(state="dead") == [job.id for job in jobs]
        assert await ids(fingerprint="g") == [jobs[1].id]
        assert await ids(state="completed") == [done.id]
        assert await ids(state="cancelled") == []
        assert await ids(ids=(b[0], done.id, 3)) == [*b, done.id]
        assert (await run(find(done.id))).result == "1"  # type: ignore[union-attr]
        assert await run(find(1)) is None

        changed = await here.control.cancel(Which(tag="red"), "")
        assert changed.done == 1
        assert (await here.control.cancel(Which(state="completed"))).done == 0
        with pytest.raises(InvalidInput, match="no state of a job"):
            Which(state="gone")
        with pytest.raises(InvalidInput):
            Which(queue="\0")
        with pytest.raises(InvalidInput):
            Which(ids=(1 << 63,))


async def test_pages_follow_one_another_both_ways_over_all_tables(database_url: str) -> None:
    async with desk(database_url) as here:
        for _ in range(5):
            await here.enqueued(3)
            kept, dead = await here.running(2, flags=int(Flag.KEEP_ALL))
            here.completer.done(kept)
            here.completer.put(Ended(dead, "dead", error=ERROR))
        await here.written()
        run = here.wiring.pools.control.run

        for newest_first in (False, True):
            seen: list[int] = []
            after: int | None = None
            while page := await run(listed(after=after, limit=4, newest_first=newest_first)):
                seen += [row.id for row in page]
                after = seen[-1]
            assert seen == sorted(range(1_000, 1_025), reverse=newest_first)
        with pytest.raises(InvalidInput):
            await run(listed(limit=0))


async def test_dead_letters_are_tried_again_with_the_attempts_they_had(database_url: str) -> None:
    async with desk(database_url) as here:
        used_up, early, other = await here.running(3, max_attempts=1)
        await here.fetch("UPDATE strandline.jobs SET max_attempts = 20 WHERE id = $1", early.id)
        for job in (used_up, early, other):
            await here.ended(job, "dead", error=ERROR, fingerprint="f")

        assert (await here.control.retry(Which(ids=(used_up.id, early.id)))).done == 2
        assert [tuple(row) for row in await here.fetch(LIVE)] == [
            (used_up.id, 0, 1, 2),
            (early.id, 0, 1, 20),
        ]
        assert here.woken == ["default"]
        (again,) = await here.claimed([used_up.id], fetch=2)
        assert (again.attempt, again.max_attempts) == (2, 2)
        await here.ended(again, "dead", error={**ERROR, "attempt": 2})
        errors = json.loads(
            await here.value(
                "SELECT errors::text FROM strandline.dead_jobs WHERE id = $1", used_up.id
            )
        )
        assert [one["attempt"] for one in errors] == [1, 2]

        assert (await here.control.retry(Which(fingerprint="f"), attempts=5)).done == 1
        assert (
            await here.value("SELECT max_attempts FROM strandline.jobs WHERE id = $1", other.id)
            == 6
        )
        assert (await here.control.retry(Which(ids=(other.id,)))).done == 0, "it is there already"
        with pytest.raises(InvalidInput):
            await here.control.retry(Which(), attempts=0)


async def test_two_operators_do_not_try_the_same_dead_letter_twice(database_url: str) -> None:
    async with desk(database_url) as here, desk(database_url) as other:
        (job,) = await here.running()
        await here.ended(job, "dead", error=ERROR)
        pool = here.wiring.pools.control
        async with pool.transaction() as session:
            await session.run(control.retry(Which(ids=(job.id,))))
            second = asyncio.create_task(other.control.retry(Which(ids=(job.id,))))
            waits = """SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'
                          AND datname = current_database()"""
            await holds(lambda: other.value(waits))
            # the job runs and completes before the second one gets to see that it was tried again
            await session.connection.execute("DELETE FROM strandline.jobs")

        assert (await second).done == 0
        assert await here.fetch(LIVE) == []
        assert await here.value(DEAD) == 0


async def test_a_dead_letter_whose_unique_key_is_taken_stays_where_it_is(database_url: str) -> None:
    async with desk(database_url) as here:
        jobs = [(await here.running(unique_key=f"u{number}"))[0] for number in range(2)]
        for job in jobs:
            await here.ended(job, "dead", error=ERROR)
        await here.enqueued(unique_key="u1")

        assert (await here.control.retry(Which(state="dead"))).done == 1
        assert await here.value("SELECT id FROM strandline.dead_jobs") == jobs[1].id


async def test_jobs_that_wait_for_their_time_are_hastened(database_url: str) -> None:
    async with desk(database_url) as here:
        (scheduled,) = await here.enqueued(state=1)
        (again,) = await here.enqueued(state=1, attempt=1)
        (blocked,) = await here.enqueued(state=3)

        assert (await here.control.retry(Which())).done == 0, "without a word only dead letters"
        assert (await here.control.retry(Which(state="retryable"))).done == 1
        assert (await here.control.retry(Which(ids=(scheduled, blocked)))).done == 1
        states = {row[0]: row[1] for row in await here.fetch(LIVE)}
        assert states == {scheduled: 0, again: 0, blocked: 3}


async def test_dead_letters_are_discarded_and_who_waits_for_them_goes_on(
    database_url: str,
) -> None:
    async with desk(database_url) as here:
        parent = (await here.running(flags=int(Flag.HAS_CHILDREN)))[0]
        child = (await here.enqueued(state=3, flags=int(Flag.HAS_PARENTS)))[0]
        await here.fetch(EDGE, child, parent.id)
        head = (await here.running(key="k", flags=int(Flag.ORDERED)))[0]
        behind = (await here.enqueued(key="k", flags=int(Flag.ORDERED), state=3))[0]
        secret = (await here.running(flags=int(Flag.KEEP_NOTHING)))[0]
        for job in (parent, head, secret):
            await here.ended(job, "dead", error=ERROR)
        assert [row[1] for row in await here.fetch(LIVE)] == [3, 3], "a dead letter has not ended"

        assert (await here.control.discard(Which(state="dead"), "no use")).done == 3

        assert await here.value(DEAD) == 0
        assert [tuple(row)[:2] for row in await here.fetch(HISTORY)] == [
            (parent.id, "discarded"),
            (child, "cancelled"),
            (head.id, "discarded"),
        ]
        assert [tuple(row)[:2] for row in await here.fetch(LIVE)] == [(behind, 0)]
        assert here.woken == ["default"]


async def test_a_retried_head_goes_on_before_those_behind_it(database_url: str) -> None:
    async with desk(database_url) as here:
        head = (await here.running(key="k", flags=int(Flag.ORDERED)))[0]
        behind = (await here.enqueued(key="k", flags=int(Flag.ORDERED), state=3))[0]
        await here.ended(head, "dead", error=ERROR)
        await here.control.retry(Which(ids=(head.id,)))
        assert [tuple(row)[:2] for row in await here.fetch(LIVE)] == [(head.id, 0), (behind, 3)]

        (again,) = await here.claimed([head.id], fetch=2)
        here.completer.done(again)
        await holds(lambda: here.woken[1:])
        assert [tuple(row)[:2] for row in await here.fetch(LIVE)] == [(behind, 0)]


async def test_many_jobs_are_steered_in_portions(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "PORTION", 30)
    async with desk(database_url) as here:
        await here.enqueued(100)
        assert (await here.control.cancel(Which(queue="default"))).done == 100
        for job in await here.running(70):
            here.completer.put(Ended(job, "dead", error=ERROR))
        await here.written()
        assert (await here.control.retry(Which(state="dead"))).done == 70
        assert await here.value(DEAD) == 0


async def test_counts_are_exact_as_long_as_the_table_is_small(database_url: str) -> None:
    async with desk(database_url) as here:
        await here.enqueued(3, queue="mail")
        await here.enqueued(2, state=1)
        await here.enqueued(1, state=1, attempt=1)
        dead, done, *_ = await here.running(4, flags=int(Flag.KEEP_ALL))
        await here.ended(dead, "dead", error=ERROR)
        here.completer.done(done)
        await here.written()

        found = await here.wiring.pools.control.run(counts())
        assert {(one.queue, one.state): one.count for one in found} == {
            ("mail", "available"): 3,
            ("default", "scheduled"): 2,
            ("default", "retryable"): 1,
            ("default", "running"): 2,
            ("default", "dead"): 1,
            ("default", "completed"): 1,
        }
        assert not any(one.is_estimate for one in found)


async def test_a_million_jobs_are_counted_by_a_sample_of_them(database_url: str) -> None:
    async with desk(database_url) as here:
        for index in ("ready", "due"):  # to fill it faster
            await here.fetch(f"DROP INDEX strandline.jobs_{index}_idx")
        await here.fetch(
            """INSERT INTO strandline.jobs (id, kind, queue, state)
               SELECT i, 'k', CASE WHEN i % 10 = 0 THEN 'mail' ELSE 'default' END,
                      CASE WHEN i % 4 = 0 THEN 1 ELSE 0 END
                 FROM generate_series(1, 1000000) i"""
        )
        run = here.wiring.pools.control.run
        found = await run(counts())
        (page,) = await run(listed(Which(state="available"), after=500_000, limit=1))

        got = {(one.queue, one.state): one.count for one in found}
        assert all(one.is_estimate for one in found)
        assert got[("default", JobState.AVAILABLE)] == pytest.approx(700_000, rel=0.15)
        assert got[("mail", JobState.SCHEDULED)] == pytest.approx(50_000, rel=0.3)
        assert sum(got.values()) == pytest.approx(1_000_000, rel=0.1)
        assert page.id == 500_001


async def test_an_operator_who_cancels_what_is_just_completed_is_not_told_of_a_deadlock(
    database_url: str,
) -> None:
    async with desk(database_url, start=False) as here, tables(database_url) as other:
        first, second, third = await here.running(3)
        await here.fetch("UPDATE strandline.jobs SET claim = claim + 1 WHERE id = $1", first.id)
        done = [second, third, first._replace(claim=first.claim + 1)]
        turn = other.connection.transaction()
        await turn.start()
        await other.rows("SELECT FROM strandline.jobs WHERE id = $1 FOR UPDATE", third.id)
        for one in done:
            here.completer.done(one)
        here.completer.start()

        async def waiting(count: int) -> bool:
            found = await here.value(
                """SELECT count(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND wait_event_type = 'Lock'"""
            )
            return bool(found >= count)

        await holds(lambda: waiting(1))  # it has the second row, and waits for the third
        await asyncio.sleep(0.9)
        cancelling = asyncio.create_task(
            here.control.cancel(Which(ids=(first.id, second.id)), "an operator")
        )
        await holds(lambda: waiting(2))
        await turn.rollback()

        await cancelling
        await here.written()
