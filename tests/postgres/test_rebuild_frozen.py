"""Builds get on though a process is frozen that holds what they need: their row, a turn, a table."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from shadows import BALANCES, SNAPSHOT, assert_equals_the_fold, left_behind, rebuilder, sealed
from tally import connected, holds

from strandline.app import App
from strandline.daemon import breaker

SHADOW = '"strandline~1".doc_balances_v1'
LOCKED = "SELECT FROM strandline.rebuilds WHERE number = 1 FOR UPDATE"
TURN = """SELECT pg_advisory_xact_lock(
              hashtextextended('strandline compares build balances:v1~1 of strandline', 0))"""


@pytest.fixture(autouse=True)
def ended_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "SILENT", 0.2)


@asynccontextmanager
async def frozen(
    url: str, *done: str, within: str = "", application: str = "strandline work a"
) -> AsyncIterator[Any]:
    """A session that does nothing more: in a transaction that has *done* this, or *within* a statement."""
    session = await asyncpg.connect(url, server_settings={"application_name": application})
    for sql in ("BEGIN", *done) if done else ():
        await session.execute(sql)
    if within:
        await session.prepare(within)  # asyncpg asks for no end of it
    try:
        yield session
    finally:
        session.terminate()


async def swapped(app: App) -> None:
    """Take steps until the build is done."""
    steps = rebuilder(app)

    async def is_done() -> bool:
        await steps.step()
        return [one.state for one in await app.rebuilds()] == ["done"]

    await holds(is_done, timeout=5)


@pytest.mark.parametrize(
    "within",
    [f"SELECT data FROM {BALANCES}", f"DELETE FROM {BALANCES}", f"DELETE FROM {SHADOW}"],
)
async def test_a_swap_is_not_held_up_by_who_is_frozen_within_a_statement(
    database_url: str, within: str
) -> None:
    async with sealed(database_url) as app, frozen(database_url, within=within) as session:
        told: list[Any] = []
        app.signals.listen(lambda notice: told.append(notice))

        await swapped(app)

        await holds(session.is_closed)
        (ended,) = [one for one in told if one.name == "zombie_ended"]
        assert ended.facts["pid"] == session.get_server_pid()
        async with connected(database_url) as operator:
            entries = await operator.fetch(
                "SELECT work FROM strandline.node_log WHERE kind = 'zombie_ended'"
            )
        assert [entry["work"] for entry in entries] == ["balances:v1~1"]
        assert await left_behind(database_url) == {}
        await app.catch_up()
        await assert_equals_the_fold(app)


@pytest.mark.parametrize("within", ["", "SELECT 1"])
@pytest.mark.parametrize("application", ["strandline control a", "strandline work a"])
async def test_a_build_goes_on_though_its_row_is_held_by_who_is_frozen_in_a_step(
    database_url: str, application: str, within: str
) -> None:
    async with (
        sealed(database_url) as app,
        frozen(database_url, LOCKED, within=within, application=application) as session,
    ):
        await swapped(app)
        await holds(session.is_closed)


@pytest.mark.parametrize("within", ["", "SELECT 1"])
async def test_a_build_is_compared_though_who_has_the_turn_is_frozen(
    database_url: str, within: str
) -> None:
    async with sealed(database_url) as app, frozen(database_url, TURN, within=within) as session:
        async with connected(database_url) as operator:
            await operator.execute("UPDATE strandline.rebuilds SET purpose = 'verify'")
        await swapped(app)
        await holds(session.is_closed)


async def test_readers_and_whoever_is_at_work_are_not_ended(database_url: str) -> None:
    async with sealed(database_url) as app:
        run = app.pools.control.run
        async with (
            frozen(database_url, SNAPSHOT) as who_takes_time,
            frozen(database_url, within=SNAPSHOT, application="psql") as a_person,
            frozen(database_url, within="SELECT FROM strandline.events") as elsewhere,
        ):
            assert await run(breaker.end_silent([BALANCES, SHADOW], idle=0.0)) == []
            assert await run(breaker.end_steppers(1, "a turn", idle=0.0)) == []
            for session in (who_takes_time, a_person, elsewhere):
                assert not session.is_closed()
        async with frozen(database_url, LOCKED) as slow:
            working = asyncio.create_task(slow.execute("SELECT pg_sleep(0.5)"))
            await asyncio.sleep(0.1)
            assert await run(breaker.end_steppers(1, "a turn", idle=0.0)) == []
            await working
            assert await run(breaker.end_steppers(1, "a turn", idle=5.0)) == []


async def test_who_copies_rows_into_a_table_is_not_ended(database_url: str) -> None:
    async with sealed(database_url) as app, frozen(database_url) as copying:
        is_over = asyncio.Event()

        async def rows() -> AsyncIterator[bytes]:
            await is_over.wait()
            yield b""

        copied = asyncio.create_task(
            copying.copy_to_table("doc_balances_v1", schema_name="strandline", source=rows())
        )
        async with connected(database_url) as operator:
            await holds(lambda: waits_for_rows(operator))
        assert await app.pools.control.run(breaker.end_silent([BALANCES], idle=0.0)) == []
        is_over.set()
        await copied


async def waits_for_rows(operator: Any) -> bool:
    return bool(
        await operator.fetchval(
            """SELECT count(*) FROM pg_stat_activity
                WHERE query LIKE 'COPY %' AND wait_event = 'ClientRead' AND state = 'active'
                  AND datname = current_database()"""
        )
    )
