"""SIGTERM at random moments of start-up and work: gone in time, and nothing is left behind.

A seed given by ``STRANDLINE_SEED`` repeats the moments of a run.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from crowd import IS_LONG, LIMIT, PATIENCE, Crowd, Watch, assert_exactly_once, soon, told, writing

from strandline.testing.database import fresh_database
from strandline.testing.nodes import SIDE_PROCESS, NodeProcess
from strandline.testing.servers import Server

pytestmark = pytest.mark.timeout(LIMIT)

SEED = int(os.environ.get("STRANDLINE_SEED") or random.randrange(10**6))
ROUNDS = 50 if IS_LONG else 6
AT_ONCE = 2
BUDGET = 7.0  # stop_hard of the crowd
SLACK = 2.0  # for a busy machine to tell that a process has ended
EARLY = -15  # the signal came before Python could hear it, and so before there was anything to stop
HOOKS = "hooks=raise,hang"  # the hanging one is cut after two seconds


async def test_it_is_gone_in_its_budget_and_leaves_nothing(
    database_url: str, tmp_path: Path
) -> None:
    print(f"\nSTRANDLINE_SEED={SEED}")
    dice = random.Random(SEED)
    rounds = [
        Round(f"n{number}", is_at_work, dice.uniform(0.0, 0.7 if is_at_work else 3.0), hooks)
        for number in range(ROUNDS)
        for is_at_work, hooks in [(number % 4 >= 2, HOOKS if number % 5 == 2 else "")]
    ]
    seconds: list[float] = []
    async with Crowd(database_url, tmp_path) as crowd:
        async with writing(database_url, pause=0.05):
            lanes = [rounds[lane::AT_ONCE] for lane in range(AT_ONCE)]
            done = await asyncio.gather(*(one_after_the_other(crowd, lane) for lane in lanes))
            seconds = [one for lane in done for one in lane]
        assert await left_behind(crowd) == {
            "states": [], "owned": 0, "leader": None, "side processes": [], "backends": [],
        }  # fmt: skip
        await crowd.start("last")
        told("from the signal to the end", seconds)
        await assert_exactly_once(crowd)


@dataclass(frozen=True)
class Round:
    """One node, and when it is told to stop: seconds from its start, or from when it has joined."""

    name: str
    is_at_work: bool
    moment: float
    hooks: str


async def one_after_the_other(crowd: Crowd, rounds: list[Round]) -> list[float]:
    seconds = []
    for one in rounds:
        node = await crowd.add(one.name, tally=one.hooks)
        if one.is_at_work:
            await node.until("active", timeout=PATIENCE)
        await asyncio.sleep(one.moment)  # the fault itself, not a wait
        watch = Watch()
        node.terminate()
        code = await node.gone(timeout=BUDGET + SLACK)
        seconds.append(watch.seconds)
        await assert_it_ended_well(crowd, node, code, one)
    return seconds


async def assert_it_ended_well(crowd: Crowd, node: NodeProcess, code: int, round_: Round) -> None:
    said = crowd.said(node.name)
    about = f"{node.name} (seed {SEED}): code {code}\n{said}"
    reports = re.findall(r"shutdown report: (\{.*\})", said)
    statuses = (
        {one["name"]: one["status"] for one in json.loads(reports[0])["steps"]} if reports else {}
    )
    hooked = {name: status for name, status in statuses.items() if name.startswith("hook")}
    others = {status for name, status in statuses.items() if not name.startswith("hook")}
    assert others <= {"ok"}, about
    assert code in (0, 3, EARLY), about
    assert (code == 3) == bool(hooked), about
    if hooked:
        assert hooked == {"hook raise_0": "error", "hook hang_1": "timeout"}, about
    if round_.is_at_work:
        assert bool(hooked) == bool(round_.hooks), about
    for row in await crowd.rows("SELECT * FROM strandline.nodes WHERE name = $1", node.name):
        assert (row["state"], row["left_reason"]) == ("left", "SIGTERM"), about
        stored = {one["name"]: one["status"] for one in json.loads(row["report"])["steps"]}
        assert stored.get("drain") == ("ok" if "drain" in statuses else None), about
        assert "drain" in stored or not round_.is_at_work, "only a start is broken off without it"
        assert {name: stored[name] for name in hooked} == hooked, about


async def left_behind(crowd: Crowd) -> dict[str, Any]:
    """What is still there of nodes that have ended; a moment after the last one."""

    async def now() -> dict[str, Any]:
        states = await crowd.rows(
            "SELECT name, state FROM strandline.nodes WHERE state NOT IN ('left', 'dead')"
        )
        return {
            "states": [tuple(one) for one in states],
            "owned": await crowd.one(
                "SELECT count(*) FROM strandline.assignments WHERE owner IS NOT NULL"
            ),
            "leader": await crowd.one("SELECT holder FROM strandline.leases WHERE name = 'leader'"),
            "side processes": side_processes(crowd.url),
            "backends": [tuple(one) for one in await crowd.rows(BACKENDS)],
        }

    watch = Watch()
    while any((found := await now()).values()) and watch.seconds < SLACK:
        await asyncio.sleep(0.05)
    return found


BACKENDS = """SELECT application_name, client_port FROM pg_stat_activity
               WHERE datname = current_database() AND application_name LIKE 'strandline%'"""


def side_processes(url: str) -> list[int]:
    """Of nodes of this database, whoever their parents are now."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            is_one = entry.name.isdecimal() and SIDE_PROCESS in (entry / "cmdline").read_bytes()
            if is_one and url.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:  # it has just ended
            continue
    return found


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of this test's own."""
    base = Path(tempfile.mkdtemp(prefix="strandline-", dir="/tmp"))
    base.chmod(0o755)
    try:
        with Server(base / "server") as server:
            yield server
    finally:
        shutil.rmtree(base, ignore_errors=True)


async def test_it_is_gone_in_its_budget_while_the_server_is_not_there(
    server: Server, tmp_path: Path
) -> None:
    """What it could not write down is put right by the others once the server is back."""
    dice = random.Random(SEED)
    print(f"\nSTRANDLINE_SEED={SEED}")
    seconds = []
    async with fresh_database(server.url) as url, Crowd(url, tmp_path) as crowd:
        await crowd.start("survivor")
        await soon(lambda: crowd.owned_by("survivor", work=3))
        for number in range(10 if IS_LONG else 2):
            name = f"n{number}"
            (node,) = await crowd.start(name, leader_priority=-1)
            stopping = asyncio.create_task(asyncio.to_thread(server.stop, "immediate"))
            await asyncio.sleep(dice.uniform(0.0, 0.2))  # the fault itself: before or after it
            watch = Watch()
            node.terminate()
            code = await node.gone(timeout=BUDGET + SLACK)
            seconds.append(watch.seconds)
            await stopping
            await asyncio.to_thread(server.start)
            assert code in (0, 3, 70), crowd.said(name)
            await node.until("dead", "left", timeout=PATIENCE)
            await soon(lambda: crowd.owned_by("survivor", work=3))
            assert side_processes(url) == [crowd.nodes["survivor"].find_side_process()]
    told("from the signal to the end, without a server", seconds)
