"""Whatever nodes declare, step, claim, apply and append, in whatever order: each event once."""

from __future__ import annotations

import asyncio
import os

from cut import Cut, opened
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from strandline.errors import OwnershipLost
from strandline.testing.database import fresh_database

ACTIONS = st.one_of(
    st.tuples(st.just("declare"), st.integers(1, 5)),
    st.tuples(st.just("step"), st.integers(0, 4)),
    st.tuples(st.just("claim"), st.integers(0, 9)),
    st.tuples(st.just("apply"), st.integers(0, 99)),
    st.tuples(st.just("append"), st.integers(1, 5)),
)


@settings(
    max_examples=200 if os.environ.get("STRANDLINE_CHAOS") == "long" else 10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(parts=st.integers(1, 5), actions=st.lists(ACTIONS, min_size=5, max_size=60))
def test_every_event_is_applied_once_whatever_happens_in_whatever_order(
    server_url: str, parts: int, actions: list[tuple[str, int]]
) -> None:
    async def run() -> None:
        async with fresh_database(server_url) as url, opened(url) as cut:
            await cut.declare(parts)
            for what, number in actions:
                await _happens(cut, what, number)
            await cut.settle()
            await cut.drain()
            await cut.assert_applied_once()
            await cut.assert_zombies_are_refused()

    asyncio.run(run())


async def _happens(cut: Cut, what: str, number: int) -> None:
    if what == "declare":
        await cut.declare(number)
    elif what == "step":
        await cut.some_of_a_step(number)
    elif what == "append":
        await cut.append(number, 2)
    elif what == "claim":
        shards = await cut.shards()
        await cut.claim(shards[number % len(shards)])
    elif cut.held:
        place = number % len(cut.held)
        try:
            cut.held[place] = await cut.apply(cut.held[place], most=1 + number % 7)
        except OwnershipLost:
            del cut.held[place]
