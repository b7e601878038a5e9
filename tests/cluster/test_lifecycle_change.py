"""A projection becomes asynchronous while processes with old code still append to it inline."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from crowd import IS_LONG
from kept import LABELS, assert_kept_exactly_once, kept_app, writer
from tally import connected, holds


@pytest.mark.parametrize("shards", [1, 3] if IS_LONG else [3])
async def test_inline_becomes_async_under_appends_by_old_and_new_code(
    database_url: str, tmp_path: Path, shards: int
) -> None:
    """Single-stream, multi-stream, table and Sql: every event once, whoever appended it."""
    async with connected(database_url) as operator:

        async def events() -> int:
            return await operator.fetchval("SELECT count(*) FROM strandline.events")

        async def more(number: int) -> None:
            wanted = await events() + number

            async def are_there() -> bool:
                return await events() >= wanted

            await holds(are_there, 60.0)

        async with AsyncExitStack() as old:
            for name, words in {"old": "inline", "older": "inline", "web": "sync inline"}.items():
                await old.enter_async_context(writer(database_url, tmp_path, name, *words.split()))
            await more(60)
            async with (
                writer(database_url, tmp_path, "new", "async", "node", f"shards={shards}"),
                writer(database_url, tmp_path, "newer", "async", "node", f"shards={shards}"),
            ):
                kept = dict(
                    await operator.fetch("SELECT label, lifecycle FROM strandline.lifecycles")
                )
                assert kept == dict.fromkeys(LABELS, "async")
                await more(150)
                await old.aclose()
                await more(60)
        changes = await operator.fetch("SELECT label, until FROM strandline.lifecycles")
        async with kept_app(database_url, "async", shards=shards) as app:
            await app.catch_up(timeout=60.0)
            number = await assert_kept_exactly_once(app, operator)
        assert all(60 <= row["until"] < number for row in changes), "in the middle of it"
        for name in ("old", "older", "web"):
            assert "Traceback" not in (tmp_path / f"{name}.log").read_text()


async def test_many_apps_that_open_at_once_agree_on_the_change(database_url: str) -> None:
    async with kept_app(database_url, "inline") as old, connected(database_url) as operator:
        for number in range(20):
            await old.append(f"s{number % 3}", _paid())
        apps = [kept_app(database_url, "async", mode="solo") for _ in range(8)]

        await asyncio.gather(
            *(one.open() for one in apps), *(old.append("s1", _paid()) for _ in range(20))
        )
        try:
            await old.append("s2", _paid())
            await apps[0].catch_up()
            assert await assert_kept_exactly_once(apps[0], operator) == 41
        finally:
            for one in apps:
                await one.close()


def _paid() -> object:
    from kinds import Paid

    return Paid("Ada", "Bo", 7)
