"""Processes killed in the middle of an isolation: no event is lost, none is applied twice."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from poisoned import TABLES, Step, applied, letters, poisoned_app
from tally import connected, holds

HERE = Path(__file__).parent
STREAMS = 40
EVENTS = 800
POISON = 30


def started(url: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "strandline", "node", "poisoned_node:app"],
        cwd=HERE,
        env={
            **os.environ,
            "PYTHONPATH": str(HERE.parent),
            "STRANDLINE_DATABASE_URL": url,
            "STRANDLINE_MODE": "solo",
            "POISONED": "slowly",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


async def put_aside(operator: Any) -> int:
    found: int = await operator.fetchval(
        "SELECT count(*) FROM strandline.dead_letters WHERE category IS NOT NULL"
    )
    return found


async def test_a_process_killed_again_and_again_while_it_isolates_loses_and_doubles_nothing(
    database_url: str,
) -> None:
    poison = set(random.Random(9).sample(range(EVENTS), POISON))
    numbers = {f"s{one}": list(range(one, EVENTS, STREAMS)) for one in range(STREAMS)}
    async with poisoned_app(database_url) as app, connected(database_url) as operator:
        await operator.execute(TABLES)
        for stream, of_it in numbers.items():
            last = (await app.append(stream, [Step(n, poison=n in poison) for n in of_it])).position
        kills = 0
        for _ in range(3):
            before = await put_aside(operator)
            node = started(database_url)
            try:
                await holds(lambda least=before + 5: reached(operator, least), timeout=30)
                positions = {row.position for row in await app.progress()}
                kills += any(0 < one < last for one in positions if one is not None)
            finally:
                node.kill()
                node.wait()
        node = started(database_url)
        try:
            await app.wait_for(last, "steps", "thirds", "written", "told", "called", timeout=60)
        finally:
            node.kill()
            node.wait()

        assert kills >= 2, "they came in the middle"
        found, told = await applied(app, database_url), await letters(database_url)
    wanted = {key: of_it[: first_poison(of_it, poison)] for key, of_it in numbers.items()}
    for label in ("steps:v1", "written:v1", "told"):
        assert sorted(found[label]) == sorted((s, n) for s, of_it in wanted.items() for n in of_it)
        aside = sum(len(of_it) - len(wanted[stream]) for stream, of_it in numbers.items())
        assert len(told[label]) == aside, label
        assert len({(key, position) for key, position, _, _ in told[label]}) == aside
    for label in ("steps:v1", "written:v1", "told"):  # in order, behind the first
        for key, of_it in numbers.items():
            done = [n for stream, n in found[label] if stream == key]
            assert done == wanted[key]
            assert len(done) + sum(one[0] == key for one in told[label]) == len(of_it)


def first_poison(numbers: list[int], poison: set[int]) -> int:
    return next((i for i, n in enumerate(numbers) if n in poison), len(numbers))


async def reached(operator: Any, least: int) -> bool:
    await asyncio.sleep(0.01)
    return await put_aside(operator) >= least
