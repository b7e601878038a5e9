"""Whatever fails, is fixed, corrected, discarded or tried again, and whoever has the shard: what was
not discarded is applied once, in the order of its stream or document."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from letterbox import POISON, Fragile, Hand, Shared, Spread, by_hand, fragile_app, numbers_of
from tally import Ticked

from strandline.app import App
from strandline.daemon.letter_desk import DeadLetter
from strandline.testing.database import fresh_database

NAMES = ("a", "b", "c")
STEPS = ("append", "process", "fix", "break", "retry", "retry all", "discard", "edit", "restart")
STEP = st.tuples(st.sampled_from(STEPS), st.integers(0, 9), st.lists(st.booleans(), min_size=6))
LIMITS = settings(
    max_examples=150 if os.environ.get("STRANDLINE_CHAOS") == "long" else 20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class World:
    """A projection under harm, and what it should hold: by document the numbers in order.

    Attributes:
        wanted: Of each document its events in order, as position and number.
        gone: What was discarded, as document and position.
    """

    def __init__(self, app: App, definition: Any, stack: AsyncExitStack) -> None:
        self.app = app
        self.definition = definition
        self.stack = stack
        self.hand: Hand
        self.wanted: dict[str, dict[int, int]] = {}
        self.gone: set[tuple[str, int]] = set()
        self.last = 0
        self.number = 0

    async def restart(self) -> None:
        """Another owner, who knows nothing but what the database says."""
        self.hand = await self.stack.enter_async_context(by_hand(self.app, self.definition))

    async def append(self, choice: int, coins: list[bool]) -> None:
        events: list[Any] = []
        for bad in coins[:3]:
            self.number += 1
            if bad:
                POISON.add(self.number)
            if self.definition is Fragile:
                events.append(Ticked(self.number))
                names: tuple[str, ...] = (NAMES[choice % 3],)
            else:
                names = tuple(name for name, coin in zip(NAMES, coins, strict=False) if coin) or (
                    NAMES[choice % 3],
                )
                ill = tuple(n for n, coin in zip(names, coins[3:], strict=False) if coin)
                events.append(Spread(self.number, names, ill))
            for name in names:
                self.wanted.setdefault(name, {})[self.last + len(events)] = self.number
        done = await self.app.append(NAMES[choice % 3], events)
        self.last = done.position

    async def step(self, what: str, choice: int, coins: list[bool]) -> None:
        if what == "append":
            await self.append(choice, coins)
        elif what == "process":
            at = self.hand.checkpoint.position
            await self.hand.through(min(self.last, at + 1 + choice))
        elif what == "fix":
            POISON.difference_update(list(POISON)[: choice + 1])
        elif what == "break":
            POISON.add(choice + 1)
        elif what == "retry all":
            await self.app.letters.retry(all=True)
            await self.hand.replay()
        elif what == "restart":
            await self.restart()
        else:
            found = await self.app.letters.list()
            if found:
                await self.change(what, found[choice % len(found)])
                if coins[0]:
                    await self.hand.replay()

    async def change(self, what: str, letter: DeadLetter) -> None:
        if what == "retry":
            await self.app.letters.retry(letter.id)
        elif what == "discard":
            await self.app.letters.discard(letter.id, reason="model")
            self.gone.add((letter.key, letter.position))
        elif self.definition is Fragile:
            self.number += 1
            await self.app.letters.edit(letter.id, Ticked(self.number), reason="model")
            self.wanted[letter.key][letter.position] = self.number

    async def check(self) -> None:
        """What is applied and what is in letters is all that was processed, and in order."""
        at = self.hand.checkpoint.position
        waiting = {(one.key, one.position) for one in await self.app.letters.list(limit=1_000)}
        state = await numbers_of(self.app, self.definition)
        for name, events in self.wanted.items():
            left_out = self.gone | waiting
            here = [n for p, n in events.items() if p <= at and (name, p) not in left_out]
            assert state.get(name, []) == here, name

    async def settle(self) -> None:
        """Fix everything, and have all of it tried again."""
        POISON.clear()
        await self.hand.through(self.last)
        await self.app.letters.retry(all=True)
        await self.hand.replay()
        assert await self.app.letters.list() == []
        assert self.hand.processor.parking.keys == set()
        await self.check()


def run(server_url: str, definition: Any, steps: list[tuple[str, int, list[bool]]]) -> None:
    async def go() -> None:
        POISON.clear()
        async with fresh_database(server_url) as url, AsyncExitStack() as stack:
            app = fragile_app(url)
            app.projection("fragile", lifecycle="async")(definition)
            async with app:
                world = World(app, definition, stack)
                await world.restart()
                await world.append(0, [True, False, True, True, False, True])
                for step in steps:
                    await world.step(*step)
                    await world.check()
                await world.settle()

    try:
        asyncio.run(go())
    finally:
        POISON.clear()


@LIMITS
@given(steps=st.lists(STEP, max_size=25))
def test_streams_hold_what_was_not_discarded_in_order(
    server_url: str, steps: list[tuple[str, int, list[bool]]]
) -> None:
    run(server_url, Fragile, steps)


@LIMITS
@given(steps=st.lists(STEP, max_size=25))
def test_documents_hold_what_was_not_discarded_in_order(
    server_url: str, steps: list[tuple[str, int, list[bool]]]
) -> None:
    run(server_url, Shared, steps)
