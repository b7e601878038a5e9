"""Waiting for positions, and catching up."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tally import (
    Positions,
    Ticked,
    Versions,
    fill,
    tally_app,
)

from strandline.errors import AnswerTimedOut, ApplyFailed
from strandline.projections.subscription import EventBatch


async def test_waiting_for_a_position_reads_your_own_write(database_url: str) -> None:
    async with tally_app(database_url) as app:
        await app.start()

        for number in range(1, 21):
            done = await app.append("mine", Ticked(number))
            await app.wait_for(done.position, Versions)
            assert (await app.get(Versions, "mine")).versions == list(range(1, number + 1))


async def test_a_wait_that_ends_too_early_says_who_is_where(database_url: str) -> None:
    async with tally_app(database_url) as app:
        last = await fill(app, 10)
        await app.catch_up(Versions)
        await app.append("s", Ticked())

        with pytest.raises(AnswerTimedOut) as caught:
            await app.wait_for(last + 1, timeout=0.1)

        message = str(caught.value)
        assert f"position {last + 1} not reached within 0.1 s" in message
        assert f"versions:v1:all is at {last}" in message
        assert "strandline projections list" in message


async def test_a_wait_for_a_shard_that_never_ran_says_so(database_url: str) -> None:
    async with tally_app(database_url) as app:
        done = await app.append("s", Ticked())

        with pytest.raises(AnswerTimedOut, match="positions:v1:all is at no checkpoint: it never"):
            await app.wait_for(done.position, Positions, timeout=0.5)


async def test_a_wait_in_one_process_sees_the_work_of_another(database_url: str) -> None:
    async with tally_app(database_url) as node, tally_app(database_url) as client:
        await node.start()

        done = await client.append("s", Ticked())
        await client.wait_for(done.position)

        assert (await client.get(Versions, "s")).versions == [1]


async def test_catching_up_with_nothing_to_do_returns_at_once(database_url: str) -> None:
    async with tally_app(database_url) as app:
        assert await app.catch_up() == 0
        last = await fill(app, 10)
        assert await app.catch_up() == last
        assert await app.catch_up() == last
        assert not app.is_running


async def test_inline_and_live_projections_need_no_waiting(database_url: str) -> None:
    app = tally_app(database_url, lifecycle="inline")
    app.projection("folded", lifecycle="live")(Versions)
    async with app:
        done = await app.append("s", Ticked())

        await app.wait_for(done.position, "positions", "folded", timeout=1)
        await app.catch_up(timeout=1)
        assert (await app.live("folded", "s")).versions == [1]


async def test_catching_up_ends_with_the_failure_of_a_projection_that_pauses(
    database_url: str,
) -> None:
    app = tally_app(database_url, on_apply_failed="pause")

    @app.subscription("refuses")
    async def refuse(batch: EventBatch) -> None:
        raise ValueError("not this one")

    async with app:
        await fill(app, 3)

        with pytest.raises(ApplyFailed, match="not this one"):
            await app.catch_up(timeout=30)

        assert not app.is_running


async def test_many_who_wait_share_their_looks(database_url: str) -> None:
    async with tally_app(database_url) as app:
        last = await fill(app, 5)
        looks = 0
        run = app.pools.control.run

        async def counted(op: Any) -> Any:
            nonlocal looks
            looks += 1
            return await run(op)

        app.pools.control.run = counted  # type: ignore[method-assign]
        waiting = [asyncio.create_task(app.wait_for(last, timeout=1.0)) for _ in range(300)]
        done, _ = await asyncio.wait(waiting)

        assert all(isinstance(one.exception(), AnswerTimedOut) for one in done)
        assert looks < 60  # a second of 50 ms; alone, each of them would look 20 times


async def test_a_stop_during_a_start_leaves_nothing_running(database_url: str) -> None:
    async with tally_app(database_url) as app:
        starting = asyncio.create_task(app.start())
        await asyncio.sleep(0)
        await app.stop()
        await starting

        assert not app.is_running
        assert not [one for one in asyncio.all_tasks() if "agent" in one.get_name()]
