"""The high-water mark in trouble: rivals, restarts, crashes, standbys, idle looks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from strandline.errors import DatabaseUnavailable, SchemaOutOfDate
from strandline.events import high_water
from strandline.events.gaps import read_mark
from strandline.postgres.statements import SqlFile


async def on_database(lab: Any, setting: str) -> None:
    """Set a default for every later connection, and replace the pool's."""
    admin = await lab.connect()
    name = await admin.fetchval("SELECT current_database()")
    await admin.execute(f'ALTER DATABASE "{name}" SET {setting}')
    await lab.control.close()
    await lab.control.open()


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
async def test_rival_detectors_are_harmless_under_every_default_isolation(
    open_lab: Any, database_url: str, isolation: str
) -> None:
    async with open_lab(database_url) as lab:
        await on_database(lab, f"default_transaction_isolation = '{isolation}'")
        rivals = [lab.detector(), lab.detector()]
        for n in range(1, 16):
            slow, _ = await lab.writing()
            await lab.rolled_back()
            head = await lab.committed(2)
            marks = await asyncio.gather(*(one.tick() for one in rivals))
            assert max(marks) < head - 2, "the slow one is still under way"

            await slow.execute("COMMIT" if n % 2 else "ROLLBACK")
            await slow.close()
            for _ in range(3):  # a look may lose a race, not three in a row
                marks = await asyncio.gather(*(one.tick() for one in rivals))
            assert marks == [head, head]
        dead = {1 + 4 * n for n in range(1, 15, 2)} | {2 + 4 * n for n in range(15)}
        ledger = [n for first, last, _ in await lab.gaps() for n in range(first, last + 1)]
        assert ledger == sorted(dead), "every dead number once"


async def test_a_rival_that_slept_does_not_move_the_mark_back(
    open_lab: Any, database_url: str
) -> None:
    async with open_lab(database_url) as lab:
        sleeper, awake = lab.detector(), lab.detector()
        slow, _ = await lab.writing()
        await lab.committed()
        assert await sleeper.tick() == 0
        await slow.execute("COMMIT")
        await lab.committed(3)
        assert await awake.tick() == 5

        settle = SqlFile(high_water.__name__).blocks["settle"][2]
        own = await lab.connect()
        head = await own.fetchval("SELECT id FROM strandline.events WHERE position = 2")
        row = await own.fetchrow(
            settle.replace("{schema}", "strandline"), 2, head, 100, "rolled_back", "{}"
        )

        assert (row["position"], row["moved"]) == (5, False)
        assert await sleeper.tick() == 5
        assert await lab.published() == 5
        assert lab.told("high_water_went_back") == []


async def test_rivals_that_settle_at_the_same_moment_record_a_gap_once(
    open_lab: Any, database_url: str
) -> None:
    async with open_lab(database_url) as lab:
        await lab.rolled_back()
        await lab.committed()
        await lab.rolled_back()
        await lab.committed()
        settle = SqlFile(high_water.__name__).blocks["settle"][2].replace("{schema}", "strandline")
        first, second, watcher = [await lab.connect() for _ in range(3)]
        query = "SELECT id FROM strandline.events WHERE position = $1"
        heads = {n: await watcher.fetchval(query, n) for n in (2, 4)}

        await first.execute("BEGIN")
        await first.fetchrow(settle, 2, heads[2], 100, "rolled_back", "{}")
        behind = asyncio.create_task(second.fetchrow(settle, 4, heads[4], 100, "rolled_back", "{}"))
        blocked = "SELECT cardinality(pg_blocking_pids($1)) > 0"
        await lab.until(lambda: watcher.fetchval(blocked, second.get_server_pid()))
        await first.execute("COMMIT")

        row = await behind
        assert (row["position"], row["gaps"]) == (4, 1)
        assert await lab.gaps() == [(1, 1, "rolled_back"), (3, 3, "rolled_back")]


async def test_a_detector_that_was_restarted_goes_on_from_the_tables(
    open_lab: Any, database_url: str
) -> None:
    async with open_lab(database_url) as lab:
        await lab.committed(2)
        slow, _ = await lab.writing()
        await lab.committed()
        assert await lab.detector().tick() == 2

        successor = lab.detector()
        assert await successor.tick() == 2, "the evidence is taken anew"
        await slow.execute("ROLLBACK")
        assert await successor.tick() == 4
        assert await lab.gaps() == [(3, 3, "rolled_back")]


async def test_a_proof_about_a_head_that_vanished_is_not_used(
    open_lab: Any, database_url: str
) -> None:
    """As after a crash with asynchronous commits: numbers are drawn again by new transactions."""
    async with open_lab(database_url) as lab:
        detector = lab.detector()
        slow, _ = await lab.writing()
        await lab.committed()
        assert await detector.tick() == 0

        await slow.execute("ROLLBACK")
        admin = await lab.connect()
        await admin.execute(
            "DELETE FROM strandline.events;"
            " SELECT setval(pg_get_serial_sequence('strandline.events', 'position'), 1, false)"
        )
        again, number = await lab.writing("again")
        assert (number, await lab.committed()) == (1, 2)

        assert [await detector.tick() for _ in range(3)] == [0, 0, 0]
        await again.execute("COMMIT")
        assert await detector.tick() == 2
        assert await lab.gaps() == []


async def test_a_mark_that_was_restored_to_an_older_state_is_told(
    open_lab: Any, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_lab(database_url) as lab:
        detector = lab.detector()
        await lab.committed(5)
        assert await detector.tick() == 5

        admin = await lab.connect()
        await admin.execute(
            "DELETE FROM strandline.events WHERE position > 3;"
            " UPDATE strandline.high_water SET position = 3"
        )
        assert await detector.tick() == 3
        assert lab.told("high_water_went_back") == [{"before": 5, "position": 3}]
        assert "went back from 5 to 3" in caplog.text


async def test_what_lies_below_the_mark_is_on_disk_even_with_asynchronous_commits(
    open_lab: Any, database_url: str
) -> None:
    async with open_lab(database_url) as lab:
        await on_database(lab, "synchronous_commit = off")
        detector = lab.detector()
        watcher = await lab.connect()
        for settles in range(10):
            if settles % 2:
                await lab.rolled_back()
            await lab.committed()
            written = await watcher.fetchval("SELECT pg_current_wal_insert_lsn()")
            await detector.tick()
            assert await watcher.fetchval("SELECT pg_current_wal_flush_lsn() >= $1", written)


async def test_a_read_only_server_decides_nothing_and_says_why(
    open_lab: Any, database_url: str
) -> None:
    """A standby refuses the same statement with the same code."""
    async with open_lab(database_url) as lab:
        await lab.committed()
        await on_database(lab, "default_transaction_read_only = on")

        with pytest.raises(DatabaseUnavailable, match="primary only"):
            await lab.detector().tick()


async def test_a_lost_row_is_named(open_lab: Any, database_url: str) -> None:
    async with open_lab(database_url) as lab:
        admin = await lab.connect()
        await admin.execute("DELETE FROM strandline.high_water")

        with pytest.raises(SchemaOutOfDate, match="lost its only row"):
            await lab.detector().tick()
        with pytest.raises(SchemaOutOfDate, match="lost its only row"):
            await lab.control.run(read_mark())


async def test_the_loop_probes_fast_while_a_gap_is_open(open_lab: Any, database_url: str) -> None:
    async with open_lab(database_url, poll_interval=60.0, probe_interval=0.01) as lab:
        detector = lab.detector()
        slow, _ = await lab.writing()
        await lab.committed()
        detector.start()
        await lab.until(lambda: _true(detector.statistics().probes > 3))
        assert lab.moves == []

        await slow.execute("COMMIT")  # nobody wakes it
        await lab.until(lambda: _true(lab.moves == [2]))
        looks = detector.statistics().looks
        await lab.committed()
        detector.wake()
        await lab.until(lambda: _true(lab.moves == [2, 3]))
        assert detector.statistics().looks <= looks + 3, "without a gap it rests until woken"
        assert await detector.stop()


async def _true(value: bool) -> bool:
    return value


async def test_a_look_without_news_reads_a_handful_of_blocks(
    open_lab: Any, database_url: str
) -> None:
    async with open_lab(database_url) as lab:
        own = await lab.connect()
        await lab.committed(1000)
        text = SqlFile(high_water.__name__).blocks["advance"][2].replace("{schema}", "strandline")
        blocks = []
        for _ in range(2):
            await own.execute(
                "INSERT INTO strandline.events (tenant, stream, version, id, type, data)"
                " SELECT 't', gen_random_uuid(), n, gen_random_uuid(), 't', '{}'"
                " FROM generate_series(1, 20000) AS g(n)"
            )
            await own.execute("UPDATE strandline.high_water SET position = 0")
            await own.execute(
                "UPDATE strandline.high_water SET position = (SELECT max(position) FROM"
                " strandline.events)"
            )
            await own.execute("SET plan_cache_mode = force_generic_plan")
            await own.execute(f"PREPARE look AS {text}")
            plan = "\n".join(
                row[0] for row in await own.fetch("EXPLAIN (ANALYZE, BUFFERS) EXECUTE look (50000)")
            )
            await own.execute("DEALLOCATE look")
            assert "Seq Scan on events" not in plan
            top = next(line for line in plan.splitlines() if "Buffers:" in line)
            blocks.append(sum(int(word.split("=")[1]) for word in top.split() if "hit=" in word))
        assert max(blocks) < 60, blocks
