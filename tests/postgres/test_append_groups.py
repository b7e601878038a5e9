"""Group commit: who goes with whom, and who fails with whom."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import asyncpg
import pytest
from stores import (
    Deposited,
    Opened,
    answers,
    bad,
    both_senders_busy,
    deposits,
    is_waiting,
    locked,
    opened,
    start,
    until,
)

from strandline.errors import (
    DuplicateEvent,
    InvalidEvent,
    NotOpen,
    OutcomeUnknown,
    PoolExhausted,
    StreamArchived,
    WrongVersion,
)
from strandline.events import group
from strandline.events.event import NO_STREAM, Appended

# ---- who goes with whom


async def test_a_hundred_appends_that_wait_go_in_a_few_calls(database_url: str) -> None:
    async with opened(database_url) as bench:
        async with both_senders_busy(bench):
            tasks = [start(bench, f"s{n}", deposits(n, n)) for n in range(100)]
        found = await answers(tasks)

        assert all(one.version == 2 for one in found)
        ((transactions,),) = await bench.rows(
            "SELECT count(DISTINCT transaction) FROM strandline.events WHERE stream LIKE 's%'"
        )
        assert transactions <= 3  # halves, so that two calls share the line, and the rest


async def test_a_group_has_limits(database_url: str) -> None:
    async with opened(database_url, group_appends=10) as bench:
        async with both_senders_busy(bench):
            tasks = [start(bench, f"s{n}", Deposited(n)) for n in range(35)]
        await answers(tasks)

        rows = await bench.rows(
            "SELECT count(*) FROM strandline.events WHERE stream LIKE 's%' GROUP BY transaction"
        )
        assert sum(row[0] for row in rows) == 35
        assert max(row[0] for row in rows) == 10


async def test_a_group_has_a_limit_in_bytes(database_url: str) -> None:
    async with opened(database_url, group_bytes=1024) as bench:
        async with both_senders_busy(bench):
            tasks = [start(bench, f"s{n}", Opened("x" * 500)) for n in range(9)]
        await answers(tasks)

        rows = await bench.rows(
            "SELECT count(*) FROM strandline.events WHERE stream LIKE 's%' GROUP BY transaction"
        )
        assert sum(row[0] for row in rows) == 9
        assert max(row[0] for row in rows) <= 3


async def test_appends_to_one_stream_keep_their_order(database_url: str) -> None:
    async with opened(database_url) as bench:
        tasks = []
        for number in range(200):
            tasks.append(start(bench, f"s{number % 3}", Deposited(number)))
            if number % 17 == 0:
                await asyncio.sleep(0.001)  # so that some go straight and some in groups
        found = await answers(tasks)

        for rest in range(3):
            expected = [(n // 3 + 1, float(n)) for n in range(200) if n % 3 == rest]
            assert await bench.stored(f"s{rest}") == expected
        assert [one.version for one in found] == [n // 3 + 1 for n in range(200)]


async def test_one_hot_stream_does_not_hold_up_the_others(database_url: str) -> None:
    async with opened(database_url) as bench:
        await bench.append("hot", Deposited(0))
        async with locked(bench, "hot"):
            hot = [start(bench, "hot", Deposited(n)) for n in range(1, 50)]
            await until(lambda: is_waiting(bench, 1))
            others = [start(bench, f"s{n}", Deposited(n)) for n in range(50)]

            assert all(one.version == 1 for one in await answers(others))
            assert not any(one.done() for one in hot)
        await answers(hot)

        assert [version for version, _ in await bench.stored("hot")] == list(range(1, 51))


async def test_a_line_of_appends_to_one_stream_costs_no_time_while_it_waits(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A free sender must not look again and again at a line that cannot move."""
    looks = []
    take = group.AppendGroup._take
    monkeypatch.setattr(group.AppendGroup, "_take", lambda self: looks.append(1) or take(self))
    async with opened(database_url) as bench:
        await bench.append("hot", Deposited(0))
        async with locked(bench, "hot"):
            hot = [start(bench, "hot", Deposited(n)) for n in range(1, 20)]
            await until(lambda: is_waiting(bench, 1))
            for _ in range(1000):
                await asyncio.sleep(0)
            assert len(looks) < 10
        await answers(hot)


# ---- who fails with whom


async def test_a_refused_append_fails_alone(database_url: str) -> None:
    async with opened(database_url) as bench:
        await bench.append("old", deposits(1, 2))
        await bench.append("closed", Deposited(1))
        await bench.store.archive("closed")
        async with both_senders_busy(bench):
            tasks = [
                start(bench, "s1", Deposited(1)),
                start(bench, "old", Deposited(1), expected=NO_STREAM),
                start(bench, "closed", Deposited(1)),
                start(bench, "s2", Deposited(1), expected=1),
                start(bench, "s3", Deposited(1), expected=NO_STREAM),
            ]
        found = await answers(tasks)

        assert [type(one) for one in found] == [
            Appended, WrongVersion, StreamArchived, WrongVersion, Appended,
        ]  # fmt: skip
        assert (found[1].actual, found[3].actual) == (2, 0)
        assert await bench.stored("old") == [(1, 1), (2, 2)]
        assert found[4].position == found[0].position + 1


async def test_bad_data_fails_alone(database_url: str) -> None:
    async with opened(database_url) as bench:
        async with both_senders_busy(bench):
            tasks = [
                start(bench, f"s{n}", bad() if n in (3, 7) else Deposited(n)) for n in range(10)
            ]
        found = await answers(tasks)

        assert [n for n, one in enumerate(found) if isinstance(one, InvalidEvent)] == [3, 7]
        assert sum(isinstance(one, Appended) for one in found) == 8
        assert await bench.rows("SELECT id FROM strandline.streams WHERE id IN ('s3', 's7')") == []


async def test_a_duplicate_id_fails_alone(database_url: str) -> None:
    taken = uuid4()
    async with opened(database_url) as bench:
        await bench.append("first", Deposited(1), ids=[taken])
        same = uuid4()
        async with both_senders_busy(bench):
            tasks = [
                start(bench, "s1", Deposited(1)),
                start(bench, "s2", Deposited(1), ids=[taken]),
                start(bench, "first", Deposited(1), ids=[taken]),
                start(bench, "s3", Deposited(1), ids=[same]),
                start(bench, "s4", Deposited(1), ids=[same]),
                start(bench, "s5", Deposited(1), ids=[uuid4()]),
            ]
        found = await answers(tasks)

        kinds = [type(one) for one in found]
        assert kinds[:3] == [Appended, DuplicateEvent, Appended]
        assert found[2].stored_before
        assert sorted(kinds[3:5], key=str) == sorted([Appended, DuplicateEvent], key=str)
        assert kinds[5] is Appended
        assert (await bench.counts())[1] == 4 + 4  # the two holds twice, first, s1, s3 or s4, s5


async def test_twins_with_the_same_ids_are_stored_once(database_url: str) -> None:
    ids = [uuid4(), uuid4()]
    async with opened(database_url) as bench, opened(database_url) as other:
        tasks = [
            start(which, "a", deposits(1, 2), ids=ids, expected=NO_STREAM)
            for which in (bench, other) * 10
        ]
        found = await answers(tasks)

        assert {one.version for one in found} == {2}
        assert sum(not one.stored_before for one in found) == 1
        assert await bench.stored("a") == [(1, 1), (2, 2)]


async def test_a_twin_under_way_in_another_process_is_waited_for(database_url: str) -> None:
    name = uuid4()
    async with opened(database_url) as bench:
        await bench.append("a", Deposited(0))
        connection = await asyncpg.connect(database_url)
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(
            "SELECT strandline.append('a', jsonb_build_array(jsonb_build_object("
            " 'type', 'deposited', 'data', '{\"amount\": 5}'::jsonb, 'id', $1::text)))",
            str(name),
        )
        task = start(bench, "a", Deposited(5), ids=[name])
        await until(lambda: is_waiting(bench, 1))
        await transaction.commit()
        await connection.close()

        done = (await answers([task]))[0]

        assert done.stored_before
        assert await bench.stored("a") == [(1, 0), (2, 5)]


# ---- cancellation and closing


async def test_a_cancelled_append_that_waits_is_not_sent_and_disturbs_nobody(
    database_url: str,
) -> None:
    async with opened(database_url) as bench:
        async with both_senders_busy(bench) as held:
            tasks = [start(bench, f"s{n % 4}", Deposited(n)) for n in range(12)]
            behind = start(bench, "hold-1", Deposited(2))
            after = start(bench, "hold-1", Deposited(3))
            await asyncio.sleep(0)
            for one in (tasks[0], tasks[5], tasks[10], behind):
                one.cancel()
            held[1].cancel()  # on its way: its own caller is told nothing, the rest goes on
            await asyncio.wait([held[1]], timeout=5)
            held.pop()
        found = await answers(tasks)

        assert [n for n, one in enumerate(found) if not isinstance(one, Appended)] == [0, 5, 10]
        assert [amount for _, amount in await bench.stored("s0")] == [4.0, 8.0]
        assert (await answers([after]))[0].version == 3
        assert await bench.stored("hold-1") == [(1, 0), (2, 1), (3, 3)]


async def test_close_waits_for_what_is_under_way_and_then_refuses(database_url: str) -> None:
    async with opened(database_url) as bench:
        tasks = [start(bench, f"s{n % 5}", Deposited(n)) for n in range(50)]
        await asyncio.sleep(0)
        await bench.store.close()

        assert all(one.done() for one in tasks)
        assert all(isinstance(one, Appended) for one in await answers(tasks))
        with pytest.raises(NotOpen):
            await bench.append("a", Deposited(1))
        assert (await bench.counts())[1] == 50


async def test_close_leaves_nobody_waiting(database_url: str) -> None:
    async with opened(database_url) as bench:
        await bench.append("hot", Deposited(0))
        await bench.append("warm", Deposited(0))
        async with locked(bench, "hot", "warm"):
            straight = start(bench, "warm", Deposited(1))
            await until(lambda: is_waiting(bench, 1))
            hot = [start(bench, "hot", Deposited(n)) for n in range(3)]
            await until(lambda: is_waiting(bench, 2))
            await bench.store._group.close(timeout=0.05)

            found = await answers(hot)
            assert isinstance(found[0], OutcomeUnknown)  # it was on its way
            assert [type(one) for one in found[1:]] == [NotOpen, NotOpen]
        await answers([straight])


async def test_a_queue_that_outgrows_the_server_is_refused(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "MOST_WAITING_BYTES", 5000)
    async with opened(database_url) as bench:
        async with both_senders_busy(bench):
            tasks = [start(bench, f"s{n}", Opened("x" * 100)) for n in range(100)]
            await until(lambda: any(one.done() for one in tasks))
        found = await answers(tasks)

        refused = sum(isinstance(one, PoolExhausted) for one in found)
        assert 0 < refused < 100
        assert sum(isinstance(one, Appended) for one in found) == 100 - refused
        assert bench.store._group._waiting_bytes == 0
        assert (await bench.append("a", Opened("x"))).version == 1


async def test_positions_told_of_are_those_stored(database_url: str) -> None:
    async with opened(database_url) as bench:
        await answers([start(bench, f"s{n}", Deposited(n)) for n in range(30)])

        ((last,),) = await bench.rows("SELECT max(position) FROM strandline.events")
        assert max(bench.told) == last
