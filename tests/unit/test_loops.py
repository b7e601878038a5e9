"""The background loop: rhythm, wake-up, isolation, time limit, ending."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from strandline.errors import CheckpointMoved, OwnershipLost
from strandline.loops import Loop, Rhythm
from strandline.testing.clock import ManualClock

SLOW = Rhythm(interval=3600.0)


class Steps:
    """A step that counts its calls and does what it is told."""

    def __init__(self, *does: Any) -> None:
        self.calls = 0
        self._does = list(does)
        self._called = asyncio.Condition()

    async def __call__(self) -> bool | None:
        self.calls += 1
        async with self._called:
            self._called.notify_all()
        do = self._does.pop(0) if self._does else None
        if isinstance(do, Exception):
            raise do
        return await do() if callable(do) else do

    async def times(self, count: int) -> None:
        async with asyncio.timeout(5), self._called:
            await self._called.wait_for(lambda: self.calls >= count)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.001)


async def test_the_first_step_is_due_at_once_and_the_next_after_the_interval() -> None:
    steps = Steps()
    loop = Loop("x", steps, Rhythm(interval=0.01))

    loop.start()
    loop.start()
    await steps.times(3)

    assert await loop.stop()
    assert loop.statistics().steps >= 2


async def test_a_wake_up_makes_the_next_step_due_now_and_many_are_one() -> None:
    steps = Steps()
    loop = Loop("x", steps, SLOW)
    loop.start()
    await steps.times(1)
    await until(lambda: loop.statistics().steps == 1)

    for _ in range(10):
        loop.wake()
    await steps.times(2)
    await until(lambda: loop.statistics().steps == 2)

    assert steps.calls == 2
    await loop.stop()


async def test_a_wake_up_during_a_step_is_not_lost() -> None:
    async def wakes() -> None:
        loop.wake()

    steps = Steps(wakes)
    loop = Loop("x", steps, SLOW)

    loop.start()
    await steps.times(2)

    await loop.stop()


async def test_a_step_that_answers_true_is_called_again_at_once() -> None:
    steps = Steps(True, True, False)
    loop = Loop("x", steps, SLOW)

    loop.start()
    await steps.times(3)

    await loop.stop()
    assert steps.calls == 3


async def test_between_two_steps_lies_the_gap_however_often_it_is_woken() -> None:
    steps = Steps()
    loop = Loop("x", steps, Rhythm(interval=3600.0, gap=0.05))
    begun = asyncio.get_running_loop().time()
    loop.start()

    for count in range(1, 4):
        await steps.times(count)
        loop.wake()
    await steps.times(4)

    assert asyncio.get_running_loop().time() - begun >= 0.15
    await loop.stop()


async def test_a_step_that_raises_is_counted_and_the_loop_goes_on() -> None:
    steps = Steps(ValueError("once"))
    loop = Loop("x", steps, SLOW)

    loop.start()
    await steps.times(1)
    await until(lambda: loop.statistics().failures == 1)

    failing = loop.statistics()
    assert (failing.running, failing.consecutive_failures) == (True, 1)
    assert failing.last_error == "ValueError('once')"
    loop.wake()
    await until(lambda: loop.statistics().steps == 1)
    assert loop.statistics().consecutive_failures == 0
    await loop.stop()


async def test_a_step_that_takes_too_long_is_cancelled_and_counted() -> None:
    async def hangs() -> None:
        await asyncio.Event().wait()

    steps = Steps(hangs)
    loop = Loop("x", steps, Rhythm(interval=3600.0, limit=0.02))

    loop.start()
    await until(lambda: loop.statistics().failures == 1)

    assert "TimeoutError" in loop.statistics().last_error
    assert loop.running
    await loop.stop()


async def test_only_an_error_it_ends_on_ends_the_loop() -> None:
    lost = CheckpointMoved("orders:v1:all", epoch=1, position=2)
    loop = Loop("x", Steps(lost), SLOW, ends_on=(OwnershipLost,))

    loop.start()
    await loop.join()

    assert loop.failure is lost
    assert not loop.running
    assert await loop.stop()


async def test_stopping_lets_the_step_under_way_finish() -> None:
    entered, may_end = asyncio.Event(), asyncio.Event()
    finished = False

    async def works() -> None:
        nonlocal finished
        entered.set()
        await may_end.wait()
        finished = True

    loop = Loop("x", Steps(works), SLOW)
    loop.start()
    await asyncio.wait_for(entered.wait(), 5)

    stopping = asyncio.create_task(loop.stop())
    await asyncio.sleep(0)
    may_end.set()

    assert await stopping is True
    assert finished


async def test_a_step_that_does_not_end_in_time_is_cut_off() -> None:
    entered = asyncio.Event()

    async def hangs() -> None:
        entered.set()
        await asyncio.Event().wait()

    loop = Loop("x", Steps(hangs), SLOW)
    loop.start()
    await asyncio.wait_for(entered.wait(), 5)

    assert await loop.stop(timeout=0.02) is False
    assert not loop.running


async def test_a_loop_that_never_started_stops_at_once() -> None:
    assert await Loop("x", Steps(), SLOW).stop() is True


async def test_statistics_tell_the_age_of_the_last_good_step() -> None:
    clock = ManualClock()
    loop = Loop("x", Steps(), SLOW, clock=clock)
    loop.start()
    await until(lambda: loop.statistics().steps == 1)

    clock.advance(42)

    assert loop.statistics().seconds_since_success == pytest.approx(42)
    await loop.stop()


async def test_a_manual_clock_wakes_its_sleepers_when_their_time_has_come() -> None:
    clock = ManualClock()
    woken: list[float] = []

    async def sleeper(seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(seconds)

    tasks = [asyncio.create_task(sleeper(one)) for one in (0.5, 0.25, 2.0, 0.0)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (woken, clock.sleeping) == ([0.0], (0.25, 0.5, 2.0))

    clock.advance(0.25)
    clock.advance(0.25)
    await asyncio.wait(tasks[:2])
    assert sorted(woken) == [0.0, 0.25, 0.5]

    tasks[2].cancel()
    await asyncio.wait(tasks)
    assert clock.sleeping == ()
