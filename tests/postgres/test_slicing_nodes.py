"""Changing the number of shards on running nodes, with events flowing all the while."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from kinds import LABELS, TENANTS, TOLD, Closed, Paid, Steps, assert_all_equal_the_fold, kinds_app
from tally import connected, holds

from strandline.app import App
from strandline.app.in_place import emptied_at_rest
from strandline.daemon.slicing import pending, slicings
from strandline.errors import AnswerTimedOut, ApplyFailed
from strandline.projections.slice import slices

QUICK: dict[str, Any] = {
    "page_events": 20,
    "table_page_events": 30,
    "poll_interval": 0.05,
    "pulse": "loop",
    "pulse_interval": 0.1,
    "pulse_deadline": 0.5,
    "node_ttl": 3.0,
    "leader_ttl": 2.0,
    "leader_margin": 0.5,
    "rebalance_interval": 0.3,
    "rebalance_after": 0.2,
}


class Flow:
    """A writer that appends all the while, and the nodes of the test."""

    def __init__(self, url: str, operator: Any, mode: str) -> None:
        self.url = url
        self.operator = operator
        self.mode = mode
        self.writer = kinds_app(url, 1)
        self.called: list[Any] = []
        self.last = 0
        self._random = random.Random(7)  # noqa: S311 - a schedule that can be repeated

    async def write(self) -> None:
        number = 0
        while True:
            number += 1
            people = [f"p{self._random.randrange(9)}" for _ in range(2)]
            event = Closed() if number % 23 == 0 else Paid(*people, self._random.randrange(1, 9))
            stream, tenant = f"s{self._random.randrange(25)}", self._random.choice(TENANTS)
            self.last = (await self.writer.append(stream, event, tenant=tenant)).position
            await asyncio.sleep(0.001)

    def node(self, shards: int, **options: Any) -> App:
        """Code that wants so many shards, not started."""
        app: Any = kinds_app(self.url, shards, **{**QUICK, "mode": self.mode, **options})
        app.called = self.called
        return app

    async def settled(self, shards: int) -> None:
        """Wait until everything is cut into so many shards."""

        async def is_cut() -> bool:
            run = self.writer.pools.control.run
            found = await run(slicings(LABELS))
            parts = {one.parts for one in found.values()}
            return len(found) == len(LABELS) and parts == {shards} and not await run(pending())

        await holds(is_cut, timeout=20)

    async def check(self) -> None:
        """All is applied, once, when somebody has applied the rest."""
        found = await self.writer.pools.control.run(slicings(["steps:v1"]))
        async with self.node(found["steps:v1"].wanted, mode="solo") as node:
            await node.catch_up(timeout=20)
        self.writer.called = self.called  # type: ignore[attr-defined]
        await assert_all_equal_the_fold(self.writer, self.operator)


@asynccontextmanager
async def flowing(url: str, mode: str) -> AsyncIterator[Flow]:
    async with connected(url) as operator:
        await operator.execute(TOLD)
        flow = Flow(url, operator, mode)
        async with flow.writer:
            writing = asyncio.create_task(flow.write())
            try:
                yield flow
            finally:
                writing.cancel()
                await asyncio.wait({writing})
            await flow.check()


async def test_a_node_alone_changes_the_number_again_and_again(database_url: str) -> None:
    async with flowing(database_url, "solo") as flow:
        for shards in (1, 4, 1):
            async with flow.node(shards) as node:
                await node.start()
                await flow.settled(shards)
                await node.wait_for(flow.last)
                statistics = node.statistics()
                assert statistics is not None
                names = {one.shard for one in statistics.agents}
                assert names == {part.shard(label) for label in LABELS for part in slices(shards)}


async def test_nodes_of_a_cluster_change_the_number_one_after_the_other(database_url: str) -> None:
    """A rolling restart: old code wants 2, new code wants 5, and the cluster runs all the while."""
    async with flowing(database_url, "cluster") as flow, AsyncExitStack() as stack:
        old = [await stack.enter_async_context(flow.node(2)) for _ in range(2)]
        for node in old:
            await node.start()
        await flow.settled(2)
        await flow.writer.wait_for(flow.last, timeout=20)

        for gone in old:
            node = await stack.enter_async_context(flow.node(5))
            await node.start()
            await gone.stop()
        await flow.settled(5)

        await flow.writer.wait_for(flow.last, timeout=20)
        assert {one.name for one in await node.progress()} == set(node.registry.shards())


async def test_a_rebuild_goes_over_all_shards_and_may_fall_into_a_change(database_url: str) -> None:
    async with (
        flowing(database_url, "cluster") as flow,
        flow.node(3) as node,
        flow.node(2) as other,
    ):
        await node.start()
        await flow.settled(3)
        await node.wait_for(flow.last, timeout=20)

        await node.rebuild(Steps)
        await node.wait_for(flow.last, Steps, timeout=20)
        starting = asyncio.create_task(other.start())
        await node.rebuild("people")
        await starting
        await node.rebuild("accounts")

        await flow.settled(2)


@pytest.mark.parametrize("kind", ["steps", "people", "accounts", "written"])
async def test_a_rebuild_empties_nothing_while_there_are_shards_that_are_not_at_rest(
    database_url: str, kind: str
) -> None:
    """The projection was cut otherwise after its shards had been asked for."""
    async with connected(database_url) as operator:
        await operator.execute(TOLD)
        async with kinds_app(database_url, 2, **{**QUICK, "mode": "solo"}) as app:
            last = (await app.append("s", Paid("ada", "bo", 1))).position
            await app.catch_up()
            definition = app.registry.projection(kind)
            pool, shards = app.pools.work, [part.shard(definition.label) for part in slices(2)]

            for too_few in ([f"{definition.label}:all"], shards[:1]):
                assert not await emptied_at_rest(pool, app.requests, definition, too_few)
                await assert_all_equal_the_fold(app, operator)
                assert {one.position for one in await app.progress()} == {last}

            assert await emptied_at_rest(pool, app.requests, definition, shards)
            found = {one.position for one in await app.progress() if one.name in shards}
            assert found == {0}
            await app.catch_up()
            await assert_all_equal_the_fold(app, operator)


async def test_a_wait_tells_which_shard_is_behind(database_url: str) -> None:
    async with flowing(database_url, "solo") as flow:
        async with flow.node(2) as node:
            await node.start(Steps)
            await node.wait_for(flow.last, Steps)
            with pytest.raises(AnswerTimedOut, match="people:v1:all is at no checkpoint"):
                await node.wait_for(flow.last, "people", timeout=0.5)
            await node.stop()
            with pytest.raises(AnswerTimedOut, match=r"steps:v1:1/2 is at \d+, steps:v1:2/2 is at"):
                await node.wait_for(flow.last + 10**6, Steps, timeout=0.5)
            await node.start()
            await node.wait_for(flow.last)


async def test_catching_up_cuts_as_the_code_wants_and_tells_a_failure_of_any_shard(
    database_url: str,
) -> None:
    async with connected(database_url) as operator:
        await operator.execute(TOLD)
        async with kinds_app(database_url, 1, **{**QUICK, "mode": "solo"}) as app:
            await app.append("s", Paid("ada", "bo", 1))
            await app.catch_up()
        pause = {"mode": "solo", "on_apply_failed": "pause"}
        async with kinds_app(database_url, 4, **{**QUICK, **pause}) as app:
            last = await app.append("s", Paid("ada", "bo", 2))
            assert await app.catch_up() == last.position
            await holds(lambda: _parts(app, 4))
            await operator.execute(
                "INSERT INTO written VALUES ('default', 's', 3)"  # the next event breaks the key
            )
            await app.append("s", Paid("ada", "bo", 3))
            with pytest.raises(ApplyFailed, match="written"):
                await app.catch_up("written")


async def _parts(app: App, parts: int) -> bool:
    async with asyncio.timeout(10):
        await app.catch_up()
    found = await app.pools.control.run(slicings(LABELS))
    return {one.parts for one in found.values()} == {parts}
