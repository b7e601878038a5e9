"""Every connection for work is held by transactions that nobody ends: the cluster notices nothing."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path
from typing import Any

import pytest
from commands import run
from crowd import IS_LONG, LIMIT, Crowd, assert_exactly_once, soon, writing

pytestmark = pytest.mark.timeout(LIMIT)

HELD = 60.0 if IS_LONG else 6.0  # seconds; more than twice any ttl below
TTL = {"node_ttl": 1.6, "leader_ttl": 1.5, "leader_margin": 0.3}
POOL = {"work_connections": 3, "acquire_timeout": 0.5, "leak_after": 1.0}
MOVED = "versions:v1:all"
LEASE = "SELECT holder, epoch, renewals FROM strandline.leases WHERE name = 'leader'"
OWNED = "SELECT work, owner, epoch FROM strandline.assignments ORDER BY 1"
BAD = ("node_dead", "node_stalled", "leader_lost", "leader_acquired", "leader_resigned",
       "work_released", "work_claimed", "work_failed", "ownership_lost", "brake")  # fmt: skip
HOLDER = r"a transaction for \d+\.\d s.*tally_node\.py:\d+ in careless_report.*'a careless report'"


async def test_leaked_transactions_cost_no_lease_no_election_and_no_work(
    database_url: str, tmp_path: Path
) -> None:
    leaks = f"leaks={POOL['work_connections']} leak_seconds={HELD} leak_when={tmp_path}/leak"
    when = tmp_path / "leak"
    async with Crowd(database_url, tmp_path, **TTL) as crowd:
        async with writing(database_url, pause=0.05) as writers:
            await crowd.start("leaky", tally=leaks, **POOL, idle_transaction_timeout=HELD + 30)
            await soon(lambda: crowd.owned_by("leaky", work=3))
            await crowd.start("other")
            await soon(lambda: crowd.all_beyond(1))
            before = await state(crowd)
            when.touch()
            begun = time.monotonic()
            await soon(lambda: held(crowd))
            stood_at = await crowd.positions()
            while time.monotonic() - begun < HELD / 2:
                after = await state(crowd)
                assert after["owned"] == before["owned"]
                assert after["lease"][:2] == before["lease"][:2]
                assert after["states"] == {"leaky": "active", "other": "active"}
                assert after["bad"] == before["bad"]
                await writers.more(20)
            assert min(after["silent"]) >= 0  # nobody was ever due
            assert after["lease"][2] > before["lease"][2] + HELD  # renewed all the while
            assert await crowd.positions() == stood_at  # it was really held

            # the leader, whose pool is held, plans; it gives work away, and another goes on with it
            await asyncio.to_thread(run, database_url, "work", "pin", MOVED, "other")
            after_pin = await writers.more(5)
            await soon(lambda: is_beyond(crowd, MOVED, after_pin))
            assert (await crowd.owners())[MOVED] == "other"
            assert await held(crowd)
            assert "all reports ended" not in crowd.said("leaky")
            await soon(lambda: "all reports ended" in crowd.said("leaky"), timeout=HELD + 10)
        await assert_exactly_once(crowd)
        assert (await state(crowd))["bad"] == before["bad"] + 2  # released here, claimed there
        assert (await state(crowd))["lease"][:2] == before["lease"][:2]
        assert_the_holders_are_named(crowd.said("leaky"))
        assert crowd.counted("leaky", "strandline_leaked_transactions_total") == 3
        assert crowd.counted("leaky", "strandline_lease_lost_total") == 0


async def is_beyond(crowd: Crowd, shard: str, position: int) -> bool:
    return bool((await crowd.positions())[shard] >= position)


async def held(crowd: Crowd) -> bool:
    """Whether all connections for work are in transactions, and nothing else moves."""
    (count,) = await crowd.rows(
        """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
              AND state = 'idle in transaction' AND query LIKE '%a careless report%'"""
    )
    return bool(count[0] == POOL["work_connections"])


async def state(crowd: Crowd) -> dict[str, Any]:
    nodes = await crowd.rows(
        """SELECT name, state, extract(epoch FROM expires_at - clock_timestamp())::float8 AS left
             FROM strandline.nodes"""
    )
    return {
        "lease": tuple((await crowd.rows(LEASE))[0]),
        "owned": [tuple(one) for one in await crowd.rows(OWNED)],
        "states": {one["name"]: one["state"] for one in nodes},
        "silent": [one["left"] for one in nodes],
        "bad": len(await crowd.logged(*BAD)),
    }


def assert_the_holders_are_named(said: str) -> None:
    refused = re.findall(r"an append failed: PoolExhausted: .*", said)
    assert refused, said
    assert all("pool 'work' gave no connection within 0.5 s (3 of 3 in use" in o for o in refused)
    assert all(re.search(HOLDER, one) for one in refused), refused
    leaks = [one for one in said.splitlines() if "leak_after" in one]
    assert len(leaks) == POOL["work_connections"], said
    assert all("careless_report" in one and "a careless report" in one for one in leaks), leaks
