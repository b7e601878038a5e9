"""The small parts of a pulse: the board, the vigil, the watch of the loop, the pipes."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tally import holds

from strandline.cluster import vigil as vigil_module
from strandline.cluster.board import BYTES, Board
from strandline.cluster.lease import Leadership, boot_time
from strandline.cluster.loop_watch import LoopWatch
from strandline.cluster.side_process import LONGEST_BACKLOG, Pipes
from strandline.cluster.vigil import Vigil
from strandline.cluster.vitals import News


def test_a_board_is_seen_by_who_has_its_descriptor() -> None:
    board, fd = Board.shared()
    other = Board(fd)

    board.stamp, board.progress, board.state = 12.5, 7, "draining"
    other.lead(Leadership(3, 99.0))

    assert (other.stamp, other.progress, other.state) == (12.5, 7, "draining")
    assert board.leadership(98.9) == Leadership(3, 99.0)
    assert os.fstat(fd).st_size == BYTES
    os.close(fd)


def test_leadership_on_a_board_ends_by_itself() -> None:
    board = Board()
    assert board.leadership(0.0) is None
    board.lead(Leadership(3, 99.0))

    assert board.leadership(98.999)
    assert board.leadership(99.0) is None
    board.lead(None)
    assert board.leadership(1.0) is None


class Memory:
    """The numbers of a board, with something that happens after each write and before each read."""

    def __init__(self, inner: memoryview, happens: Callable[[], None]) -> None:
        self._inner, self._happens = inner, happens

    def __getitem__(self, slot: int) -> Any:
        self._happens()
        return self._inner[slot]

    def __setitem__(self, slot: int, value: Any) -> None:
        self._inner[slot] = value
        self._happens()


def test_who_looks_between_two_writes_never_sees_an_epoch_with_the_end_of_another() -> None:
    board = Board()
    writer = Board.__new__(Board)
    ends = {1: 100.0, 2: 50.0, 3: 200.0}

    def look() -> None:
        found = board.leadership(0.0)
        assert found is None or found.trusted_until == ends[found.epoch]

    writer.numbers, writer.floats = Memory(board.numbers, look), Memory(board.floats, look)
    for epoch, end in ends.items():
        writer.lead(Leadership(epoch, end))
        assert board.leadership(0.0) == Leadership(epoch, end)


def test_who_is_overtaken_by_a_write_while_looking_looks_again() -> None:
    board = Board()
    board.lead(Leadership(1, 100.0))
    changes = [lambda: None, lambda: board.lead(Leadership(2, 50.0))]
    reader = Board.__new__(Board)
    reader.floats = board.floats
    reader.numbers = Memory(board.numbers, lambda: changes.pop()() if changes else None)

    assert reader.leadership(0.0) == Leadership(2, 50.0)


def test_who_is_overtaken_again_and_again_trusts_nothing() -> None:
    board = Board()
    board.lead(Leadership(1, 100.0))
    reader = Board.__new__(Board)
    reader.numbers = board.numbers
    moments = iter(range(1000))
    reader.floats = Memory(board.floats, lambda: board.lead(Leadership(1, 100.0 + next(moments))))

    assert reader.leadership(0.0) is None


def test_attempts_are_counted_by_their_outcome() -> None:
    board = Board()
    for outcome in ("won", "lost", "lost", "timed_out", "failed"):
        board.count(outcome, 0.5)

    assert (board.attempts, board.wins, board.losses, board.timeouts) == (5, 1, 2, 1)


async def test_a_vigil_tells_when_the_stamp_grows_old_and_when_it_is_fresh_again() -> None:
    board = Board()
    board.stamp = boot_time()
    crossed = asyncio.Event()
    vigil = Vigil(board, (0.2, 0.4), crossed.set)
    vigil.start()
    ages = []
    for _ in range(2):
        crossed.clear()
        await asyncio.wait_for(crossed.wait(), 5)
        ages.append(vigil.age)
    assert 0.2 < ages[0] < 0.4 < ages[1]

    crossed.clear()
    board.stamp = boot_time()
    await asyncio.wait_for(crossed.wait(), 5)

    assert vigil.age < 0.2
    vigil.stop()


async def test_time_in_which_nobody_could_look_counts_for_nothing(monkeypatch) -> None:
    """The machine was suspended: both sides come back at once, and nobody was blocked."""
    board = Board()
    board.stamp = boot_time()
    vigil = Vigil(board, (0.4,), lambda: None)
    vigil.start()
    monkeypatch.setattr(vigil_module, "boot_time", lambda: boot_time() + 3600.0)

    vigil._look()

    assert vigil.age < 0.4
    vigil.stop()


async def test_a_pulse_that_is_started_anew_knows_how_old_the_stamp_is() -> None:
    board = Board()
    board.stamp = boot_time() - 20.0

    assert Vigil(board, (10.0,), lambda: None).age > 19.0


async def test_an_app_that_has_never_stamped_is_not_late() -> None:
    vigil = Vigil(Board(), (0.1,), lambda: None)
    vigil.start()
    vigil._look()

    assert vigil.age <= 0.1
    vigil.stop()


async def test_a_blocked_loop_is_told_once_with_its_stack_and_once_when_it_runs_again() -> None:
    told: list[News] = []
    board = Board()
    watch = LoopWatch(board, told.append)
    watch.start()
    await asyncio.sleep(0.05)

    time.sleep(1.8)
    await holds(lambda: len(told) >= 2)

    assert [one.kind for one in told] == ["blocked", "unblocked"]
    assert "time.sleep(1.8)" in told[0].facts["stack"]
    assert told[0].facts["every_thread"] is False
    assert 1.5 < told[1].facts["seconds"] < 4.0
    assert board.lag > 1.5, "the next tick carries the worst lateness"
    watch.stop()


async def test_the_lag_of_a_loop_starts_over_with_each_tick() -> None:
    board = Board()
    watch = LoopWatch(board, lambda _: None)
    watch.start()
    time.sleep(0.4)
    await holds(lambda: board.lag > 0.2)
    await asyncio.sleep(0.25)
    assert board.lag > 0.2

    board.ticks += 1

    await holds(lambda: board.lag < 0.2)
    watch.stop()


async def test_a_watch_ends_with_its_loop_and_when_it_is_stopped() -> None:
    watch = LoopWatch(Board(), lambda _: None)
    watch.start()
    watch.stop()
    await holds(lambda: not watch._thread.is_alive())


async def test_an_app_that_reads_nothing_holds_nobody_up_and_misses_nothing_that_lasts() -> None:
    """What a frozen app has not read is bounded: passing news are dropped, others kept."""
    source, _ = os.pipe()
    sink_read, sink = os.pipe()
    os.set_blocking(sink_read, False)
    pipes = Pipes(source, sink)
    began = time.monotonic()
    for number in range(20_000):
        pipes.write({"news": "ticked", "facts": {"seconds": number}})
    pipes.write({"news": "not_leading", "facts": {"epoch": 1}})
    assert time.monotonic() - began < 5.0
    assert len(pipes._unwritten) < LONGEST_BACKLOG + 1000

    read = b""
    async with asyncio.timeout(10):
        while b"not_leading" not in read:
            with suppress(BlockingIOError):
                read += os.read(sink_read, 65_536)
            await asyncio.sleep(0)
    lines = [json.loads(line) for line in read.splitlines()]
    assert 100 < len(lines) < 20_000
    assert lines[-1]["news"] == "not_leading"


async def test_lines_that_come_in_pieces_are_put_together() -> None:
    source, commands = os.pipe()
    _, sink = os.pipe()
    pipes = Pipes(source, sink)
    for piece in (b'{"do": "re', b'ady"}\n{"do"', b': "stop"}\n'):
        os.write(commands, piece)
        await asyncio.sleep(0.01)

    assert [(await pipes.commands.get())["do"] for _ in range(2)] == ["ready", "stop"]
    os.close(commands)
    await asyncio.wait_for(pipes.ended.wait(), 5)
