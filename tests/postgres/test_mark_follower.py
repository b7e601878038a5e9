"""The mark: moved by one node, followed by all others, and never without anybody who moves it."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Any

import pytest
from crew import Crew, Member, crew, manned
from tally import assert_applied_exactly_once, connected, fill, holds, tally_app

from strandline.daemon.mark import MarkFollower
from strandline.events.gaps import Mark
from strandline.settings import Settings

SHARDS = ("versions:v1:all", "positions:v1:all")
DETECTION = {"advance", "holders_of_streams", "settle"}


async def test_one_node_detects_and_the_others_follow(database_url: str) -> None:
    async with (
        crew(database_url) as nodes,
        manned(nodes, tally_app(database_url)) as a,
        manned(nodes, tally_app(database_url), "b") as b,
        tally_app(database_url) as outside,
    ):
        ran = {one.me.name: statements_of(one) for one in (a, b)}
        await nodes.give(a, "high-water", "versions:v1:all")
        await nodes.give(b, "positions:v1:all")

        last = await fill(outside, 100)
        await rolled_back(database_url)
        last = await fill(outside, 100)
        await outside.wait_for(last)

        assert (a.worker.statistics().detects, b.worker.statistics().detects) == (True, False)
        assert ran["a"] >= Counter(DETECTION)
        assert not DETECTION & set(ran["b"])
        assert "read_mark" in ran["b"]
        assert b.worker.statistics().mark == last
        assert b.worker.statistics().high_water.position == last
        await assert_applied_exactly_once(outside)


async def test_another_node_moves_the_mark_on_when_the_detectors_node_is_dead(
    database_url: str,
) -> None:
    async with (
        crew(database_url) as nodes,
        manned(nodes, tally_app(database_url)) as a,
        manned(nodes, tally_app(database_url), "b") as b,
        tally_app(database_url) as outside,
    ):
        await nodes.give(a, "high-water")
        await nodes.give(b, *SHARDS)
        await outside.wait_for(await fill(outside, 50))

        await killed(nodes, a)
        last = await fill(outside, 50)
        await asyncio.sleep(0.2)
        assert b.worker.statistics().mark < last, "nobody moves it"
        await nodes.give(b, "high-water")
        await outside.wait_for(last)

        assert b.worker.statistics().detects
        assert await nodes.epoch("high-water") == 2
        await assert_applied_exactly_once(outside)


async def test_the_mark_moves_on_while_its_detector_goes_from_node_to_node(
    database_url: str,
) -> None:
    async with (
        crew(database_url) as nodes,
        manned(nodes, tally_app(database_url)) as a,
        manned(nodes, tally_app(database_url), "b") as b,
        tally_app(database_url) as outside,
    ):
        await nodes.give(b, *SHARDS)
        stopping = asyncio.Event()

        async def write() -> int:
            last = 0
            while not stopping.is_set():
                last = await fill(outside, 20)
                await rolled_back(database_url)
            return last

        writing = asyncio.create_task(write())
        for number in range(8):
            target = (a, b)[number % 2]
            await nodes.give(target, "high-water")
            await holds(lambda t=target: t.worker.statistics().detects)
        stopping.set()
        await outside.wait_for(await writing)

        assert [one.worker.statistics().detects for one in (a, b)] == [False, True]
        await assert_applied_exactly_once(outside)


async def test_two_detectors_at_once_do_no_harm(database_url: str) -> None:
    """One that was frozen wakes up, and does not know yet that another has taken over."""
    async with (
        crew(database_url) as nodes,
        manned(nodes, tally_app(database_url)) as a,
        manned(nodes, tally_app(database_url), "b") as b,
        tally_app(database_url) as outside,
    ):
        await nodes.give(a, "high-water", SHARDS[0])
        await nodes.give(b, SHARDS[1])
        await nodes.runs(a, "high-water")
        await nodes.runs(b, SHARDS[1])
        b.worker._begin("high-water", b.id, None, None)

        for _ in range(10):
            last = await fill(outside, 30)
            await rolled_back(database_url)
        await outside.wait_for(last)

        await assert_applied_exactly_once(outside)
        for one in (a, b):
            assert one.told("high_water_went_back") == []


async def test_a_follower_that_hears_nothing_looks_by_itself(database_url: str) -> None:
    async with (
        crew(database_url) as nodes,
        manned(nodes, tally_app(database_url)) as a,
        manned(nodes, tally_app(database_url, poll_interval=0.05), "b") as b,
        tally_app(database_url) as outside,
    ):
        for end in b.worker._deaf:
            end()
        b.worker._deaf = []
        await nodes.give(a, "high-water")
        last = await fill(outside, 50)

        await holds(lambda: b.worker.statistics().mark == last)


async def test_a_node_tells_the_present_even_when_nobody_has_moved_the_mark_yet(
    database_url: str,
) -> None:
    app = tally_app(database_url)
    got: list[int] = []

    @app.subscription("fresh", start="present")
    async def take(batch: Any) -> None:
        got.extend(event.position for event in batch)

    async with crew(database_url) as nodes, tally_app(database_url) as outside:
        last = await fill(outside, 30)
        async with manned(nodes, app) as a:
            more = await fill(outside, 10)
            await nodes.give(a, "high-water", "fresh:all")
            await holds(lambda: got and got[-1] == more)

        assert got == list(range(last + 1, more + 1))


# ---- a follower by itself


class Row:
    """A control pool whose only row is the mark; it can be changed while it is being read."""

    def __init__(self, position: int) -> None:
        self.position = position
        self.while_reading: Any = None

    async def run(self, op: Any) -> Mark:
        op.close()
        if self.while_reading:
            self.while_reading()
        return Mark(self.position, None)


class Reader:
    """A follower that is looked at step by step."""

    def __init__(self, known: int, row: int) -> None:
        self.known = known
        self.row = Row(row)
        self.moves: list[int] = []
        self.follower = MarkFollower(
            self.row, Settings(), known=lambda: self.known, on_moved=self.moved
        )

    def moved(self, position: int) -> None:
        self.moves.append(position)
        self.known = position

    async def look(self) -> list[int]:
        await self.follower._look()
        return self.moves


async def test_a_follower_moves_on_and_back_with_the_row(caplog: Any) -> None:
    reader = Reader(known=5, row=9)
    assert await reader.look() == [9]
    assert await reader.look() == [9], "nothing new"

    reader.row.position = 3
    with caplog.at_level(logging.ERROR, "strandline.mark"):
        assert await reader.look() == [9, 3]

    assert "went back from 9 to 3" in caplog.text


async def test_a_mark_that_a_detector_moved_during_the_look_has_not_gone_back() -> None:
    reader = Reader(known=5, row=5)
    reader.row.while_reading = lambda: setattr(reader, "known", 12)

    assert await reader.look() == []
    assert reader.known == 12


async def test_a_mark_that_a_detector_has_moved_back_is_not_moved_back_twice() -> None:
    reader = Reader(known=50, row=20)
    reader.row.while_reading = lambda: setattr(reader, "known", 22)

    assert await reader.look() == []
    assert reader.known == 22


@pytest.mark.parametrize("detects", [True, False])
async def test_agents_read_their_checkpoints_again_when_the_mark_goes_back(
    database_url: str, detects: bool
) -> None:
    async with (
        crew(database_url) as nodes,
        manned(nodes, tally_app(database_url, poll_interval=0.05)) as a,
        tally_app(database_url) as outside,
    ):
        await nodes.give(a, "high-water", *SHARDS)
        last = await fill(outside, 50)
        await outside.wait_for(last)
        if not detects:
            await nodes.give(None, "high-water")
            await holds(lambda: not a.worker.statistics().detects)
        claims = Counter(one.name for one in a.notices)["shard_claimed"]
        async with nodes.operator.transaction():  # as after a restore
            await nodes.operator.execute("DELETE FROM strandline.events WHERE position > 30")
            await nodes.operator.execute("UPDATE strandline.high_water SET position = 30")
            for table in ("doc_versions_v1", "doc_positions_v1"):
                await nodes.operator.execute(f"DELETE FROM strandline.{table}")
            await nodes.operator.execute("UPDATE strandline.shards SET position = 0")

        await holds(lambda: a.worker.statistics().mark == 30)
        await holds(lambda: {one.position for one in a.worker.statistics().agents} == {30})

        await assert_applied_exactly_once(outside)
        assert Counter(one.name for one in a.notices)["shard_claimed"] == claims


# ---- parts


def statements_of(member: Member) -> Counter[str]:
    """The names of the statements that its daemon runs on its control pool, from now on."""
    pool = member.worker._wiring.pools.control
    found: Counter[str] = Counter()
    run = pool.run

    async def counted(op: Any) -> Any:
        return await run(_noting(op, found))

    pool.run = counted
    return found


def _noting(op: Any, found: Counter[str]) -> Any:
    """*op*, with the names of its statements noted."""
    try:
        call = next(op)
        while True:
            found[call.statement.name] += 1
            try:
                rows = yield call
            except BaseException as error:
                call = op.throw(error)
            else:
                call = op.send(rows)
    except StopIteration as stop:
        return stop.value


async def rolled_back(url: str) -> None:
    """Leave a gap."""
    async with connected(url) as writer:
        await writer.execute("BEGIN")
        await writer.execute(
            """SELECT strandline.append('nowhere', '[{"type": "ticked", "data": {"number": 1}}]')"""
        )
        await writer.execute("ROLLBACK")


async def killed(nodes: Crew, member: Member) -> None:
    """Its process ends without a word; its row says so."""
    await member.worker._detector._loop.stop(timeout=0.0)
    await member.reconciler._loop.stop(timeout=0.0)
    await nodes.state(member, "dead")
