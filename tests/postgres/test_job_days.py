"""The history by days: made ahead, dropped when old, and never in anybody's way for long."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, date, datetime, timedelta

import pytest
from duties import Tables, tables
from tally import holds

from strandline.errors import Unavailable
from strandline.jobs import days
from strandline.jobs.days import Day
from strandline.jobs.looking import find
from strandline.jobs.right import Right

ALONE = Right()
PARTITIONS = """SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                 WHERE i.inhparent = 'strandline.job_history'::regclass ORDER BY 1"""


async def history(t: Tables, when: str, job: int = 1) -> None:
    await t.rows(
        f"""INSERT INTO strandline.job_history
                   (id, finished_at, outcome, created_at, priority, attempt, queue, kind, args)
            VALUES ({job}, {when}, 'completed', now(), 5, 1, 'default', 'test', '{{}}')"""
    )


async def make_all(t: Tables, keep: int = 7) -> list[Day]:
    found: list[Day] = await t.run(days.days(keep=keep))
    for day in found:
        async with t.connection.transaction():
            if not day.is_there:
                await t.run(days.make(ALONE, day))
            elif day.is_old:
                await t.run(days.drop(ALONE, day))
    return found


def today() -> date:
    return datetime.now(UTC).date()


async def test_today_and_three_days_ahead_are_made_once(database_url: str) -> None:
    async with tables(database_url) as t:
        before = today()
        found = await make_all(t)
        if today() != before:
            pytest.skip("midnight")

        names = [f"job_history_{before + timedelta(days=n):%Y%m%d}" for n in range(4)]
        assert [day.name for day in found] == names
        rows = await t.rows(PARTITIONS)
        assert [row["relname"] for row in rows] == [*names, "job_history_default"]
        assert all(day.is_there for day in await t.run(days.days(keep=7)))


async def test_history_goes_to_its_day_and_what_came_before_it_was_made_moves_there(
    database_url: str,
) -> None:
    async with tables(database_url) as t:
        await history(t, "now()", 1)
        await history(t, "now() - interval '3 days'", 2)
        await make_all(t)
        await history(t, "now()", 3)

        rows = await t.rows(
            "SELECT id, tableoid::regclass::text AS place FROM strandline.job_history ORDER BY id"
        )

        assert [row["place"].rpartition("_")[2] == "default" for row in rows] == [
            False,
            True,
            False,
        ]
        plan = str(await t.rows("EXPLAIN SELECT * FROM strandline.job_history WHERE id = 1"))
        assert f"job_history_{today():%Y%m%d}_id_idx" in plan


async def test_a_day_with_too_many_rows_in_the_default_partition_stays_there(
    database_url: str,
) -> None:
    async with tables(database_url) as t:
        for job in range(3):
            await history(t, "now()", job)
        day = (await t.run(days.days(keep=7)))[0]

        async with t.connection.transaction():
            assert await t.run(days.make(ALONE, day, most=2)) is False

        assert len(await t.rows(PARTITIONS)) == 1
        assert await t.one("SELECT count(*) FROM ONLY strandline.job_history_default") == 3


async def test_a_day_is_dropped_when_its_last_row_is_old_enough(database_url: str) -> None:
    async with tables(database_url) as t:
        ago = {n: today() - timedelta(days=n) for n in (6, 7, 8, 30)}
        for n, old in ago.items():
            async with t.connection.transaction():
                await t.run(days.make(ALONE, Day(f"job_history_{old:%Y%m%d}", old, False, False)))
            await history(t, f"'{old} 23:59:59+00'", n)

        await make_all(t, keep=7)

        assert [
            row["id"] for row in await t.rows("SELECT id FROM strandline.job_history ORDER BY id")
        ] == [6, 7]
        names = {row["relname"] for row in await t.rows(PARTITIONS)}
        assert {n for n, old in ago.items() if f"job_history_{old:%Y%m%d}" in names} == {6, 7}


async def test_whoever_reads_the_history_is_not_waited_for(database_url: str) -> None:
    async with tables(database_url) as t, tables(database_url) as reader:
        found = await t.run(days.days(keep=7))
        async with reader.connection.transaction():
            await reader.rows("SELECT * FROM strandline.job_history")
            begun = time.monotonic()
            with pytest.raises(Unavailable):
                async with t.connection.transaction():
                    await t.run(days.make(ALONE, found[0]))

            assert time.monotonic() - begun < 5

        await make_all(t)
        assert len(await t.rows(PARTITIONS)) == 5


async def test_who_looks_while_a_day_is_made_sees_what_moves_there(database_url: str) -> None:
    waiting = "SELECT 1 FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    async with tables(database_url) as t, tables(database_url) as reader:
        await history(t, "now()")
        day = next(one for one in await t.run(days.days(keep=7)) if one.day == today())
        async with t.connection.transaction():
            await t.connection.execute(
                "LOCK TABLE ONLY strandline.job_history IN ACCESS EXCLUSIVE MODE"
            )
            looking = asyncio.create_task(reader.run(find(1)))
            await holds(lambda: t.rows(waiting))
            await t.run(days.make(ALONE, day))

        found = await looking
        assert found is not None
        assert found.state == "completed"
