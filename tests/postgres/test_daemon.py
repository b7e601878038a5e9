"""Agents: every event applied exactly once, whatever breaks in between (I1)."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import pytest
from tally import (
    Positions,
    Seen,
    Ticked,
    Versions,
    assert_applied_exactly_once,
    committed,
    connected,
    end_backends,
    fill,
    holds,
    tally_app,
)

from strandline.app import App
from strandline.errors import ApplyFailed
from strandline.projections.failure_policy import ErrorPolicy
from strandline.projections.handlers import apply
from strandline.projections.single_stream import SingleStream
from strandline.testing.faults import Proxy
from strandline.testing.leaks import no_leaks


def solo_app(url: str, **settings: Any) -> App:
    return tally_app(url, mode="solo", **settings)


# ---- whatever breaks in between


async def test_events_are_applied_once_while_backends_are_killed(
    database_url: str, impatient: None
) -> None:
    app = tally_app(database_url, page_events=5, cached_documents=4)
    async with app, connected(database_url) as operator:
        last = await fill(app, 500)
        batches, killed = committed(app), 0
        await app.start()

        for round_ in range(1, 13):
            await batches(round_ * 10)
            killed += await end_backends(operator, "strandline work")
            if round_ % 4 == 0:
                killed += await end_backends(operator)
        await app.wait_for(last)

        assert killed > 12
        await assert_applied_exactly_once(app)


async def test_a_commit_whose_outcome_is_unknown_is_resolved_by_the_checkpoint(
    database_url: str, impatient: None
) -> None:
    async with Proxy(database_url) as proxy:
        app = tally_app(proxy.url, page_events=5)
        async with app:
            last = await fill(app, 300)
            batches = committed(app)
            await app.start()

            for round_ in range(1, 9):
                proxy.swallow_answer_to(b'[{"t":"default"')  # the documents of a batch
                await holds(lambda wanted=round_: proxy.swallowed == wanted)
                await batches(round_ * 3)
            await app.wait_for(last)

            await assert_applied_exactly_once(app)


async def test_a_connection_cut_before_the_commit_arrives_applies_nothing(
    database_url: str, impatient: None
) -> None:
    async with Proxy(database_url) as proxy:
        app = tally_app(proxy.url, page_events=5)
        async with app:
            last = await fill(app, 300)
            batches = committed(app)
            await app.start()

            for round_ in range(1, 9):
                await batches(round_ * 3)
                proxy.cut()
            await app.wait_for(last)

            await assert_applied_exactly_once(app)


async def test_a_node_goes_on_after_the_server_was_out_of_reach(database_url: str) -> None:
    async with Proxy(database_url) as proxy:
        app = tally_app(proxy.url, connect_timeout=3.0, acquire_timeout=3.0)
        async with app, tally_app(database_url) as outside:
            await app.start()
            await app.wait_for(await fill(app, 20))

            proxy.refuse()
            last = await fill(outside, 20)
            await holds(lambda: app.statistics().high_water.loop.consecutive_failures, timeout=30)
            proxy.forward()
            await outside.wait_for(last, Versions, Positions)

            await assert_applied_exactly_once(outside)


@pytest.mark.parametrize(
    ("mode", "timeout"), [("solo", 0.06), ("cluster", 10.0)], ids=["cut off", "let finish"]
)
async def test_an_agent_goes_on_where_the_last_one_stopped(
    database_url: str, mode: str, timeout: float
) -> None:
    async with tally_app(database_url, mode=mode, page_events=5) as app:
        claims: Counter[str] = Counter()
        app.signals.listen(
            lambda notice: (
                claims.update([notice.facts["shard"]] * (notice.name == "shard_claimed"))
                if "shard" in notice.facts
                else None
            )
        )

        for _ in range(8):
            last = await fill(app, 50)
            batches = committed(app)
            await app.start()
            await batches(4)
            await app.stop(timeout=timeout)
        await app.catch_up()

        await assert_applied_exactly_once(app)
        rows = await app.progress()
        assert {row.position for row in rows} == {last}
        for row in rows:  # a start that is cut off may end before its claim, or before it is told
            assert claims[row.name] <= (row.epoch or 0) <= 9, "every claim is a new epoch"


async def test_stopping_leaves_nothing_behind(database_url: str) -> None:
    async with no_leaks():
        async with tally_app(database_url, page_events=5) as app:
            await fill(app, 100)
            batches = committed(app)

            await app.start()
            await batches(3)
            async with no_leaks(app):
                await app.stop()

            states = [row.state for row in await app.progress()]
            assert states == ["stopped", "stopped"]


# ---- poison


def picky_app(url: str) -> tuple[App, set[int]]:
    """An app whose second projection fails at the numbers in the set."""
    app = tally_app(url, page_events=10)
    poison: set[int] = set()

    @app.projection("picky", on_error=ErrorPolicy(apply="pause"))
    class Picky(SingleStream[Seen]):
        @apply
        def ticked(self, seen: Seen, event: Ticked) -> None:
            if event.number in poison:
                raise ValueError(f"cannot digest {event.number}")
            seen.versions.append(event.number)

    return app, poison


async def test_a_poison_event_pauses_its_shard_visibly_and_no_other(
    database_url: str, impatient: None
) -> None:
    app, poison = picky_app(database_url)
    poison.add(13)
    async with app:
        await app.start()
        paused = asyncio.create_task(app.signals.wait_for("shard_paused", timeout=10))
        await asyncio.sleep(0)
        last = await fill(app, 30)

        told = await paused
        await app.wait_for(last, Versions, Positions)
        row = await holds(lambda: picky_row(app, "paused"))

        assert told.facts["shard"] == "picky:v1:all"
        assert isinstance(told.facts["error"], ApplyFailed)
        failure = json.loads(row.failure)
        assert failure["class"] == "ApplyFailed"
        assert failure["cause"] == "ValueError('cannot digest 13')"
        event = [one async for one in app.read_all(settled=False) if one.data.number == 13][0]
        assert failure["position"] == event.position
        assert f"at position {event.position}: ValueError" in row.reason
        assert row.position < event.position
        (agent,) = [one for one in app.statistics().agents if one.shard == "picky:v1:all"]
        assert (agent.state, agent.failures >= 4) == ("paused", True)


async def test_a_paused_shard_goes_on_by_itself_and_its_failure_is_cleared(
    database_url: str, impatient: None
) -> None:
    app, poison = picky_app(database_url)
    poison.add(13)
    async with app:
        await app.start()
        paused = asyncio.create_task(app.signals.wait_for("shard_paused", timeout=10))
        await asyncio.sleep(0)
        last = await fill(app, 30, streams=1)
        await paused

        poison.clear()
        await app.wait_for(last, "picky")

        row = await holds(lambda: picky_row(app, "running"))
        assert (row.reason, row.failure) == ("", None)
        assert (await app.get("picky", "s0")).versions == list(range(30)), "applied once each"


async def picky_row(app: App, state: str) -> Any:
    (row,) = [one for one in await app.progress() if one.name == "picky:v1:all"]
    return row if row.state == state else None


# ---- another owner (I3), where nobody assigns: see test_agent_grants.py for the cluster


async def test_an_agent_stops_itself_when_another_node_claims_its_shard(
    database_url: str,
) -> None:
    first, second = solo_app(database_url), solo_app(database_url)
    async with first, second:
        await first.start()
        await first.wait_for(await fill(first, 50))
        lost = [
            asyncio.create_task(
                first.signals.wait_for(
                    "ownership_lost", timeout=10, where=lambda n, s=shard: n.facts["shard"] == s
                )
            )
            for shard in ("versions:v1:all", "positions:v1:all")
        ]
        await asyncio.sleep(0)

        await second.start()
        await second.wait_for(await fill(first, 50))
        await asyncio.gather(*lost)

        await assert_applied_exactly_once(second)
        agents = first.statistics().agents
        assert [one.state for one in agents] == ["stopped", "stopped"]
        assert all("another node has claimed it" in one.reason for one in agents)
        rows = await second.progress()
        assert {row.owner for row in rows} == {second.node_id}
        assert {row.state for row in rows} == {"running"}, "the loser must not tell of itself"


async def test_a_batch_that_arrives_after_the_shard_was_claimed_is_refused(
    database_url: str,
) -> None:
    """A frozen node: its commit is under way when another takes over, and arrives after that."""
    async with Proxy(database_url) as proxy:
        frozen, second = solo_app(proxy.url, page_events=5), solo_app(database_url)
        async with frozen, second:
            last = await fill(second, 200)
            batches = committed(frozen)
            await frozen.start()
            await batches(4)
            proxy.hold()
            lost = asyncio.create_task(frozen.signals.wait_for("ownership_lost", timeout=10))
            await asyncio.sleep(0)

            await second.start()
            await second.wait_for(last)
            proxy.forward()
            await lost

            await assert_applied_exactly_once(second)


async def test_nodes_that_take_shards_from_each_other_apply_every_event_once(
    database_url: str,
) -> None:
    apps = [solo_app(database_url, page_events=3) for _ in range(3)]
    async with apps[0], apps[1], apps[2]:
        last = await fill(apps[0], 600)

        for app in (*apps, *apps, *apps):
            batches = committed(app)
            await app.stop()
            await app.start()
            await batches(3)
        await apps[2].wait_for(last)

        await assert_applied_exactly_once(apps[2])
        assert {row.epoch for row in await apps[2].progress()} == {9}


async def test_a_shard_that_was_reset_is_claimed_anew_by_whoever_runs_it(
    database_url: str,
) -> None:
    worker = solo_app(database_url, page_events=1)
    async with worker:
        last = await fill(worker, 100)
        await worker.start()
        (before,) = await reset_while_at_work(worker)

        await worker.wait_for(last)

        await assert_applied_exactly_once(worker)
        epochs = {row.name: row.epoch for row in await worker.progress()}
        assert epochs["versions:v1:all"] == before + 2, "the reset's, and that of the claim"


async def reset_while_at_work(app: App) -> list[int]:
    """Empty the read model and send its shard back to the beginning; the epochs before."""
    await committed(app, "versions")(5)
    async with connected(app.url) as operator, operator.transaction():
        epochs = await operator.fetch(
            """UPDATE strandline.shards SET position = 0, epoch = epoch + 1, owner = NULL
                WHERE name = 'versions:v1:all' RETURNING epoch - 1 AS epoch"""
        )
        await operator.execute("DELETE FROM strandline.doc_versions_v1")
    return [row["epoch"] for row in epochs]


async def test_rebuilds_while_a_node_is_at_work_do_not_deadlock_and_it_goes_on(
    database_url: str,
) -> None:
    worker, operator = tally_app(database_url, page_events=1), tally_app(database_url)
    async with worker, operator:
        await worker.start()
        for _ in range(4):
            batches = committed(worker, "versions")
            last = await fill(operator, 50)
            await batches(5)
            await operator.rebuild(Versions)

        await operator.wait_for(last)
        await assert_applied_exactly_once(operator)
