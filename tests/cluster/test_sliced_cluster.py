"""Projections cut into shards over several nodes; capacity, labels, and who may never lead."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from commands import rows as told_by
from crowd import Crowd, assert_exactly_once, soon, writing

SPREAD = {"rebalance_after": 0.3, "rebalance_interval": 0.5, "moves_per_round": 1.0}


async def shares(crowd: Crowd) -> Counter[str | None]:
    """How many shards each node has claimed."""
    return Counter((await crowd.runners()).values())


async def spread_over(crowd: Crowd, **wanted: int) -> bool:
    return await shares(crowd) == Counter(wanted)


async def test_shards_of_a_killed_node_are_gone_on_with_by_the_others(
    database_url: str, tmp_path: Path
) -> None:
    async with Crowd(database_url, tmp_path, **SPREAD) as crowd:
        async with writing(database_url, streams=20) as writers:
            await crowd.start("a", "b", "c", tally="shards=4")
            await soon(lambda: evenly(crowd))
            after = await writers.more(50)
            await soon(lambda: crowd.all_beyond(after))
            assert {len(one) for one in (await slices(crowd)).values()} == {4}

            victim = await crowd.leader()
            assert victim is not None
            crowd.nodes[victim].kill()
            rest = {"a", "b", "c"} - {victim}
            await soon(lambda: crowd.owned_by(*rest, work=9))
            after = await writers.more(50)
            await soon(lambda: crowd.all_beyond(after))
        await assert_exactly_once(crowd, shards=4)
        for name in rest:
            assert crowd.counted(name, "strandline_ownership_lost_total") == 0


async def evenly(crowd: Crowd) -> bool:
    found = await shares(crowd)
    return sorted(found.values()) == [2, 3, 3] and None not in found


async def slices(crowd: Crowd) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for shard in await crowd.positions():
        label, _, part = shard.rpartition(":")
        found.setdefault(label, set()).add(part)
    return found


async def test_a_node_gets_its_share_and_who_may_never_lead_never_does(
    database_url: str, tmp_path: Path
) -> None:
    eight = "shards=8"
    async with Crowd(database_url, tmp_path, **SPREAD) as crowd:
        async with writing(database_url, streams=20) as writers:
            big = await crowd.add("big", tally=eight, node_capacity=2, leader_priority=-1)
            small = await crowd.add("small", tally=eight, mode="follower", node_labels="ssd, west")
            for node in (big, small):
                await node.until("active", timeout=30)
            after = await writers.more(50)
            assert await crowd.leader() is None
            assert set(await shares(crowd)) <= {None}  # nobody says who runs what

            await crowd.start("boss", tally=eight)
            await soon(lambda: spread_over(crowd, big=8, small=4, boss=4))
            assert await crowd.leader() == "boss"
            await soon(lambda: crowd.all_beyond(after))

            crowd.nodes["boss"].kill()
            await soon(lambda: no_lease(crowd))
            stood_at = await crowd.positions()
            runners = await crowd.runners()
            await writers.more(100)
            await soon(lambda: those_of_the_living_move(crowd, stood_at, runners))
            assert await crowd.leader() is None
            assert await crowd.runners() == runners

            await crowd.start("boss-2", tally=eight)
            await soon(lambda: spread_over(crowd, **{"big": 8, "small": 4, "boss-2": 4}))
        await assert_exactly_once(crowd, shards=8)
        led = {one["name"] for one in await crowd.logged("leader_acquired")}
        assert led == {"boss", "boss-2"}
        rows = await asyncio.to_thread(told_by, database_url, "nodes", "list")
        listed = {one["name"]: one for one in rows}
        assert {"ssd", "west", "versions:v1", "positions:v1"} <= set(listed["small"]["labels"])
        assert (listed["big"]["capacity"], listed["small"]["mode"]) == (2, "follower")


async def no_lease(crowd: Crowd) -> bool:
    return (
        await crowd.one("SELECT holder FROM strandline.leases WHERE name = 'leader'")
    ) is None and await crowd.one("SELECT state = 'dead' FROM strandline.nodes WHERE name = 'boss'")


async def those_of_the_living_move(
    crowd: Crowd, before: dict[str, int], runners: dict[str, str | None]
) -> bool:
    """Unless the detector of the mark died with the leader: without it nobody has anything to do."""
    now = await crowd.positions()
    alive = [one for one, name in runners.items() if name != "boss"]
    detector = (await crowd.owners())["high-water"]
    return detector == "boss" or all(now[one] > before[one] for one in alive)
