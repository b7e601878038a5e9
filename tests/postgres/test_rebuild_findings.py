"""Rebuilds: what a review has found."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import banking
import pytest
from build_steps import SOLO, UNDECODABLE, built, is_waiting, state_of
from shadows import ledger, move, rebuilder, until_state
from tally import Positions, Ticked, Versions, connected, fill, holds, tally_app

import strandline as sl
from strandline.app import versions
from strandline.daemon import exchange, rebuilds, retiring
from strandline.daemon import rebuilder as rebuilding
from strandline.daemon.scope import Scope
from strandline.errors import (
    ConflictError,
    StrandlineError,
)
from strandline.jobs.part import JobShare
from strandline.postgres.embedded import Embedded, EmbeddedServer
from strandline.projections.slice import WHOLE
from strandline.projections.table_declaration import Table
from strandline.projections.table_rules import column, count, on

# ---- the swap


async def test_what_serves_goes_on_when_the_swap_takes_longer_than_a_statement_may(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuilding, "SEALED_AT_MOST", 1.0)
    settings = {"mode": "solo", "page_events": 1000, "statement_timeout": 1.0}
    async with ledger(database_url, **settings) as app, connected(database_url) as other:
        mark = await move(app, 100)
        await app.catch_up()
        await app.rebuild("balances", keys=["a1"], wait=False)
        steps = rebuilder(app)
        build = await until_state(app, steps, "sealed")
        await built(app, build, mark)
        await other.execute(
            """CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS
               $$ BEGIN PERFORM pg_sleep(3); RETURN new; END $$;
               CREATE TRIGGER slow BEFORE INSERT ON strandline.doc_balances_v1
                  FOR EACH ROW EXECUTE FUNCTION slowly()"""
        )

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(6):
                while await state_of(app) == "sealed":
                    await steps.step()
                    await asyncio.sleep(0.05)

        assert await state_of(app) != "sealed", "what serves stands still for ever"


async def test_a_part_whose_build_skips_an_event_that_live_has_skipped_is_exchanged(
    database_url: str,
) -> None:
    """Nobody knows the key of the event, so both have a letter of the same empty key."""
    async with tally_app(database_url, **SOLO) as app, connected(database_url) as other:
        await app.start()
        await fill(app, 10)
        await other.execute(UNDECODABLE)
        last = await fill(app, 10)
        await app.wait_for(last)
        assert [one.key for one in await app.letters.list("positions")] == [""]

        done = await app.rebuild(Positions, keys=["1"], on_error="skip", timeout=8)

        assert done.state == "done"


async def test_letters_are_superseded_in_the_order_in_which_operators_take_them(
    database_url: str,
) -> None:
    async with tally_app(database_url, **SOLO) as app, connected(database_url) as other:
        for key in ("b", "a"):
            await other.execute(
                """INSERT INTO strandline.dead_letters
                          (label, shard, tenant, key, position, stream, version, type, status)
                   VALUES ('x:v1', 'x:v1:all', 't', $1, 1, $1, 1, 'ticked', 'parked')""",
                key,
            )
        operator = other.transaction()
        await operator.start()  # discards both: a first, then b
        await other.execute("SELECT FROM strandline.dead_letters WHERE key = 'a' FOR UPDATE")

        async def supersede() -> None:
            async with app.pools.work.transaction() as session:
                await session.run(exchange.supersede("x:v1", Scope(), "read past"))

        swap = asyncio.create_task(supersede())
        await holds(lambda: is_waiting(database_url))
        await other.execute("SELECT FROM strandline.dead_letters WHERE key = 'b' FOR UPDATE NOWAIT")
        await operator.rollback()
        await swap


@pytest.fixture
def tidy_server() -> Iterator[EmbeddedServer]:
    """A server whose autovacuum comes at once, and is slow."""
    base = Path(tempfile.mkdtemp(prefix="strandline-", dir="/tmp"))
    base.chmod(0o755)
    options = {"autovacuum_naptime": "1s", "shared_buffers": "32MB", "autovacuum": "on"}
    embedded = Embedded(base / "server", durable=False, options=options)
    try:
        yield embedded.start()
    finally:
        embedded.stop()
        shutil.rmtree(base, ignore_errors=True)


async def test_an_autovacuum_of_the_table_does_not_keep_the_swap_waiting(
    tidy_server: EmbeddedServer,
) -> None:
    """It gives way to whoever waits for deadlock_timeout; the swap never waits for that long."""
    url = tidy_server.url
    async with ledger(url, mode="solo") as app, connected(url) as other:
        await move(app, 100)
        await app.start()
        await app.catch_up()
        await other.execute(
            """ALTER TABLE strandline.doc_balances_v1 SET (autovacuum_vacuum_threshold = 1,
                   autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_cost_delay = 100,
                   autovacuum_vacuum_cost_limit = 1);
               INSERT INTO strandline.doc_balances_v1
               SELECT 'other', n::text, '{}', 1, 1 FROM generate_series(1, 40000) AS n;
               DELETE FROM strandline.doc_balances_v1 WHERE tenant = 'other'"""
        )
        await holds(lambda: is_vacuumed(url), timeout=20)

        done = await app.rebuild("balances", timeout=8)

        assert done.state == "done"


async def is_vacuumed(url: str, table: str = "doc_balances") -> bool:
    async with connected(url) as look:
        found = await look.fetchval(
            """SELECT count(*) FROM pg_stat_activity
                WHERE backend_type = 'autovacuum worker' AND query LIKE '%' || $1 || '%'""",
            table,
        )
    return bool(found)


async def test_an_autovacuum_of_streams_does_not_keep_an_app_from_opening(
    tidy_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "SETTLED_WITHIN", 6.0)
    url = tidy_server.url
    async with tally_app(url, **SOLO) as app, connected(url) as other:
        await fill(app, 20)
        await app.catch_up()
        await other.execute(
            """ALTER TABLE strandline.streams SET (autovacuum_vacuum_threshold = 1,
                   autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_cost_delay = 100,
                   autovacuum_vacuum_cost_limit = 1);
               INSERT INTO strandline.streams (tenant, id, version, expected)
               SELECT 'other', n::text, 1, 0 FROM generate_series(1, 40000) AS n;
               DELETE FROM strandline.streams WHERE tenant = 'other'"""
        )
        await holds(lambda: is_vacuumed(url, "strandline.streams"), timeout=20)

        async with tally_app(url, lifecycle="inline", **SOLO) as inline:
            assert len(await inline.query(Versions)) == 2


async def test_a_comparison_that_fails_says_why(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: Any) -> Any:
        raise RuntimeError("a key that has no order")
        yield

    monkeypatch.setattr(rebuilding, "compare", fails)
    async with ledger(database_url, mode="solo") as app:
        await move(app, 20)
        with pytest.raises(StrandlineError):
            await app.verify("balances", timeout=3)

        assert "no order" in (await app.rebuilds())[-1].reason


@pytest.mark.parametrize("tenant", ["o'x\\y", "{schema}", "{slice}%s$1", "a\u00e9\U0001f600"])
async def test_rows_of_tenants_with_odd_names_are_rebuilt(database_url: str, tenant: str) -> None:
    app = tally_app(database_url, **SOLO)

    @app.projection("counts")
    class Counts(Table):
        number = column(int, key="number")
        times = column(int, default=0)
        rules = (on(Ticked, times=count()),)

    async with app, connected(database_url) as other:
        for one in (tenant, "default"):
            await app.append("s", [Ticked(1), Ticked(1), Ticked(2)], tenant=one)
        await app.catch_up()
        await other.execute("UPDATE strandline.table_counts_v1 SET times = 9")
        done = await app.rebuild("counts", tenant=tenant, timeout=8)

        assert done.state == "done"
        assert sorted(row.times for row in await app.rows("counts", tenant=tenant)) == [1, 2]
        await app.rebuild("counts", keys=["[1]"], timeout=8)
        assert sorted(row.times for row in await app.rows("counts")) == [2, 9]


async def test_a_row_is_meant_however_its_name_is_spaced(database_url: str) -> None:
    app = tally_app(database_url, **SOLO)

    @app.projection("pairs")
    class Pairs(Table):
        number = column(int, key="number")
        twice = column(int, key="number")
        times = column(int, default=0)
        rules = (on(Ticked, times=count()),)

    async with app, connected(database_url) as other:
        await app.append("s", [Ticked(1), Ticked(1)])
        await app.catch_up()
        await other.execute("UPDATE strandline.table_pairs_v1 SET times = 9")
        await app.rebuild("pairs", keys=["[1,1]"], timeout=8)

        assert [row.times for row in await app.rows("pairs")] == [2]


# ---- steps of what is there no more


async def test_a_build_of_a_label_that_is_retired_meanwhile_ends(database_url: str) -> None:
    app = tally_app(database_url, **SOLO)
    app.projection("versions", version=2)(Versions)
    async with app:
        await fill(app, 20)
        await app.catch_up()
        steps = rebuilder(app)
        refused: list[str] = []
        app.signals.listen(
            lambda notice: notice.name == "rebuild" and refused.append(notice.facts["state"])
        )
        async with app.pools.control.transaction() as session:
            op = retiring.bury(
                "versions:v1", schema="strandline", channel="x", checkpoints="y", force=True
            )
            await session.run(op)
            await app.rebuild("versions:v1", wait=False)
            begins = asyncio.create_task(steps.step())
            await holds(lambda: is_waiting(database_url))
        await begins
        steps.start()
        try:
            await asyncio.sleep(1.0)
        finally:
            await steps.stop(timeout=2)

        assert await state_of(app) in ("failed", "cancelled")
        assert refused.count("refused") < 5, f"tried {refused.count('refused')} times in a second"


async def test_a_number_that_comes_again_after_a_fail_over_is_another_build(
    database_url: str,
) -> None:
    async with ledger(database_url, mode="solo") as app, connected(database_url) as other:
        await move(app, 20)
        await app.catch_up()
        builds = app._make_node(set(), lambda error: None, JobShare.NONE).daemon._builds
        await app.rebuild("balances", keys=["a1"], wait=False)
        await builds.learn("balances:v1~1")

        await other.execute(
            """DELETE FROM strandline.rebuilds;
               ALTER TABLE strandline.rebuilds ALTER COLUMN number RESTART"""
        )
        await app.rebuild("balances", wait=False)
        await builds.learn("balances:v1~1")

        found = builds["balances:v1~1"]
        assert found is not None
        assert found.make(WHOLE).appetite.tenant is None, "all of it is to be built"


async def test_a_reason_that_is_told_late_does_not_undo_a_step(database_url: str) -> None:
    """Told by a node of the cluster without code of it, while e.g. a node in mode solo builds it."""
    async with ledger(database_url, mode="solo") as app:
        mark = await move(app, 20)
        await app.catch_up()
        await app.rebuild("balances", wait=False)
        build = await until_state(app, rebuilder(app), "building")
        await built(app, build, mark)
        stranger = rebuilding.Rebuilder(
            app.pools, app.settings, app.signals, {}, on_step=str, on_news=str
        )
        async with app.pools.control.transaction() as session:
            assert await session.run(rebuilds.lock(build.number))
            assert await session.run(rebuilds.seal(build, near=0))
            telling_ = asyncio.create_task(stranger._tell_unknown())
            with contextlib.suppress(TimeoutError):
                await holds(lambda: telling_.done() or is_waiting(database_url), timeout=2)
        await telling_

        assert await state_of(app) == "sealed", "what serves stays sealed, and nobody opens it"


async def test_side_effects_of_an_event_that_was_put_aside_do_not_get_lost_in_a_rebuild(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What serves has not raised them, and the build that reads past the letter raises none."""
    raised: list[int] = []

    class Thanking(banking.Accounts):
        @sl.effects
        async def thanked(self, changes: Any, tx: Any) -> None:
            raised.extend(
                event.position for change in changes for event in change.of(banking.Deposited)
            )

    app = banking.bank_app(database_url, ("accounts", Thanking), mode="solo", page_events=1000)
    monkeypatch.setattr(banking.Limits, "hold", True)
    async with app:
        await app.start()
        await app.append("a", [banking.Opened("Ada"), banking.Deposited(1)])
        poison = (await app.append("a", banking.Deposited(-1))).position
        await app.wait_for(poison)
        assert len(await app.letters.list("accounts")) == 1
        monkeypatch.setattr(banking.Limits, "hold", False)
        with contextlib.suppress(StrandlineError):  # to refuse it is as good
            await app.rebuild("accounts", timeout=8)
        if await app.letters.list("accounts"):
            await app.letters.retry(projection="accounts")
        with contextlib.suppress(TimeoutError):
            await holds(lambda: poison in raised, timeout=2)

        assert poison in raised


async def test_side_effects_of_an_event_that_is_put_aside_during_a_build_keep_the_swap_waiting(
    database_url: str,
) -> None:
    class Thanking(banking.Accounts):
        @sl.effects
        async def thanked(self, changes: Any, tx: Any) -> None: ...

    app = banking.bank_app(database_url, ("accounts", Thanking), mode="solo")
    async with app, connected(database_url) as other:
        mark = (await app.append("a", [banking.Opened("Ada"), banking.Deposited(1)])).position
        await app.catch_up()
        await app.rebuild("accounts", wait=False)
        steps = rebuilder(app)
        build = await until_state(app, steps, "building", "accounts:v1")
        await built(app, build, mark)
        await until_state(app, steps, "sealed", "accounts:v1")
        await other.execute(
            """INSERT INTO strandline.dead_letters
                      (label, shard, tenant, key, position, stream, version, type, status)
               VALUES ('accounts:v1', 'accounts:v1:all', 'default', 'a', 2, 'a', 2, 'deposited', 'parked')"""
        )
        while await state_of(app) == "sealed":
            await steps.step()

        found = (await app.rebuilds())[-1]
        assert (found.state, "retry or discard" in found.reason) == ("building", True)
        with pytest.raises(ConflictError, match="retry or discard"):
            await app.rebuild("accounts", wait=False)
