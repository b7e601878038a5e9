"""Trouble with how jobs ended: one that cannot be written keeps no other from it, and nothing is lost."""

from __future__ import annotations

import json

import pytest
from duties import tables
from ended import desk, holds

from strandline.jobs.row import Ended, Flag

LIVE = "SELECT count(*) FROM strandline.jobs"
ERROR = {"attempt": 1, "class": "ValueError", "message": "no", "stack": "..."}
SOON = 12.0  # seconds; what is right takes far less


@pytest.mark.parametrize("flags", [0, int(Flag.HAS_CHILDREN)])
async def test_a_job_whose_row_somebody_has_locked_keeps_no_other_from_being_completed(
    database_url: str, flags: int
) -> None:
    async with desk(database_url, statement_timeout=0.5) as here, tables(database_url) as other:
        (locked,) = await here.running(1, flags=flags)
        free = await here.running(3)
        async with other.connection.transaction():
            await other.rows("SELECT FROM strandline.jobs WHERE id = $1 FOR UPDATE", locked.id)
            here.completer.done(locked)
            await holds(lambda: here.completer.statistics().failures >= 1)
            for one in free:
                here.completer.done(one)

            await holds(lambda: here.completer.statistics().completed >= 3, SOON)

        await here.written()
        assert await here.value(LIVE) == 0


@pytest.mark.parametrize("stale_first", [True, False])
async def test_an_attempt_whose_claim_was_lost_does_not_hide_the_end_of_the_next_one(
    database_url: str, stale_first: bool
) -> None:
    """A crash of the server undoes a claim; the same node runs the job again beside itself."""
    async with desk(database_url, start=False) as here:
        for number in range(10):
            (stale,) = await here.running(1)
            (now,) = await here.claimed([stale.id], fetch=2 + number)
            ends = [Ended(one, "retry", error=ERROR, delay=60) for one in (stale, now)]
            for one in ends if stale_first else reversed(ends):
                here.completer.put(one)
        here.completer.start()
        await here.written()

        states = await here.fetch("SELECT state, claim FROM strandline.jobs ORDER BY id")
        assert [tuple(row) for row in states] == [(1, None)] * 10
        assert here.completer.statistics().settled == 10


async def test_a_result_survives_a_refusal_that_is_not_about_it(database_url: str) -> None:
    """A table is renamed for a moment, a right is taken and given back."""
    async with desk(database_url) as here:
        (job,) = await here.running(1)
        (failed,) = await here.running(1)
        await here.fetch("ALTER TABLE strandline.job_history RENAME TO away")
        here.completer.done(job, '"precious"')
        here.completer.put(Ended(failed, "dead", error=ERROR))
        await holds(lambda: here.completer.statistics().flushes >= 2)
        await here.fetch("ALTER TABLE strandline.away RENAME TO job_history")
        await here.written()

        assert await here.value("SELECT result FROM strandline.job_history") == '"precious"'
        errors = await here.value("SELECT errors::text FROM strandline.dead_jobs")
        assert json.loads(errors)[0]["class"] == "ValueError"


@pytest.mark.parametrize("code", ["XX001", "QQ001"])
async def test_a_row_that_can_never_be_written_keeps_no_others_from_it(
    database_url: str, code: str
) -> None:
    """A damaged page, a trigger of somebody's with a code of its own."""
    async with desk(database_url) as here:
        await here.fetch(
            f"""CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END $$;"""
        )
        await here.fetch(
            """CREATE TRIGGER no BEFORE DELETE ON strandline.jobs FOR EACH ROW
               WHEN (OLD.kind = 'bad') EXECUTE FUNCTION no()"""
        )
        (bad,) = await here.running(1, kind="bad")
        good = await here.running(5)
        for one in (bad, *good):
            here.completer.done(one)

        await holds(lambda: here.completer.statistics().completed == 5, SOON)


@pytest.mark.parametrize("flags", [0, int(Flag.HAS_CHILDREN)])
async def test_the_locked_job_is_told_from_the_others_that_were_sent_with_it(
    database_url: str, flags: int
) -> None:
    async with (
        desk(database_url, start=False, statement_timeout=0.5) as here,
        tables(database_url) as other,
    ):
        jobs = await here.running(100, flags=flags)
        async with other.connection.transaction():
            await other.rows("SELECT FROM strandline.jobs WHERE id = $1 FOR UPDATE", jobs[40].id)
            for one in jobs:
                here.completer.done(one)
            here.completer.start()
            await holds(lambda: here.completer.statistics().completed == 99)

            assert here.completer.statistics().flushes == 2, "one in vain, one without that job"
        await here.written()
        assert await here.value(LIVE) == 0


@pytest.mark.parametrize("flags", [0, int(Flag.HAS_CHILDREN)])
async def test_a_job_that_takes_too_long_to_be_written_keeps_no_others_from_it(
    database_url: str, flags: int
) -> None:
    async with desk(database_url, start=False, statement_timeout=0.5) as here:
        await here.fetch(
            """CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
               $$ BEGIN PERFORM pg_sleep(2); RETURN old; END $$"""
        )
        await here.fetch(
            """CREATE TRIGGER t BEFORE DELETE ON strandline.jobs FOR EACH ROW
               WHEN (OLD.kind = 'slow') EXECUTE FUNCTION slow()"""
        )
        good = await here.running(3, flags=flags)
        (slow,) = await here.running(1, kind="slow", flags=flags)
        for job in (*good[:2], slow, good[2]):
            here.completer.done(job)
        here.completer.start()
        await holds(lambda: here.completer.statistics().completed == 3)
        assert here.completer.statistics().aside == 1

        await here.fetch("DROP TRIGGER t ON strandline.jobs")
        assert await here.completer.stop(30.0)
        assert await here.value(LIVE) == 0
        assert here.completer.statistics().fenced == 0


async def test_a_result_that_is_too_large_is_told_of_in_the_history(database_url: str) -> None:
    async with desk(database_url) as here:
        (job,) = await here.running()
        here.completer.done(job, '"' + "x" * 1_000_001 + '"')
        await here.written()

        (row,) = await here.fetch(
            "SELECT outcome, result, reason, errors::text FROM strandline.job_history"
        )
        assert (row["outcome"], row["result"]) == ("completed", None)
        assert "not kept" in row["reason"]
        assert json.loads(row["errors"])[0]["class"] == "ResultNotStored"
