"""How long work has no node: after a stop, after a kill with a side process, after one without.

The bounds are those of the documentation, on a machine with nothing else to do: asserted in the
long form (``STRANDLINE_CHAOS=long``). The short form allows four times as much.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from crowd import IS_LONG, LIMIT, Crowd, Watch, assert_exactly_once, p95, soon, told, writing

pytestmark = pytest.mark.timeout(LIMIT)

EASE = 1.0 if IS_LONG else 4.0
CROWDS = 5 if IS_LONG else 1
MEMBERS = 5  # all but the last of them go, one after the other
TTL = 1.5  # of the thread's nodes; the leader's lease is shorter
SHORT = {"node_ttl": TTL, "leader_ttl": 1.2, "leader_margin": 0.3}
USUAL = {  # as nodes have them, so that nothing but being told can be quick
    "pulse_interval": 3.0,
    "pulse_deadline": 2.5,
    "node_ttl": 15.0,
    "leader_ttl": 12.0,
    "leader_margin": 2.0,
}
TO_CLAIM = 0.5  # seconds from the end of a ttl until a successor has claimed
SHARDS = 8


async def elsewhere(crowd: Crowd, gone: str) -> bool:
    """Whether everything runs, and nothing of it on the node that has gone."""
    owners, runners = await crowd.owners(), await crowd.runners()
    names = {*owners.values(), *runners.values()}
    return len(owners) == SHARDS + 1 and not names & {None, gone}


async def departures(url: str, folder: Path, how: str, **settings: Any) -> list[float]:
    """Seconds from each departure until everything runs elsewhere."""
    seconds = []
    async with Crowd(url, folder, **settings) as crowd:
        async with writing(url, pause=0.05):
            names = [f"n{number}" for number in range(MEMBERS)]
            await crowd.start(*names, tally=f"shards={SHARDS // 2}")
            for number in range(MEMBERS - 1):
                await soon(lambda: elsewhere(crowd, ""))
                leader = await crowd.leader()
                owner = next(iter((await crowd.owners()).values()))
                name = (leader, owner)[number % 2] or owner  # both kinds of loss, in turns
                assert name is not None
                watch = Watch()
                getattr(crowd.nodes[name], how)()
                await soon(lambda name=name: elsewhere(crowd, name))
                seconds.append(watch.seconds)
        await assert_exactly_once(crowd, shards=SHARDS // 2)
    return seconds


@pytest.mark.parametrize(
    ("how", "pulse", "bound"),
    [("terminate", "process", 0.5), ("kill", "process", 1.0), ("kill", "thread", TTL + TO_CLAIM)],
    ids=["stop", "kill with a side process", "kill with a thread"],
)
async def test_work_runs_elsewhere_soon(
    database_url: str, tmp_path: Path, how: str, pulse: str, bound: float
) -> None:
    seconds: list[float] = []
    settings = SHORT if pulse == "thread" else USUAL
    for number in range(CROWDS):
        folder = tmp_path / str(number)
        await asyncio.to_thread(folder.mkdir)
        seconds += await departures(database_url, folder, how, pulse=pulse, **settings)
    told(f"{how}, pulse {pulse}: work runs elsewhere", seconds)
    assert p95(seconds) < bound * EASE
