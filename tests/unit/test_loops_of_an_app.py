"""The loops of one app are known by name and kind, their failures are told, a dead one shows."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from strandline.loops import Loop, Loops, Rhythm
from strandline.telemetry.metrics import Metrics
from strandline.telemetry.signals import Notice, Signals

OFTEN = Rhythm(interval=0.005)


async def nothing() -> None:
    """A step that is well."""


async def broken() -> None:
    raise ValueError("no good")


async def until(holds: Any) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.005)


async def test_a_loop_belongs_to_the_app_that_began_it() -> None:
    one, other = Loops(Signals()), Loops(Signals())
    mine, theirs, nobodys = (Loop(name, nothing, OFTEN) for name in ("mine", "theirs", "nobody's"))

    with one.begun_here():
        mine.start()
        with other.begun_here():
            theirs.start()
    nobodys.start()

    assert [each.name for each in one.statistics()] == ["mine"]
    assert [each.name for each in other.statistics()] == ["theirs"]
    for loop in (mine, theirs, nobodys):
        await loop.stop()
    assert (one.statistics(), other.statistics()) == ((), ())


async def test_a_loop_that_another_task_of_the_app_begins_belongs_to_it_too() -> None:
    loops = Loops(Signals())
    inner = Loop("agent a:v1:all", nothing, OFTEN, kind="agent")

    async def begin() -> None:
        inner.start()

    outer = Loop("reconciler", begin, OFTEN)
    with loops.begun_here():
        outer.start()
    await until(lambda: inner.running)

    assert {(one.name, one.kind) for one in loops.statistics()} == {
        ("reconciler", "reconciler"),
        ("agent a:v1:all", "agent"),
    }
    await outer.stop()
    await inner.stop()


async def test_a_loop_that_the_first_call_starts_belongs_to_the_app_that_made_it() -> None:
    loops = Loops(Signals())
    with loops.begun_here():
        loop = Loop("job results", nothing, OFTEN)
    assert loops.statistics() == ()

    loop.start()

    assert [one.name for one in loops.statistics()] == ["job results"]
    await loop.stop()


async def test_a_failing_step_is_told_and_shown_until_one_goes_well() -> None:
    signals = Signals()
    loops = Loops(signals)
    metrics = Metrics(signals, sources=lambda: {"node": "n", "loops": loops.statistics()})
    metrics.start()
    is_well = False

    async def step() -> None:
        if not is_well:
            raise ValueError("no good")

    loop = Loop("agent a:v1:all", step, OFTEN, kind="agent")
    with loops.begun_here():
        loop.start()
    failures = "strandline_loop_failures_total"
    await until(lambda: metrics.tally.counts(failures).get(("agent",), 0) >= 2)
    ((seconds, labels),) = metrics.readings("strandline_loop_seconds_since_success")
    assert (seconds > 0, labels) == (True, {"node": "n", "loop": "agent"})

    is_well = True
    loop.wake()
    await until(lambda: metrics.readings("strandline_loop_seconds_since_success")[0][0] == 0)

    await loop.stop()
    metrics.stop()


async def test_a_listener_that_raises_does_not_end_a_loop() -> None:
    signals = Signals()
    loops = Loops(signals)

    def hears(_: Notice) -> None:
        raise RuntimeError("the listener")

    signals.listen(hears)
    loop = Loop("l", broken, OFTEN)
    with loops.begun_here():
        loop.start()

    await until(lambda: loop.statistics().failures >= 3)
    assert loop.running
    await loop.stop()


async def test_a_loop_that_somebody_cancelled_is_dead_and_shows_while_it_is_kept() -> None:
    loops = Loops(Signals())
    loop = Loop("mark", nothing, OFTEN)
    with loops.begun_here():
        loop.start()
    (task,) = (one for one in asyncio.all_tasks() if one.get_name() == "strandline:mark")
    await until(lambda: loops.statistics()[0].steps > 0)

    task.cancel()
    await asyncio.wait({task})
    await asyncio.sleep(0)

    (found,) = loops.statistics()
    assert (found.name, found.is_dead, found.running) == ("mark", True, False)
    del loop, task
    gc.collect()
    assert loops.statistics() == ()


@pytest.mark.parametrize("ends_by", ["stop", "error"])
async def test_a_loop_that_ends_as_it_should_is_not_dead(ends_by: str) -> None:
    loops = Loops(Signals())
    step = broken if ends_by == "error" else nothing
    loop = Loop("l", step, OFTEN, ends_on=(ValueError,))
    with loops.begun_here():
        loop.start()

    if ends_by == "stop":
        await loop.stop()
    await loop.join()
    await asyncio.sleep(0)

    assert not loop.is_dead
    assert loops.statistics() == ()
