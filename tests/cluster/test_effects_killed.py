"""A node is killed again and again while its composite acts: each effect happens exactly once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from banking import Deposited, Thanked, bank_app, deposits
from tally import connected, holds

TESTS = Path(__file__).parents[1]


def started(url: str) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(TESTS), str(TESTS / "cluster")])
    return subprocess.Popen(
        [sys.executable, "-m", "strandline", "node", "effects_node:app"],
        env={
            **os.environ,
            "PYTHONPATH": path,
            "STRANDLINE_DATABASE_URL": url,
            "STRANDLINE_MODE": "solo",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


async def test_effects_of_a_node_that_is_killed_happen_exactly_once(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(TESTS / "cluster"))
    from effects_node import Acting

    app = bank_app(database_url, ("acting", Acting))
    async with app, connected(database_url) as operator:
        await operator.execute("CREATE TABLE public.raised (position bigint)")
        await deposits(app, 3_000)

        async def raised() -> int:
            count: int = await operator.fetchval("SELECT count(*) FROM public.raised")
            return count

        for round_ in range(1, 5):
            node = started(database_url)
            try:
                await holds(lambda wanted=round_ * 200: _beyond(raised, wanted), timeout=60)
            finally:
                node.send_signal(signal.SIGKILL)
                node.wait()
        assert await raised() < 3_000, "it was killed in the middle"
        await app.catch_up()

        stored = [event async for event in app.read_all(settled=False)]
        paid = [one.position for one in stored if isinstance(one.data, Deposited)]
        thanked = [one.data.position for one in stored if isinstance(one.data, Thanked)]
        rows = await operator.fetch("SELECT position FROM public.raised")
        assert sorted(row[0] for row in rows) == paid
        assert sorted(thanked) == paid
        for _, account in await app.query("accounts"):
            assert account.seen == list(range(2, len(account.seen) + 2))
        wanted = {name: one.balance for name, one in await app.query("accounts")}
        owners = [one.balances for _, one in await app.query("owners")]
        assert {name: one for some in owners for name, one in some.items()} == wanted


async def _beyond(count: Any, wanted: int) -> bool:
    return bool(await count() > wanted)
