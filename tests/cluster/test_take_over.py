"""Nodes in processes of their own that are killed or frozen: others take over, and nothing is wrong."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from commands import SHOP, execute, rows, started, until

import strandline as sl

ACCOUNTS = 5
OWNERS = """SELECT string_agg(DISTINCT n.name, ',') FROM strandline.assignments a
              LEFT JOIN strandline.nodes n ON n.id = a.owner"""


@pytest.fixture(autouse=True)
def shop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module ``cli_shop``."""
    monkeypatch.syspath_prepend(str(SHOP))
    sys.modules.pop("cli_shop", None)
    import cli_shop

    yield cli_shop
    sys.modules.pop("cli_shop", None)


@contextmanager
def two_nodes(url: str, **settings: Any) -> Iterator[tuple[Any, Any]]:
    """Two nodes, *first* and *second*; the first leads and owns everything."""
    environment = {f"STRANDLINE_{name.upper()}": str(value) for name, value in settings.items()}
    found: list[subprocess.Popen[str]] = []
    try:
        for name in ("first", "second"):
            given = {"STRANDLINE_NODE_NAME": name, "STRANDLINE_REBALANCE_AFTER": "3600"}
            found.append(started(url, "node", "cli_shop:app", **given, **environment))
            until(lambda: _states(url).get(name) == "active", timeout=60)
            until(lambda: owners(url) == "first", timeout=60)
        yield found[0], found[1]
    finally:
        for node in found:
            node.send_signal(signal.SIGCONT)
            node.kill()
            node.communicate()


def owners(url: str) -> str | None:
    """The names of all nodes that own work."""
    found: str | None = asyncio.run(execute(url, OWNERS))
    return found


def _states(url: str) -> dict[str, str]:
    return {row["name"]: row["state"] for row in rows(url, "nodes", "list")}


async def deposit(url: str, shop: Any) -> None:
    """Put 1, 2 and 3 into every account."""
    other = sl.App("filler", url)
    other.registry.types = shop.app.registry.types
    async with other:
        for number in range(ACCOUNTS):
            deposits = [shop.Deposited(amount) for amount in (1, 2, 3)]
            await other.append(f"account-{number}", deposits)


def assert_every_deposit_counts_once(url: str) -> None:
    """Every account has the sum of its deposits."""

    async def balances() -> Any:
        return await execute(
            url,
            """SELECT count(*) FROM strandline.doc_accounts_v2 d
                WHERE (d.data->>'balance')::int = (
                      SELECT sum((e.data->>'amount')::int) FROM strandline.events e
                       WHERE e.stream = d.id AND e.type = 'money-deposited')""",
        )

    assert asyncio.run(balances()) == ACCOUNTS


def caught_up(url: str) -> bool:
    found = {row["name"]: row for row in rows(url, "projections", "list", "cli_shop:app")}
    return all(found[name]["lag_events"] == 0 for name in ("accounts", "notifier"))


def test_the_work_of_a_killed_node_runs_elsewhere_within_a_second(
    database_url: str, shop: Any
) -> None:
    asyncio.run(shop.fill(database_url, ACCOUNTS))
    with two_nodes(database_url) as (first, _):
        first.kill()
        killed = time.monotonic()
        until(lambda: owners(database_url) == "second", timeout=60)
        seconds = time.monotonic() - killed

        asyncio.run(deposit(database_url, shop))
        until(lambda: caught_up(database_url), timeout=60)

    assert seconds < 1.0
    (gone,) = rows(database_url, "nodes", "show", "first")
    assert (gone["state"], gone["is_leader"]) == ("dead", False)
    assert_every_deposit_counts_once(database_url)


def test_a_frozen_node_that_wakes_up_writes_nothing_and_joins_again(
    database_url: str, shop: Any
) -> None:
    quick = {
        "pulse": "thread",
        "pulse_interval": 0.4,
        "pulse_deadline": 2.0,
        "node_ttl": 3.0,
        "leader_ttl": 2.5,
        "leader_margin": 0.5,
    }
    asyncio.run(shop.fill(database_url, ACCOUNTS))
    with two_nodes(database_url, **quick) as (first, _):
        until(lambda: caught_up(database_url), timeout=60)
        (before,) = rows(database_url, "nodes", "show", "first")
        first.send_signal(signal.SIGSTOP)
        until(lambda: owners(database_url) == "second", timeout=60)
        asyncio.run(deposit(database_url, shop))
        until(lambda: caught_up(database_url), timeout=60)

        first.send_signal(signal.SIGCONT)
        until(lambda: _states(database_url).get("first") == "active", timeout=60)
        asyncio.run(deposit(database_url, shop))
        until(lambda: caught_up(database_url), timeout=60)

        (after,) = rows(database_url, "nodes", "show", "first")
        (zombie,) = rows(database_url, "nodes", "show", before["id"])
        assert after["id"] != before["id"]
        assert zombie["state"] == "dead"
        assert first.poll() is None
    assert_every_deposit_counts_once(database_url)
