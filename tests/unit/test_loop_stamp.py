"""A loop that hangs is seen from another thread, one that turns is not."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from strandline.telemetry import loop_stamp
from strandline.telemetry.loop_stamp import LoopStamp

PATIENCE = 30.0
LIMIT = 0.05


async def seen_beside(look: Callable[[LoopStamp, threading.Event], Any]) -> Any:
    """What *look* answers in a thread, while the loop hangs until it sets the event, or has ended."""
    stamp, goes_on = LoopStamp(), threading.Event()
    stamp.start()
    found: list[Any] = []

    def watch() -> None:
        end = time.monotonic() + PATIENCE
        while stamp.age <= LIMIT and time.monotonic() < end:
            time.sleep(0.01)
        found.append(look(stamp, goes_on))
        goes_on.set()

    thread = threading.Thread(target=watch)
    thread.start()
    hang(goes_on)
    while thread.is_alive():
        await asyncio.sleep(0.01)
    stamp.stop()
    return found[0]


def hang(goes_on: threading.Event) -> None:
    goes_on.wait(PATIENCE)


async def test_a_loop_that_hangs_is_seen_and_the_place_is_named() -> None:
    age, place = await seen_beside(lambda stamp, _: (stamp.lasting_age(LIMIT), stamp.place()))

    assert age > LIMIT
    assert place.startswith("Condition.wait, ")


async def test_a_loop_that_goes_on_within_a_moment_was_not_blocked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop_stamp, "MOMENT", PATIENCE)

    def look(stamp: LoopStamp, goes_on: threading.Event) -> float:
        threading.Timer(0.05, goes_on.set).start()
        return stamp.lasting_age(LIMIT)

    assert await seen_beside(look) <= LIMIT


async def test_who_asks_in_the_loop_itself_learns_that_it_turns() -> None:
    stamp = LoopStamp()
    stamp.start()
    time.sleep(0.3)  # noqa: ASYNC251 - the loop is to be late

    assert stamp.age == 0.0
    stamp.stop()


def test_before_its_start_and_after_its_end_nothing_is_blocked() -> None:
    stamp = LoopStamp()

    async def live() -> None:
        stamp.start()
        await asyncio.sleep(0)

    asyncio.run(live())  # it ends without a word

    assert stamp.lasting_age(PATIENCE) < PATIENCE
    stamp.stop()
    assert stamp.age == 0.0
