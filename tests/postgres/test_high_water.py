"""The high-water mark moves as far as is proved, and not a number further."""

from __future__ import annotations

import json
from typing import Any

import pytest

from strandline.events import high_water
from strandline.events.gaps import highest_position, list_gaps, read_mark


async def more(connection: Any, stream: str = "more", events: int = 1) -> int:
    """Append in the connection's transaction."""
    body = json.dumps([{"type": "t", "data": {}}] * events)
    call = "SELECT position FROM strandline.append($1, $2)"
    return int(await connection.fetchval(call, stream, body))


async def test_an_empty_log_has_its_mark_at_zero(open_lab: Any, database_url: str) -> None:
    async with open_lab(database_url) as lab:
        assert await lab.detector().tick() == 0
        assert (await lab.control.run(read_mark())).position == 0
        assert await lab.control.run(highest_position()) == 0
        assert lab.moves == []


async def test_the_mark_follows_contiguous_events_at_once_and_reads_no_locks(
    open_lab: Any, database_url: str
) -> None:
    async with open_lab(database_url) as lab:
        detector = lab.detector()
        await lab.committed(3)

        assert await detector.tick() == 3
        assert await detector.tick() == 3

        await lab.committed(2)
        assert await detector.tick() == 5
        assert await lab.published() == 5
        assert lab.moves == [3, 5]
        assert detector.statistics().probes == 0


async def test_a_slow_commit_holds_the_mark_and_its_event_is_not_lost(
    open_lab: Any, database_url: str
) -> None:
    async with open_lab(database_url) as lab:
        detector = lab.detector()
        await lab.committed()
        slow, position = await lab.writing()
        await lab.committed()

        assert position == 2
        assert [await detector.tick() for _ in range(5)] == [1] * 5
        assert detector.statistics().pending == 1

        await slow.execute("COMMIT")
        assert await detector.tick() == 3
        assert await lab.gaps() == []


async def test_a_gap_at_the_very_start_is_settled_in_one_look(
    open_lab: Any, database_url: str
) -> None:
    async with open_lab(database_url) as lab:
        await lab.rolled_back()
        await lab.committed()

        assert await lab.detector().tick() == 2
        assert await lab.gaps() == [(1, 1, "rolled_back")]


async def test_several_gaps_are_settled_in_one_look_each_with_its_proof(
    open_lab: Any, database_url: str
) -> None:
    async with open_lab(database_url) as lab:
        await lab.committed()
        await lab.rolled_back()
        await lab.rolled_back(3)
        await lab.committed()
        await lab.rolled_back(2)
        await lab.committed()

        assert await lab.detector().tick() == 9

        gaps = await lab.control.run(list_gaps())
        assert await lab.control.run(list_gaps(forced=True)) == []
        assert [(gap.first, gap.last, gap.numbers) for gap in gaps] == [(2, 5, 4), (7, 8, 2)]
        assert all(gap.kind == "rolled_back" and not gap.watched for gap in gaps)
        assert gaps[0].facts["highest"] == 9
        assert gaps[0].facts["holders"] == 0
        assert [gap.first for gap in await lab.control.run(list_gaps(limit=1, after=2))] == [7]


async def test_burnt_numbers_at_the_head_wait_for_the_next_event(
    open_lab: Any, database_url: str
) -> None:
    async with open_lab(database_url) as lab:
        detector = lab.detector()
        await lab.committed()
        await lab.rolled_back(2)
        assert await detector.tick() == 1

        await lab.committed()
        assert await detector.tick() == 4


async def test_a_gap_of_a_million_numbers_is_crossed_in_one_look(
    open_lab: Any, database_url: str
) -> None:
    async with open_lab(database_url) as lab:
        await lab.committed()
        owner, _ = await lab.writing()
        await owner.execute(
            "SELECT count(nextval(pg_get_serial_sequence('strandline.events', 'position')))"
            " FROM generate_series(1, 1000000)"
        )
        await owner.execute("ROLLBACK")
        await lab.committed()

        assert await lab.detector().tick() == 1_000_003
        assert await lab.gaps() == [(2, 1_000_002, "rolled_back")]


async def test_a_backlog_of_many_pages_is_crossed_with_all_its_gaps(
    open_lab: Any, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(high_water, "LOOK", 4)
    async with open_lab(database_url) as lab:
        for _ in range(5):
            await lab.committed(3)
            await lab.rolled_back()
        slow, _ = await lab.writing()
        head = await lab.committed(5)
        detector = lab.detector()

        assert await detector.tick() == 3
        assert detector.statistics().highest == head

        await slow.execute("COMMIT")
        assert await detector.tick() == head, "one proof covers the pages behind the first too"
        assert await lab.gaps() == [(n, n, "rolled_back") for n in (4, 8, 12, 16, 20)]


async def test_a_contiguous_backlog_of_many_pages_needs_no_probe(
    open_lab: Any, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(high_water, "LOOK", 4)
    async with open_lab(database_url) as lab:
        detector = lab.detector()
        await lab.committed(10)

        assert [await detector.tick() for _ in range(3)] == [4, 8, 10]
        assert detector.statistics().probes == 0


async def test_the_mark_moves_over_what_is_contiguous_while_a_later_gap_is_open(
    open_lab: Any, database_url: str
) -> None:
    async with open_lab(database_url) as lab:
        first, _ = await lab.writing()
        second, _ = await lab.writing()
        await lab.committed()
        detector = lab.detector()
        assert await detector.tick() == 0

        await first.execute("COMMIT")
        assert await detector.tick() == 1

        await second.execute("ROLLBACK")
        assert await detector.tick() == 3
        assert await lab.gaps() == [(2, 2, "rolled_back")]


async def test_each_generation_waits_only_for_its_own_holders(
    open_lab: Any, database_url: str
) -> None:
    """Writers that overlap without end must not hold the mark for ever."""
    async with open_lab(database_url) as lab:
        detector = lab.detector()
        writer, _ = await lab.writing()
        marks = []
        for _ in range(4):
            head = await lab.committed()
            await detector.tick()
            younger, _ = await lab.writing()
            await lab.committed()
            await detector.tick()
            await writer.execute("ROLLBACK")
            marks.append((await detector.tick(), head))
            writer = younger

        assert all(mark == head for mark, head in marks), marks


async def test_a_savepoint_that_took_the_lock_frees_its_numbers_when_it_is_rolled_back(
    open_lab: Any, database_url: str
) -> None:
    async with open_lab(database_url) as lab:
        top = await lab.connect()
        await top.execute("BEGIN; SAVEPOINT a")
        await more(top)
        await lab.committed()
        detector = lab.detector()
        assert await detector.tick() == 0

        await top.execute("ROLLBACK TO a")
        assert await detector.tick() == 2, "the top is still open, and holds nothing"

        assert await more(top) == 3
        await lab.committed()
        assert await detector.tick() == 2
        await top.execute("COMMIT")
        assert await detector.tick() == 4


async def test_a_savepoint_after_the_lock_waits_for_the_whole_transaction(
    open_lab: Any, database_url: str
) -> None:
    async with open_lab(database_url) as lab:
        top, _ = await lab.writing()
        await top.execute("SAVEPOINT a")
        await more(top)
        await top.execute("ROLLBACK TO a")
        await lab.committed()
        detector = lab.detector()
        assert await detector.tick() == 0

        await top.execute("COMMIT")
        assert await detector.tick() == 3
        assert await lab.gaps() == [(2, 2, "rolled_back")]


async def test_a_released_savepoint_keeps_the_lock_until_the_top_commits(
    open_lab: Any, database_url: str
) -> None:
    async with open_lab(database_url) as lab:
        top = await lab.connect()
        await top.execute("BEGIN; SAVEPOINT a")
        await more(top)
        await top.execute("RELEASE a")
        await lab.committed()
        detector = lab.detector()

        assert [await detector.tick() for _ in range(3)] == [0, 0, 0]
        await top.execute("COMMIT")
        assert await detector.tick() == 2


async def test_the_gap_of_a_killed_connection_is_settled(open_lab: Any, database_url: str) -> None:
    async with open_lab(database_url) as lab:
        victim, _ = await lab.writing()
        await lab.committed()
        detector = lab.detector()
        assert await detector.tick() == 0

        pid = victim.get_server_pid()
        killer = await lab.connect()
        await killer.execute("SELECT pg_terminate_backend($1)", pid)
        await lab.gone(pid)

        assert await detector.tick() == 2
        assert await lab.gaps() == [(1, 1, "rolled_back")]


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
async def test_a_prepared_transaction_holds_the_mark_until_it_is_ended(
    open_lab: Any, database_url: str, end: str
) -> None:
    """The generation is taken before PREPARE, which takes the pid away from the holder."""
    async with open_lab(database_url) as lab:
        owner, _ = await lab.writing()
        await lab.committed()
        detector = lab.detector()
        assert await detector.tick() == 0

        gid = f"hw {end} {database_url[-16:]}"
        await owner.execute(f"PREPARE TRANSACTION '{gid}'")
        await owner.close()
        assert [await detector.tick() for _ in range(3)] == [0, 0, 0]
        assert await lab.detector().tick() == 0, "nor does a fresh detector pass it"

        other = await lab.connect()
        await other.execute(f"{end} PREPARED '{gid}'")
        assert await detector.tick() == 2
        assert await lab.gaps() == ([] if end == "COMMIT" else [(1, 1, "rolled_back")])


async def test_transactions_that_do_not_append_do_not_hold_the_mark(
    open_lab: Any, database_url: str
) -> None:
    async with open_lab(database_url) as lab:
        writer, dump, advisory = [await lab.connect() for _ in range(3)]
        await writer.execute("CREATE TABLE other (n int); BEGIN; INSERT INTO other VALUES (1)")
        await dump.execute(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; LOCK TABLE strandline.streams,"
            " strandline.events IN ACCESS SHARE MODE; SELECT count(*) FROM strandline.events"
        )
        await advisory.execute("BEGIN; SELECT pg_advisory_xact_lock(1), pg_current_xact_id()")
        reader = await lab.connect()
        await reader.execute("BEGIN; SELECT count(*) FROM strandline.streams")
        await lab.rolled_back()
        await lab.committed()

        assert await lab.detector().tick() == 2


async def test_an_owner_younger_than_the_snapshots_horizon_is_waited_for(
    open_lab: Any, database_url: str
) -> None:
    """X begins and draws between two draws of Y: the case in which xmin >= xmax loses an event."""
    async with open_lab(database_url) as lab:
        y, first = await lab.writing("y")
        x, gap = await lab.writing("x")
        last = await more(y, "y again")
        await y.execute("COMMIT")
        detector = lab.detector()

        assert (first, gap, last) == (1, 2, 3)
        assert [await detector.tick() for _ in range(3)] == [1, 1, 1]
        await x.execute("COMMIT")
        assert await detector.tick() == 3
        assert await lab.gaps() == []


@pytest.mark.parametrize("mode", ["SHARE ROW EXCLUSIVE", "EXCLUSIVE", "ACCESS EXCLUSIVE"])
async def test_an_import_that_locks_streams_harder_is_waited_for(
    open_lab: Any, database_url: str, mode: str
) -> None:
    """It keeps every other writer out and need not write streams before its events."""
    async with open_lab(database_url) as lab:
        await lab.committed()
        chunk = await lab.connect()
        await chunk.execute(f"BEGIN; LOCK TABLE strandline.streams IN {mode} MODE")
        insert = (
            "INSERT INTO strandline.events (tenant, stream, version, id, type, data)"
            " VALUES ('t', 's', $1, gen_random_uuid(), 't', '{}')"
        )
        await chunk.execute(insert, 1)
        late = await lab.connect()
        await late.execute(insert, 2)
        detector = lab.detector()

        assert [await detector.tick() for _ in range(2)] == [1, 1]
        await chunk.execute("COMMIT")
        assert await detector.tick() == 3


async def test_an_import_chunk_in_flight_holds_what_lies_behind_it(
    open_lab: Any, database_url: str
) -> None:
    async with open_lab(database_url) as lab:
        chunk, _ = await lab.writing("import")
        rows = [("default", "imported", n, f"{n:032x}", "t", "{}") for n in range(1, 2001)]
        columns = ["tenant", "stream", "version", "id", "type", "data"]
        await chunk.copy_records_to_table(
            "events", schema_name="strandline", records=rows, columns=columns
        )
        head = await lab.committed()
        detector = lab.detector()

        assert head == 2002
        assert [await detector.tick() for _ in range(3)] == [0, 0, 0]
        await chunk.execute("COMMIT")
        assert await detector.tick() == head
        assert await lab.gaps() == []
