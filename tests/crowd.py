"""Nodes as processes of their own on the tally's read models, writers beside them, and who owns what."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
from tally import Dropped, Positions, Ticked, Versions, assert_applied_exactly_once, holds

from strandline.app import App
from strandline.errors import Unavailable
from strandline.testing.nodes import NodeProcess

HERE = Path(__file__).parent
IS_LONG = os.environ.get("STRANDLINE_CHAOS") == "long"
PYTHONPATH = [one for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one]
LIMIT = 1800 if IS_LONG else 120  # seconds for one test
PATIENCE = 30.0  # seconds for what has no bound of its own; machines are busy
QUICK = {
    "pulse_interval": 0.2,
    "pulse_deadline": 1.0,
    "node_ttl": 2.0,
    "leader_ttl": 1.6,
    "leader_margin": 0.4,
    "poll_interval": 0.1,
    "failure_pause": 0.5,
    "rebalance_interval": 1.0,
    "rebalance_after": 3600.0,
    "rejoin_grace": 0.0,
    "stop_timeout": 5.0,
    "stop_reserve": 2.0,
    "stop_hard": 7.0,
}


def counting_app(url: str | None, *, version: int = 1, shards: int = 1, **settings: Any) -> App:
    """An app with the tally's read models, ``Versions`` in *version*, both cut into *shards*."""
    app = App("tally", url, **settings)
    app.event("ticked")(Ticked)
    app.event("dropped")(Dropped)
    app.projection("versions", version=version, shards=shards)(Versions)
    app.projection("positions", shards=shards)(Positions)
    return app


class Crowd:
    """Nodes on one database, of which a test looks at the tables."""

    def __init__(self, url: str, folder: Path, **settings: Any) -> None:
        self.url = url
        self.folder = folder
        self.settings = {**QUICK, **settings}
        self.nodes: dict[str, NodeProcess] = {}
        self._stack = AsyncExitStack()
        self._connection: Any = None

    async def __aenter__(self) -> Crowd:
        return self

    async def __aexit__(self, *error: object) -> None:
        for node in self.nodes.values():
            node.thaw()
        await self._stack.aclose()
        if self._connection is not None:
            self._connection.terminate()

    async def add(self, name: str, *, tally: str = "", url: str = "", **settings: Any) -> Any:
        """Start a node; *tally* is told to ``tally_node.py``."""
        node = NodeProcess(
            "tally_node:app",
            url or self.url,
            name=name,
            settings={**self.settings, **settings},
            environment={
                "TALLY": f"counters={self.folder}/{name}.json {tally}",
                "PYTHONPATH": os.pathsep.join([str(HERE), *PYTHONPATH]),
                "PYTHONUNBUFFERED": "1",
            },
            log=self.folder / f"{name}.log",
            folder=HERE / "cluster",
        )
        self.nodes[name] = node
        await self._stack.enter_async_context(node)
        return node

    async def start(self, *names: str, tally: str = "", **settings: Any) -> list[Any]:
        """Start nodes at once, and wait until they are active."""
        found = [await self.add(name, tally=tally, **settings) for name in names]
        for node in found:
            await node.until("active", timeout=PATIENCE)
        return found

    # ---- what the database says

    async def rows(self, sql: str, *arguments: Any) -> list[Any]:
        """What a query finds; over one connection, made anew after a failure."""
        try:
            if self._connection is None or self._connection.is_closed():
                self._connection = await asyncpg.connect(self.url)
            found: list[Any] = await self._connection.fetch(sql, *arguments)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            if self._connection is not None:
                self._connection.terminate()
            self._connection = None
            raise
        return found

    async def one(self, sql: str, *arguments: Any) -> Any:
        return (await self.rows(sql, *arguments))[0][0]

    async def owners(self) -> dict[str, str | None]:
        """Of each work the name of the node that owns it."""
        return dict(
            await self.rows(
                """SELECT a.work, n.name FROM strandline.assignments a
                     LEFT JOIN strandline.nodes n ON n.id = a.owner ORDER BY 1"""
            )
        )

    async def runners(self) -> dict[str, str | None]:
        """Of each shard the name of the node that has claimed it."""
        return dict(
            await self.rows(
                """SELECT s.name, n.name FROM strandline.shards s
                     LEFT JOIN strandline.nodes n ON n.id = s.owner ORDER BY 1"""
            )
        )

    async def owned_by(self, *names: str, work: int = 1) -> bool:
        """Whether all work, and as much as that, belongs to these nodes and no other."""
        owners = await self.owners()
        return len(owners) >= work and set(owners.values()) == set(names)

    async def leader(self) -> str | None:
        """The name of the node that holds an unexpired lease."""
        rows = await self.rows(
            """SELECT n.name FROM strandline.leases l JOIN strandline.nodes n ON n.id = l.holder
                WHERE l.name = 'leader' AND l.expires_at > clock_timestamp()"""
        )
        return rows[0][0] if rows else None

    async def logged(self, *kinds: str) -> list[dict[str, Any]]:
        """Entries of the node log, the oldest first."""
        rows = await self.rows(
            "SELECT * FROM strandline.node_log WHERE kind = ANY ($1) ORDER BY id", list(kinds)
        )
        return [{**row, "detail": json.loads(row["detail"])} for row in rows]

    async def positions(self) -> dict[str, int]:
        return dict(await self.rows("SELECT name, position FROM strandline.shards"))

    async def all_beyond(self, position: int) -> bool:
        """Whether every shard has come further than that."""
        found = await self.positions()
        return bool(found) and min(found.values()) >= position

    # ---- what the nodes say

    def said(self, name: str) -> str:
        """The log of a node."""
        log = self.folder / f"{name}.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def counted(self, name: str, metric: str) -> float:
        """The sum of a counter over all its series; 0 before there is any."""
        try:
            found = json.loads((self.folder / f"{name}.json").read_text())
        except FileNotFoundError:
            return 0.0
        return float(sum(found.get(metric, {}).values()))


async def soon(what: Callable[[], Any], timeout: float = PATIENCE) -> Any:
    """Wait for something that a database answers, which may be away at first."""

    async def asked() -> Any:
        try:
            found = what()
            return await found if isinstance(found, Awaitable) else found
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return None

    return await holds(asked, timeout=timeout)


@asynccontextmanager
async def writing(url: str, *, streams: int = 5, pause: float = 0.01) -> AsyncIterator[Writers]:
    """Append to some streams, all the while; until the end of the block."""
    async with counting_app(url) as app:
        writers = Writers(app, pause)
        tasks = [asyncio.create_task(writers.write(f"s{number}")) for number in range(streams)]
        try:
            yield writers
        finally:
            writers.is_over = True
            await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)


class Writers:
    """What was appended, and what came of it."""

    def __init__(self, app: App, pause: float) -> None:
        self.app = app
        self.pause = pause
        self.is_over = False
        self.acknowledged = 0
        self.last = 0  # position

    async def write(self, stream: str) -> None:
        number = 0
        while not self.is_over:
            number += 1
            try:
                event = Dropped() if random.random() < 0.01 else Ticked(number)
                done = await self.app.append(stream, event)
            except Unavailable:  # whether it is stored is the tally's business
                await asyncio.sleep(0.02)
            else:
                self.acknowledged += 1
                self.last = max(self.last, done.position)
                await asyncio.sleep(self.pause)

    async def more(self, count: int) -> int:
        """Wait until so many more are acknowledged; the position then."""
        wanted = self.acknowledged + count
        await holds(lambda: self.acknowledged >= wanted, timeout=PATIENCE)
        return self.last


async def assert_exactly_once(crowd: Crowd, *, version: int = 1, shards: int = 1) -> None:
    """Every read model is level with the events, and holds each once and in order."""
    async with counting_app(crowd.url, version=version, shards=shards) as app:
        highest = await app.highest_position()
        assert highest
        await soon(lambda: crowd.all_beyond(highest))
        stored = await crowd.one("SELECT count(*) FROM strandline.events")
        assert stored
        await assert_applied_exactly_once(app)


def p95(seconds: list[float]) -> float:
    """The 95th percentile, from above where there are few."""
    return sorted(seconds)[min(len(seconds) - 1, int(0.95 * len(seconds)))]


def told(what: str, seconds: list[float]) -> None:
    """Print a measurement."""
    shown = ", ".join(f"{one:.2f}" for one in sorted(seconds))
    print(f"\n{what}: p95 {p95(seconds):.2f} s of {len(seconds)} ({shown})")


class Watch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self.begun = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begun
