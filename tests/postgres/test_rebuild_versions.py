"""Healing, versions and lifecycles beside rebuilds: what a review has found."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any
from uuid import uuid4

import pytest
from build_steps import SOLO, UNDECODABLE, built, is_waiting, state_of
from shadows import rebuilder, until_state
from tally import Dropped, Positions, Ticked, Versions, connected, fill, holds, tally_app

import strandline as sl
from strandline.app import App
from strandline.cluster import claims
from strandline.cluster.membership import channel
from strandline.daemon import retiring
from strandline.daemon.checkpoint import claim
from strandline.daemon.letters import put_aside, settle
from strandline.errors import (
    ApplyFailed,
    ConflictError,
    OwnershipLost,
    StrandlineError,
)
from strandline.jobs.part import JobShare
from strandline.projections.composite import Composite
from strandline.projections.failure_policy import Action


@contextlib.asynccontextmanager
async def slow_append(url: str) -> Any:
    """An event that is committed at the end of the block."""
    async with connected(url) as slow:
        await slow.execute("BEGIN")
        await slow.execute(
            """SELECT strandline.append('slow', '[{"type": "ticked", "data": {}}]')"""
        )
        yield
        await slow.execute("COMMIT")


async def noted_late(url: str) -> bool:
    async with connected(url) as look:
        return bool(
            await look.fetchval("SELECT count(*) FROM strandline.gaps WHERE proof ? 'late'")
        )


async def test_a_projection_that_has_put_an_event_aside_can_be_healed(database_url: str) -> None:
    async with tally_app(database_url, force_after=0.2, probe_interval=0.01, **SOLO) as app:
        await app.start()
        async with connected(database_url) as other:
            await other.execute(UNDECODABLE)
        await fill(app, 10)
        async with slow_append(database_url):
            await app.wait_for(await fill(app, 10))
        await holds(lambda: noted_late(database_url))

        async with asyncio.timeout(10):
            with contextlib.suppress(ApplyFailed):
                await app.heal(Positions)
            await app.heal(Positions)

        found = await app.query(Positions)
        assert sorted(one for _, seen in found for one in seen.versions) == list(range(2, 23))


async def test_a_late_event_that_a_build_has_passed_is_not_taken_for_read(
    database_url: str,
) -> None:
    """What serves has stood still before the gap; the build that takes its place has not."""
    settings = {"force_after": 0.2, "probe_interval": 0.01, "page_events": 1000, **SOLO}
    async with tally_app(database_url, **settings) as app:
        await fill(app, 10)
        await app.catch_up()
        await app.start("positions")
        await app.rebuild("versions", wait=False)
        steps = rebuilder(app)
        build = await until_state(app, steps, "building", "versions:v1")
        async with slow_append(database_url):
            last = await fill(app, 10)
            await app.wait_for(last, "positions")
            assert (await built(app, build, last)).position == last
        await holds(lambda: noted_late(database_url))

        healing = asyncio.create_task(app.heal("versions"))
        await asyncio.wait({healing}, timeout=1)
        await until_state(app, steps, "sealed", "versions:v1")
        while await state_of(app) == "sealed":
            await steps.step()
        await app.stop()
        await app.start()
        await asyncio.wait_for(healing, 15)
        await app.catch_up()

        assert (await app.get(Versions, "slow")).versions == [1], await app.unhealed()


async def test_a_letter_of_the_batch_that_a_retirement_has_waited_for_refuses_it(
    database_url: str,
) -> None:
    """Its side effects are missing, and the newest version has passed them silently."""
    app = tally_app(database_url, **SOLO)
    app.projection("versions", version=2)(Versions)
    async with app:
        await fill(app, 10)
        await app.catch_up()
        position = (await app.append("s0", Ticked(1))).position
        at = await app.pools.work.run(claim("versions:v1:all", uuid4()))
        row = (position, "default", "s0", 11, "ticked")
        letter = put_aside(row, ("default", "s0"), ApplyFailed("x", "poison"), Action.PARK)

        async def retire() -> None:
            async with app.pools.control.transaction() as session:
                op = retiring.bury("versions:v1", schema="strandline", channel="x", checkpoints="y")
                await session.run(op)

        async with app.pools.work.transaction() as session:
            await session.run(settle(at, position, [letter]))
            retiring_ = asyncio.create_task(retire())
            await holds(lambda: is_waiting(database_url))
        with pytest.raises(ConflictError, match="dead letters"):
            await retiring_


async def test_a_version_can_be_retired_while_appends_go_on(database_url: str) -> None:
    """Its shards need not come to one position by chance."""

    class Thanking(Versions):
        @sl.effects
        async def thanked(self, changes: Any, tx: Any) -> None: ...

    app = App("tally", database_url, **SOLO)
    app.event("ticked")(Ticked)
    app.event("dropped")(Dropped)
    app.projection("versions", version=1, shards=4)(Thanking)
    app.projection("versions", version=2, shards=4)(Thanking)
    async with app:
        await app.start()

        async def write() -> None:
            while True:
                await asyncio.gather(*(app.append(f"s{n}", Ticked(n)) for n in range(20)))

        writing = asyncio.create_task(write())
        try:
            await asyncio.sleep(0.5)
            await app.retire("versions:v1", timeout=10)
        finally:
            writing.cancel()


async def test_work_offered_late_is_not_begun_anew_after_appends_keep_the_projection(
    database_url: str,
) -> None:
    """A node that joins while the change is made has looked before, and offers after it."""
    async with tally_app(database_url, **SOLO) as before:
        last = await fill(before, 10)
        await before.catch_up()
        offers = await before._make_node(set(), lambda error: None, JobShare.NONE).daemon.offers()
    async with tally_app(database_url, lifecycle="inline", **SOLO) as after:
        assert (await after.get(Versions, "s0")).versions
        await after.pools.control.run(claims.offer(offers, channel("strandline")))
        with pytest.raises(OwnershipLost):
            found = await after.pools.work.run(claim("versions:v1:all", uuid4()))
            assert found.position >= last, "every event would be applied a second time"


async def test_a_composite_does_not_go_on_with_documents_that_another_has_written(
    database_url: str,
) -> None:
    """A member of the same name and version has the table that it had when it stood alone."""

    class Both(Composite):
        stages = ({"versions": Versions, "positions": Positions},)

    async with tally_app(database_url, **SOLO) as alone:
        await fill(alone, 10, streams=1)
        await alone.catch_up()
    together = App("tally", database_url, **SOLO)
    together.event("ticked")(Ticked)
    together.event("dropped")(Dropped)
    together.projection("both")(Both)
    with contextlib.suppress(StrandlineError):  # to refuse it is as good
        async with together:
            await together.catch_up()
            assert (await together.get(Versions, "s0")).versions == list(range(1, 11))


async def test_a_claim_that_has_waited_for_the_change_does_not_begin_anew(
    database_url: str,
) -> None:
    """It has looked before the change was committed, and goes on after it."""
    async with tally_app(database_url, **SOLO) as app, connected(database_url) as other:
        await fill(app, 10)
        await app.catch_up()
        async with other.transaction():
            await other.execute(
                """DELETE FROM strandline.slicings WHERE label = 'versions:v1';
                   DELETE FROM strandline.shards WHERE name = 'versions:v1:all';
                   UPDATE strandline.lifecycles SET lifecycle = 'inline' WHERE label = 'versions:v1'"""
            )
            claiming = asyncio.create_task(app.pools.work.run(claim("versions:v1:all", uuid4())))
            await holds(lambda: is_waiting(database_url))
        with pytest.raises(OwnershipLost):
            await claiming
