"""Builds that do not get on say why, and what serves does not stand still for them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from shadows import ledger, left_behind, move, rebuilder, until_state
from tally import Dropped, Ticked, Versions, connected, fill, holds, tally_app

import strandline as sl
from strandline.app import App
from strandline.daemon import exchange
from strandline.daemon import rebuilder as rebuilding
from strandline.errors import AnswerTimedOut, InvalidInput

SOLO: dict[str, Any] = {"mode": "solo", "poll_interval": 0.02}
PAUSED = """INSERT INTO strandline.shard_status (name, node, state, reason, rate, changed_at)
            VALUES ($1, 'n1', 'paused', 'a poison event', 0, clock_timestamp())
            ON CONFLICT (name) DO UPDATE SET state = excluded.state, reason = excluded.reason"""


async def reason_of(app: App) -> str:
    return (await app.rebuilds())[-1].reason


async def test_a_swap_that_takes_longer_than_a_statement_may_fails_in_the_end(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def takes_long(*given: Any, **named: Any) -> Any:
        raise AnswerTimedOut("copy_scope: no answer in time")
        yield

    for name in ("SEALED_AT_MOST", "SEALED_AGAIN", "BREATH"):
        monkeypatch.setattr(rebuilding, name, 0.0)
    monkeypatch.setattr(exchange, "swap", takes_long)
    async with ledger(database_url, mode="solo") as app:
        await app.catch_up()
        await app.rebuild("balances", wait=False)
        steps = rebuilder(app)
        await until_state(app, steps, "building")
        async with asyncio.timeout(5):
            while (await app.rebuilds())[-1].state != "failed":
                await steps.step()

        assert "statement_timeout" in await reason_of(app)
        assert "tried 3 times" in await reason_of(app)
        assert not (await left_behind(database_url)).get("seals")


async def test_a_verification_says_that_what_serves_pauses(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuilding, "LIVE_NEAR", 0)
    async with ledger(database_url, mode="solo") as app, connected(database_url) as other:
        await move(app, 20)
        await app.catch_up()
        await other.execute("UPDATE strandline.shards SET position = 0")
        await app.request_build("balances:v1", purpose="verify")
        steps = rebuilder(app)
        await until_state(app, steps, "building")
        await other.execute("UPDATE strandline.shards SET position = 20 WHERE name LIKE '%~%'")
        await other.execute("UPDATE strandline.high_water SET position = 20")
        await other.execute(PAUSED, "balances:v1:all")
        await steps.step()

        assert "what serves pauses" in await reason_of(app)
        assert "a poison event" in await reason_of(app)

        await other.execute("UPDATE strandline.shard_status SET state = 'running'")
        await steps.step()

        assert await reason_of(app) == ""


async def test_a_build_in_the_queue_says_for_which_ones_it_waits(database_url: str) -> None:
    async with ledger(database_url, mode="solo") as app, connected(database_url) as other:
        await move(app, 20)
        await app.catch_up()
        await app.rebuild("balances", wait=False)
        steps = rebuilder(app, rebuilds_at_once=1)
        await until_state(app, steps, "building")
        await other.execute(PAUSED, "balances:v1~1:all")
        await app.rebuild("moves", wait=False)
        await steps.step()

        told = await reason_of(app)
        assert "rebuilds_at_once is 1" in told
        assert "balances:v1~1 (pauses)" in told

        await app.cancel_rebuild("balances")
        await until_state(app, steps, "building", "moves:v1")
        assert await reason_of(app) == ""


async def test_an_empty_tenant_is_not_taken_for_the_default_one(database_url: str) -> None:
    async with ledger(database_url, mode="solo") as app:
        with pytest.raises(InvalidInput, match="tenant"):
            await app.rebuild("balances", tenant="", wait=False)


class Thanking(Versions):
    @sl.effects
    async def thanked(self, changes: Any, tx: Any) -> None: ...


def two_versions(url: str) -> App:
    app = App("tally", url, **SOLO)
    app.event("ticked")(Ticked)
    app.event("dropped")(Dropped)
    app.projection("versions", version=1, shards=2)(Thanking)
    app.projection("versions", version=2, shards=2)(Thanking)
    return app


async def test_a_retirement_that_does_not_come_about_lets_both_versions_go_on(
    database_url: str,
) -> None:
    async with two_versions(database_url) as app, connected(database_url) as other:
        await fill(app, 20)
        await app.catch_up()
        await other.execute(
            "UPDATE strandline.shards SET position = 5 WHERE name = 'versions:v1:1/2'"
        )
        retiring = asyncio.create_task(app.retire("versions:v1", timeout=1.0))
        await holds(
            lambda: other.fetchval("SELECT count(*) = 4 FROM strandline.shards WHERE seal = 20")
        )
        with pytest.raises(AnswerTimedOut):
            await retiring

        assert not await other.fetchval("SELECT count(seal) FROM strandline.shards")


async def test_a_version_far_behind_does_not_let_the_newest_stand_still(database_url: str) -> None:
    async with two_versions(database_url) as app, connected(database_url) as other:
        await fill(app, 20)
        await app.catch_up()
        await other.execute(
            "UPDATE strandline.shards SET position = 50000 WHERE name LIKE 'versions:v2:%'"
        )
        with pytest.raises(AnswerTimedOut):
            await app.retire("versions:v1", timeout=0.2)

        last = await other.fetch(
            "SELECT epoch FROM strandline.shards WHERE name LIKE 'versions:v2%'"
        )
        assert {row[0] for row in last} == {1}, "nobody has sealed it"


async def test_a_rebuild_in_place_gives_way_to_who_holds_a_shard(database_url: str) -> None:
    async with tally_app(database_url, **SOLO) as app, connected(database_url) as other:
        await fill(app, 20)
        await app.catch_up()
        batch = other.transaction()
        await batch.start()
        await other.execute(
            "SELECT FROM strandline.shards WHERE name = 'versions:v1:all' FOR UPDATE"
        )
        emptying = asyncio.create_task(app.rebuild("versions", in_place=True))
        await asyncio.wait({emptying}, timeout=1.0)
        await other.execute("SELECT FROM strandline.doc_versions_v1")  # in the other order
        await batch.rollback()
        await asyncio.wait_for(emptying, 5)
