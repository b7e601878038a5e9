"""kill -9 in the middle of parking and in the middle of a replay: nothing lost, nothing twice (I9)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from letterbox import folded, numbers_of
from letters_node import letters_app
from tally import Ticked, connected, holds

NODE = Path(__file__).parents[1] / "letters_node.py"
HERE = str(NODE.parent)
STREAMS, EVENTS = 12, 480
POISON = [7, 45, 46, 130, 131, 132, 300, 301, 410]


def node(url: str, poison: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(NODE), url, str(poison)], env={**os.environ, "PYTHONPATH": HERE}
    )


async def killed_when(url: str, poison: Path, is_due: Callable[[], Awaitable[bool]]) -> None:
    """Run a node until something holds, and kill it at once."""
    process = node(url, poison)
    try:
        await holds(is_due, timeout=30)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


async def number(url: str, what: str) -> int:
    async with connected(url) as other:
        return int(await other.fetchval(f"SELECT coalesce(max(n), 0) FROM ({what}) AS x(n)"))


async def waiting(url: str) -> int:
    return await number(url, "SELECT count(*) FROM strandline.dead_letters WHERE status = 'parked'")


async def test_killed_while_it_parks_and_while_it_replays(
    database_url: str, tmp_path: Path
) -> None:
    poison = tmp_path / "poison"
    poison.write_text(" ".join(map(str, POISON)))
    async with letters_app(database_url) as app:
        for start in range(0, EVENTS, 4):
            batch = [Ticked(one) for one in range(start, start + 4)]
            last = (await app.append(f"s{start // 4 % STREAMS}", batch)).position
        position = "SELECT max(position) FROM strandline.shards"

        for at in range(40, last, 110):  # in the page of a poison event and between

            async def is_beyond(at: int = at) -> bool:
                return await number(database_url, position) >= at

            await killed_when(database_url, poison, is_beyond)
        await killed_when(database_url, poison, lambda: is_at(database_url, position, last))

        parked = await app.letters.list(limit=1_000)
        held = {one.position for one in parked}
        applied = [one for some in (await numbers_of(app, "fragile")).values() for one in some]
        assert len(applied) + len(held) == EVENTS
        assert len(set(applied)) == len(applied)
        numbers = {event.position: event.data.number async for event in app.read_all(settled=False)}
        assert await numbers_of(app, "fragile") == await folded(
            app, without={numbers[one] for one in held}
        )

        poison.write_text("")
        left = await waiting(database_url)
        assert left > 100
        await app.letters.retry(all=True)
        for share in (0.8, 0.5, 0.2):

            async def is_under_way(share: float = share) -> bool:
                return await waiting(database_url) <= share * left

            await killed_when(database_url, poison, is_under_way)
        await killed_when(database_url, poison, lambda: is_empty(database_url))

        assert await numbers_of(app, "fragile") == await folded(app)


async def is_at(url: str, what: str, wanted: int) -> bool:
    return await number(url, what) >= wanted


async def is_empty(url: str) -> bool:
    return await waiting(url) == 0
