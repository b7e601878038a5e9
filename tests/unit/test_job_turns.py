"""Whose turn it is among those who enqueue under one key."""

from __future__ import annotations

import asyncio

import pytest

from strandline.jobs.turns import Turns

KEY = ("queue", "key")


class Line:
    """Takes turns, and holds each until it is told to let go."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.begun: list[str] = []
        self.ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    def join(self, name: str) -> None:
        """Join the line; who has a name in small letters shares its turn."""
        self.ends[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._turn(name))

    async def let_go(self, *names: str) -> None:
        for name in names:
            self.ends[name].set()
        await settled()

    async def _turn(self, name: str) -> None:
        async with self.turns.of(KEY, shared=name.islower()):
            self.begun.append(name)
            await self.ends[name].wait()


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def line_of(names: str) -> Line:
    line = Line()
    for name in names:
        line.join(name)
    await settled()
    return line


async def test_neighbours_that_share_begin_together_and_all_others_alone() -> None:
    line = await line_of("abCdeF")
    steps = [list(line.begun)]
    for name in "abCdeF":
        await line.let_go(name)
        steps.append(list(line.begun))

    assert ["".join(one) for one in steps] == [
        "ab", "ab", "abC", "abCde", "abCde", "abCdeF", "abCdeF",
    ]  # fmt: skip
    await line.turns.end(0.0, ValueError())
    assert not line.turns._lines


async def test_who_comes_as_others_are_called_does_not_get_in_before_them() -> None:
    line = await line_of("Abc")
    line.ends["A"].set()
    while line.turns._lines[KEY].having:  # A has left, and b knows but has not begun
        await asyncio.sleep(0)
    line.join("d")
    await settled()

    assert "".join(line.begun) == "Abcd"
    await line.let_go(*"bcd")


@pytest.mark.parametrize("when", ["waiting", "called"])
async def test_who_gives_up_keeps_nobody_waiting(when: str) -> None:
    line = await line_of("ABcd")
    if when == "called":
        line.ends["A"].set()
        while line.turns._lines[KEY].having:
            await asyncio.sleep(0)
    line.tasks["B"].cancel()
    await line.let_go("A")

    assert "".join(line.begun) == "Acd"
    await line.let_go(*"cd")
    assert not line.turns._lines


async def test_at_the_end_those_who_wait_are_told() -> None:
    line = await line_of("AB")

    await line.turns.end(0.01, ValueError("closed"))

    with pytest.raises(ValueError, match="closed"):
        await line.tasks["B"]
    await line.let_go("A")
    await line.tasks["A"]
    assert not line.turns._lines
