"""The lost lock: the server restarts, or an owner sleeps too long, and two nodes might both work.

No batch is applied twice and none is lost; who lost its shards stops by itself and says so, in the
log, in the node log and in a counter; somebody always takes over.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from crowd import (
    IS_LONG,
    LIMIT,
    Crowd,
    Watch,
    Writers,
    assert_exactly_once,
    soon,
    told,
    writing,
)
from tally import Ticked

from strandline.testing.database import fresh_database
from strandline.testing.servers import Server

pytestmark = pytest.mark.timeout(LIMIT)

LOST, EVICTED = "strandline_ownership_lost_total", "strandline_evictions_total"
AGAIN_WITHIN = 5.0  # seconds from the moment in which the server accepts connections
SHARDS = {"positions:v1:all", "versions:v1:all"}
NODES = "SELECT id, name, state FROM strandline.nodes ORDER BY number"
LOSS = re.compile(r"(shard|work) \S+ is lost: .*epoch (\d+).*epoch (\d+)")
EVICTION = re.compile(r"ERROR.*node owner was declared dead.*")
BURST = 20  # hundreds of events
SMALL = {"page_events": 10}  # so that there is always a batch under way
MAIN_ONLY = {"stall_resign_after": 0.8, "stall_after": 1.0, "stall_kill_after": 0.0}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server of this module's own."""
    base = Path(tempfile.mkdtemp(prefix="strandline-", dir="/tmp"))
    base.chmod(0o755)
    try:
        with Server(base / "server") as server:
            yield server
    finally:
        shutil.rmtree(base, ignore_errors=True)


@asynccontextmanager
async def at_work(
    server: Server, folder: Path, first: dict[str, float] | None = None, **settings: Any
) -> AsyncIterator[tuple[Crowd, Writers]]:
    """An *owner* of all work and *other* on a fresh database, and writers.

    Settings in *first* are for the owner alone.
    """
    async with fresh_database(server.url) as url, Crowd(url, folder, **settings) as crowd:
        async with writing(url) as writers:
            await crowd.start("owner", **(first or {}))
            await soon(lambda: crowd.owned_by("owner", work=3))
            await crowd.start("other")
            await soon(lambda: crowd.all_beyond(1))
            yield crowd, writers
        await assert_exactly_once(crowd)


@pytest.mark.parametrize("how", ["fast", "immediate"])
async def test_all_shards_run_again_soon_after_the_server_has_restarted(
    server: Server, tmp_path: Path, how: Any
) -> None:
    seconds = []
    async with at_work(server, tmp_path) as (crowd, writers):
        before = await crowd.rows(NODES)
        for _ in range(20 if IS_LONG else 1):
            await asyncio.to_thread(server.restart, how, away=0.3)
            watch = Watch()
            after = await writers.more(20)
            await soon(lambda after=after: crowd.all_beyond(after))
            seconds.append(watch.seconds)

        told(f"after a restart ({how}) all shards run again", seconds)
        assert max(seconds) < AGAIN_WITHIN
        assert await crowd.rows(NODES) == before  # nobody is dead for the time it was away
        assert await crowd.owned_by("owner", work=3)
        for name in ("owner", "other"):
            assert crowd.counted(name, LOST) + crowd.counted(name, EVICTED) == 0


@pytest.mark.parametrize("restarts", [False, True], ids=["", "and the server restarts"])
async def test_an_owner_that_slept_longer_than_its_ttl_stops_says_so_and_joins_again(
    server: Server, tmp_path: Path, restarts: bool
) -> None:
    async with at_work(server, tmp_path, SMALL) as (crowd, writers):
        ((old, *_), (_, *_)) = await crowd.rows(NODES)
        await in_the_middle_of_work(crowd, writers)
        crowd.nodes["owner"].freeze(with_side_process=True)
        if restarts:
            await asyncio.to_thread(server.restart, "immediate")
        await soon(lambda: crowd.owned_by("other", work=3))
        after = await writers.more(50)
        await soon(lambda: crowd.all_beyond(after))
        claimed = await epochs(crowd)

        crowd.nodes["owner"].thaw()
        await soon(lambda: joined_again(crowd, old))
        await soon(lambda: crowd.counted("owner", EVICTED))
        after = await writers.more(50)
        await soon(lambda: crowd.all_beyond(after))

        assert await epochs(crowd) == claimed  # the sleeper touched nothing
        assert EVICTION.search(crowd.said("owner")), crowd.said("owner")
        (dead,) = [one for one in await crowd.logged("node_dead") if one["node"] == old]
        assert dead["name"] == "owner"
        assert crowd.counted("other", LOST) + crowd.counted("other", EVICTED) == 0


async def test_an_owner_whose_loop_slept_loses_its_shards_stops_them_and_lives_on(
    server: Server, tmp_path: Path
) -> None:
    """Its side process beats all the while, so it is not dead: its work is taken from it."""
    first = {**SMALL, **MAIN_ONLY}
    async with at_work(server, tmp_path, first, revoke_timeout=0.5) as (crowd, writers):
        before = await crowd.rows(NODES)
        await in_the_middle_of_work(crowd, writers)
        crowd.nodes["owner"].freeze()
        await soon(lambda: crowd.owned_by("other", work=3))
        after = await writers.more(50)
        await soon(lambda: crowd.all_beyond(after))
        claimed = await epochs(crowd)

        crowd.nodes["owner"].thaw()
        await soon(lambda: crowd.counted("owner", LOST) >= len(SHARDS))
        await soon(lambda: losses(crowd))
        after = await writers.more(50)
        await soon(lambda: crowd.all_beyond(after))

        assert await epochs(crowd) == claimed
        for entry in await losses(crowd):
            assert (entry["name"], entry["node"]) == ("owner", before[0]["id"])
            assert entry["detail"]["held"], entry
            assert entry["epoch"] is not None
        found = LOSS.search(crowd.said("owner"))
        assert found, crowd.said("owner")
        assert int(found[2]) < int(found[3])
        assert crowd.nodes["owner"].is_running
        assert [tuple(one)[:2] for one in await crowd.rows(NODES)] == [
            tuple(one)[:2] for one in before
        ]


async def test_the_node_command_counts_without_being_asked(
    database_url: str, tmp_path: Path
) -> None:
    async with Crowd(database_url, tmp_path) as crowd:
        await crowd.start("owner")
        await soon(lambda: "strandline_claims_total" in counters(tmp_path))


def counters(folder: Path) -> str:
    path = folder / "owner.json"
    return path.read_text() if path.exists() else ""


async def in_the_middle_of_work(crowd: Crowd, writers: Writers) -> None:
    """Give the owner so much to do that it is at it for a while; answers when it is."""
    last = 0
    for number in range(BURST):
        done = await writers.app.append(f"burst-{number}", [Ticked(one) for one in range(100)])
        last = done.position
    found = await crowd.positions()
    assert min(found.values()) < last - 200, "it is too fast: nothing is under way"


async def epochs(crowd: Crowd) -> list[tuple[Any, ...]]:
    """Who has claimed which shard under which epoch."""
    return [
        tuple(one)
        for one in await crowd.rows("SELECT name, owner, epoch FROM strandline.shards ORDER BY 1")
    ]


async def joined_again(crowd: Crowd, old: Any) -> bool:
    rows = await crowd.rows(NODES)
    active = [one for one in rows if one["name"] == "owner" and one["state"] == "active"]
    return [one["state"] for one in rows if one["id"] == old] == ["dead"] and len(active) == 1


async def losses(crowd: Crowd) -> list[dict[str, Any]]:
    """Entries of lost shards, once there is one of each; empty before."""
    found = await crowd.logged("ownership_lost")
    return found if {one["work"] for one in found} >= SHARDS else []
