"""Read models are built again in the shadow, while they serve."""

from __future__ import annotations

import asyncio
import random

import pytest
from shadows import (
    BALANCES,
    Moved,
    Rules,
    assert_equals_the_fold,
    ledger,
    left_behind,
    move,
    reading,
    rebuilder,
    states,
    until_state,
)
from tally import connected, holds

from strandline.errors import (
    AnswerTimedOut,
    ApplyFailed,
    InvalidDefinition,
    InvalidInput,
    RebuildCancelled,
    RebuildFailed,
    RebuildUnderWay,
)

MODES = pytest.mark.parametrize("mode", ["solo", "cluster"])


async def is_clean(url: str) -> bool:
    return not await left_behind(url)


@MODES
async def test_a_rebuild_makes_the_same_documents_again_and_leaves_nothing_behind(
    database_url: str, mode: str
) -> None:
    async with ledger(database_url, mode=mode) as app, connected(database_url) as operator:
        last = await move(app, 400)
        await app.start()
        await app.wait_for(last)
        await operator.execute(
            f"""UPDATE {BALANCES} SET data = data || '{{"amount": 77}}' WHERE id = 'a1'"""
        )
        untouched = "SELECT tableoid, xmin, id FROM strandline.doc_moves_v1 ORDER BY id"
        before = await operator.fetch(untouched)

        done = await app.rebuild("balances", timeout=20)

        assert (done.state, done.position) == ("done", last)
        await assert_equals_the_fold(app)
        assert await operator.fetch(untouched) == before
        await holds(lambda: is_clean(database_url))
        await app.wait_for(await move(app, 100))
        await app.rebuild("balances", timeout=20, parts=3)
        await assert_equals_the_fold(app)
        assert [one.number for one in await app.rebuilds()] == [1, 2]


@MODES
async def test_readers_never_see_nothing_or_a_mixture_while_appends_go_on(
    database_url: str, mode: str
) -> None:
    async with ledger(database_url, mode=mode) as app:
        await move(app, 600)
        await app.catch_up()
        await app.start()
        over = asyncio.Event()

        async def write() -> int:
            last = 0
            while not over.is_set():
                last = await move(app, 10)
                await asyncio.sleep(0.02)  # the two share two cores with everything else
            return last

        async with reading(database_url) as reader:
            writers = [asyncio.create_task(write()) for _ in range(2)]
            try:
                for parts in (1, 3):
                    before = reader.reads
                    await app.rebuild("balances", timeout=30, parts=parts)
                    await holds(lambda before=before: reader.reads > before + 20)
            finally:
                over.set()
                last = max(await asyncio.gather(*writers))
            await app.wait_for(last)
            seen = 2 * last
            await holds(lambda: reader.moves == seen)
        await assert_equals_the_fold(app)
        assert reader.longest < 1.0


@MODES
async def test_an_empty_log_is_rebuilt_as_well(database_url: str, mode: str) -> None:
    async with ledger(database_url, mode=mode) as app:
        done = await app.rebuild("balances", timeout=20)  # becomes a node for so long

        assert (done.state, done.position) == ("done", 0)
        assert not app.is_running
        await app.catch_up()
        await move(app, 20)
        await app.catch_up()
        await assert_equals_the_fold(app)


async def test_gaps_at_the_start_and_the_end_do_not_matter(database_url: str) -> None:
    async with ledger(database_url, mode="solo") as app, connected(database_url) as operator:
        await move(app, 60)
        await operator.execute("DELETE FROM strandline.events WHERE position <= 7")
        await operator.execute(
            "DELETE FROM strandline.events WHERE position BETWEEN 20 AND 29 OR position > 55"
        )
        await app.start()
        done = await app.rebuild("balances", timeout=20)

        assert done.position >= 55
        found = dict(await app.query("balances"))
        assert sum(one.moves for one in found.values()) == 2 * (60 - 7 - 10 - 5)


async def test_changed_rules_are_seen_from_the_swap_on_and_not_before(database_url: str) -> None:
    async with ledger(database_url, mode="solo") as app:
        await move(app, 200)
        await app.catch_up()
        await assert_equals_the_fold(app, rules=1)
    async with ledger(database_url, mode="solo", rules=Rules(number=2)) as app:
        await app.start()
        async with reading(database_url) as reader:
            await app.rebuild("balances", timeout=20)
            before = reader.reads
            await holds(lambda: reader.reads > before)
        await assert_equals_the_fold(app, rules=2)


@MODES
async def test_a_poison_event_pauses_the_build_with_a_reason_and_what_serves_goes_on(
    database_url: str, mode: str
) -> None:
    rules = Rules()
    async with ledger(database_url, mode=mode, rules=rules) as app:
        await move(app, 30)
        poison = await app.append("s0", Moved("a1", "a2", 666))
        await app.start()
        await app.wait_for(poison.position)
        rules.poison.add(666)

        with pytest.raises(ApplyFailed, match=r"balances:v1~1:all pauses.*666") as failed:
            await app.rebuild("balances", timeout=20)

        assert failed.value.position == poison.position
        (told,) = await app.rebuilds()
        assert (told.state, told.shards[0].state) == ("building", "paused")
        assert "666" in told.shards[0].reason
        last = await move(app, 20)
        await app.wait_for(last)
        assert sum(one.moves for _, one in await app.query("balances")) == 2 * (31 + 20)
        with pytest.raises(RebuildUnderWay):
            await app.rebuild("balances")

        rules.poison.clear()
        await holds(lambda: has_state(app, "done"), timeout=20)
        await assert_equals_the_fold(app)


async def has_state(app: object, state: str) -> bool:
    return (await states(app))[-1] == state  # type: ignore[arg-type]


@pytest.mark.parametrize("on_error", ["skip", "park"])
async def test_what_a_build_puts_aside_are_the_letters_of_what_serves_after_the_swap(
    database_url: str, on_error: str
) -> None:
    rules = Rules()
    async with ledger(database_url, mode="solo", rules=rules) as app, connected(database_url) as op:
        await move(app, 30)
        await app.append("s0", Moved("a1", "a2", 666))
        await app.catch_up()
        rules.poison.add(666)
        await app.rebuild("balances", timeout=20, on_error=on_error)

        letters = await op.fetch(
            "SELECT label, shard, key, status, category FROM strandline.dead_letters"
        )
        status = {"skip": "skipped", "park": "parked"}[on_error]
        assert [tuple(row) for row in letters] == [
            ("balances:v1", "balances:v1:all", "a1", status, "apply")
        ]
        rules.poison.clear()
        await app.rebuild("balances", timeout=20)
        assert await op.fetchval("SELECT status FROM strandline.dead_letters") == "superseded"
        await assert_equals_the_fold(app)


# ---- cancelled


@pytest.mark.parametrize("state", ["queued", "building", "sealed"])
async def test_a_build_that_is_cancelled_in_any_state_leaves_nothing_behind(
    database_url: str, state: str
) -> None:
    async with ledger(database_url, mode="solo", page_events=1000) as app:
        last = await move(app, 100)
        await app.catch_up()
        await app.rebuild("balances", wait=False, parts=2)
        if state != "queued":
            await until_state(app, rebuilder(app), state)

        assert await app.cancel_rebuild("balances", reason="a mistake")

        assert await left_behind(database_url) == {}
        assert [(one.state, one.reason) for one in await app.rebuilds()] == [
            ("cancelled", "a mistake")
        ]
        assert not await app.cancel_rebuild("balances")
        assert {one.position for one in await app.progress()} == {last}
        await move(app, 10)
        await app.catch_up()
        await assert_equals_the_fold(app)
        await app.rebuild("balances", timeout=20)
        await assert_equals_the_fold(app)


@MODES
async def test_a_build_may_be_cancelled_at_any_moment(database_url: str, mode: str) -> None:
    async with ledger(database_url, mode=mode) as app:
        await move(app, 2000)
        await app.catch_up()
        await app.start()
        cancelled = 0
        for number in range(12):
            waiting = asyncio.create_task(app.rebuild("balances", timeout=20, parts=2))
            await asyncio.sleep(random.Random(number).uniform(0.0, 0.5))  # the moment, any
            was_there = await app.cancel_rebuild("balances")
            try:
                await waiting
                assert not was_there
            except RebuildCancelled:
                cancelled += 1
            await assert_equals_the_fold(app)
        assert cancelled
        await holds(lambda: is_clean(database_url))
        await app.wait_for(await move(app, 20))
        await assert_equals_the_fold(app)


# ---- how many, and who


async def test_no_more_builds_are_under_way_than_may_be(database_url: str) -> None:
    async with (
        ledger(database_url, mode="solo") as app,
        ledger(database_url, mode="solo") as other,
    ):
        await move(app, 50)
        await app.catch_up()
        for _ in range(8):
            for name in ("balances", "moves"):
                await app.rebuild(name, wait=False)
            first, second = (rebuilder(one, rebuilds_at_once=1) for one in (app, other))
            await asyncio.gather(first.step(), second.step())
            under_way = [one.state for one in await app.rebuilds(ended=0)]
            assert under_way.count("queued") >= 1, under_way
            await asyncio.gather(first.step(), second.step(), first.step())
            under_way = [one.state for one in await app.rebuilds(ended=0)]
            assert under_way.count("queued") == 1, under_way
            for name in ("balances", "moves"):
                await app.cancel_rebuild(name)
        await app.start()
        done = await asyncio.gather(
            *(app.rebuild(name, timeout=20) for name in ("balances", "moves"))
        )
        assert [one.state for one in done] == ["done", "done"]


async def test_several_may_take_steps_at_once(database_url: str) -> None:
    async with (
        ledger(database_url, mode="solo") as app,
        ledger(database_url, mode="solo") as other,
    ):
        await move(app, 100)
        await app.start()
        over = asyncio.Event()

        async def take(steps: object) -> None:
            while not over.is_set():
                await steps.step()  # type: ignore[attr-defined]

        taking = [asyncio.create_task(take(rebuilder(one))) for one in (app, other, other)]
        try:
            for _ in range(5):
                await app.rebuild("balances", timeout=20, parts=2)
                await assert_equals_the_fold(app)
        finally:
            over.set()
            await asyncio.gather(*taking)
        assert await states(app) == ["done"] * 5


async def test_a_seal_whose_node_is_gone_is_taken_up_by_another(database_url: str) -> None:
    async with ledger(database_url, mode="cluster", page_events=1000) as app:
        await move(app, 100)
        await app.catch_up()
        await app.rebuild("balances", wait=False, parts=2)
        await until_state(app, rebuilder(app), "sealed")
    async with ledger(database_url, mode="cluster") as other:
        await move(other, 30)  # beyond the seal
        await other.start()
        await holds(lambda: has_state(other, "done"), timeout=20)
        await other.catch_up()
        await assert_equals_the_fold(other)
        await holds(lambda: is_clean(database_url))


async def test_a_build_of_code_that_is_gone_says_so_and_can_be_cancelled(database_url: str) -> None:
    async with ledger(database_url, mode="cluster") as app:
        await app.catch_up()
        await app.rebuild("balances", wait=False)
        await until_state(app, rebuilder(app), "building")
    from strandline.app import App

    async with App("ledger", database_url, **{**app_settings(), "mode": "cluster"}) as bare:
        await bare.start()
        told = await holds(lambda: reason_of(bare))
        assert "no node" in told
        assert await bare.cancel_rebuild("balances:v1")
        assert await left_behind(database_url) == {}


async def reason_of(app: object) -> str:
    return "".join(one.reason for one in await app.rebuilds())  # type: ignore[attr-defined]


def app_settings() -> dict[str, object]:
    from shadows import QUICK

    return QUICK


# ---- refused


async def test_what_cannot_be_rebuilt_is_refused_with_words(database_url: str) -> None:
    from strandline.app import App
    from strandline.projections.sql_projection import Sql, Statements, execute

    app = ledger(database_url, mode="solo")

    @app.projection("own")
    class Own(Sql):
        setup = "CREATE TABLE IF NOT EXISTS own (id bigint)"
        reset = "TRUNCATE own"

        @execute
        def moved(self, event: Moved, sql: Statements) -> None:
            sql("INSERT INTO own VALUES (1)")

    assert isinstance(app, App)
    async with app:
        await move(app, 20)
        await app.catch_up()
        for wrong in ({"on_error": "ignore"}, {"parts": 0}, {"in_place": True, "tenant": "x"}):
            with pytest.raises(InvalidInput):
                await app.rebuild("balances", **wrong)
        await app.start()
        with pytest.raises(RebuildFailed, match="in_place=True"):
            await app.rebuild("own", timeout=20)
        await app.rebuild("own", in_place=True)
        await app.catch_up()
        assert await app.pools.work.run(count("own")) == 20


def count(table: str):  # type: ignore[no-untyped-def]
    from strandline.postgres.operations import Call
    from strandline.postgres.statements import verbatim

    rows = yield Call(verbatim(f"SELECT count(*) FROM {table}"), ())
    return rows[0][0]


async def test_inline_and_live_projections_are_not_rebuilt(database_url: str) -> None:
    from tally import Versions, tally_app

    async with tally_app(database_url, lifecycle="inline", mode="solo") as app:
        with pytest.raises(InvalidDefinition, match="inline"):
            await app.rebuild(Versions)


async def test_nobody_builds_and_the_wait_ends(database_url: str) -> None:
    async with ledger(database_url, mode="cluster") as app:
        await app.catch_up()
        build = await app.request_build("balances:v1")
        with pytest.raises(AnswerTimedOut, match="not ended"):
            await app.ended_build(build, timeout=0.2)
