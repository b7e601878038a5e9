"""Two versions of a projection on old and new nodes: each runs only where its code is."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from commands import rows as told_by
from crowd import Crowd, assert_exactly_once, soon, writing

OLD, NEW = "versions:v1:all", "versions:v2:all"


async def runs(crowd: Crowd, work: str, name: str | None) -> bool:
    return (await crowd.owners()).get(work, "") == name


async def test_each_version_runs_only_on_nodes_that_know_it_and_waits_for_one(
    database_url: str, tmp_path: Path
) -> None:
    async with Crowd(database_url, tmp_path) as crowd:
        async with writing(database_url, pause=0.05) as writers:
            await crowd.start("old")
            await crowd.start("new", "newer", tally="version=2", leader_priority=-1)
            await soon(lambda: runs(crowd, OLD, "old"))
            await soon(lambda: new_is_placed(crowd))
            after = await writers.more(20)
            await soon(lambda: crowd.all_beyond(after))

            crowd.nodes["old"].kill()
            await crowd.start("leader", tally="version=2")
            await soon(lambda: unplaced(crowd))
            stood_at = (await crowd.positions())[OLD]
            after = await writers.more(20)
            await soon(lambda: others_beyond(crowd, after))
            assert (await crowd.positions())[OLD] == stood_at
            await assert_it_is_told(crowd)

            await crowd.start("older", leader_priority=-1)
            await soon(lambda: runs(crowd, OLD, "older"))
        await assert_exactly_once(crowd)
        await assert_exactly_once(crowd, version=2)
        assert await who_claimed(crowd, OLD) == {"old", "older"}
        assert await who_claimed(crowd, NEW) <= {"new", "newer", "leader"}
        assert not await listed_unplaced(crowd)


async def listed_unplaced(crowd: Crowd) -> list[dict[str, Any]]:
    return await asyncio.to_thread(told_by, crowd.url, "work", "list", "--unplaced")


async def new_is_placed(crowd: Crowd) -> bool:
    return (await crowd.owners()).get(NEW) in ("new", "newer")


async def unplaced(crowd: Crowd) -> bool:
    target = await crowd.one("SELECT target FROM strandline.assignments WHERE work = $1", OLD)
    return target is None and bool(await told_plans(crowd))


async def told_plans(crowd: Crowd) -> list[Any]:
    """Entries of plans that say that the old version has no node."""
    return [one for one in await crowd.logged("plan") if OLD in str(one["detail"].get("unplaced"))]


async def others_beyond(crowd: Crowd, position: int) -> bool:
    found = await crowd.positions()
    return all(found[one] >= position for one in found if one != OLD)


async def assert_it_is_told(crowd: Crowd) -> None:
    (listed,) = await listed_unplaced(crowd)
    assert listed["name"] == OLD
    assert "versions:v1" in listed["unplaced"], listed  # the label that nobody has
    assert "1 without a node" in crowd.said("leader")
    assert OLD in crowd.said("leader")


async def who_claimed(crowd: Crowd, work: str) -> set[str]:
    """The names of all nodes that have ever claimed that work."""
    claims = await crowd.logged("work_claimed")
    return {one["name"] for one in claims if work in str(one["work"]) + str(one["detail"])}
