"""Pulses to test with: quick ones, whose news are kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from strandline.cluster.node import Identity
from strandline.cluster.pulse import News, Pulse, PulseOptions

# Thirty times as fast as by default where a test waits for it, and slow where none does.
QUICK = PulseOptions(
    url="",
    schema="strandline",
    interval=0.2,
    deadline=0.6,
    ttl=3.0,
    leader_ttl=2.0,
    margin=0.4,
    stall_after=60.0,
    stall_resign_after=60.0,
    stall_kill_after=0.0,
)


@dataclass
class Node:
    """A pulse and what it told."""

    identity: Identity
    pulse: Pulse
    told: list[tuple[float, News]] = field(default_factory=list)
    came: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def id(self) -> UUID:
        return self.identity.id

    def hear(self, news: News) -> None:
        self.told.append((time.monotonic(), news))
        self.came.set()

    def news(self, kind: str, since: float = 0.0) -> list[dict[str, Any]]:
        """The facts of what it told of *kind* since a moment."""
        return [one.facts for at, one in self.told if one.kind == kind and at >= since]

    async def tells(
        self,
        kind: str,
        since: float = 0.0,
        timeout: float = 10.0,
        where: Callable[[dict[str, Any]], bool] = lambda _: True,
    ) -> dict[str, Any]:
        """Wait until it tells *kind*; the facts of the first since that moment."""
        async with asyncio.timeout(timeout):
            while True:
                self.came.clear()
                found = [facts for facts in self.news(kind, since) if where(facts)]
                if found:
                    return found[0]
                await self.came.wait()

    def first(self, kind: str, since: float = 0.0) -> float:
        """When it first told *kind* since a moment."""
        return next(at for at, one in self.told if one.kind == kind and at >= since)


def node(
    url: str,
    kind: Any = "thread",
    *,
    name: str = "n",
    identity: dict[str, Any] | None = None,
    **options: Any,
) -> Node:
    """A node that has not started yet; *options* over the quick ones."""
    who = Identity(uuid4(), name, **(identity or {}))
    told: list[Node] = []
    pulse = Pulse(who, replace(QUICK, url=url, **options), kind, lambda one: told[0].hear(one))
    told.append(Node(who, pulse))
    return told[0]


@asynccontextmanager
async def beating(url: str, kind: Any = "thread", **options: Any) -> AsyncIterator[Node]:
    """A node that takes part, and that leaves at the end of the block."""
    made = node(url, kind, **options)
    try:
        await made.pulse.start(timeout=10.0)
        made.pulse.ready()
        await made.tells("ticked", since=time.monotonic())
        yield made
    finally:
        await made.pulse.leave("the test is over", "", timeout=2.0)
        await made.pulse.stop(timeout=2.0)


@dataclass
class Watcher:
    """What an operator sees in the database."""

    connection: Any

    async def node(self, who: Node) -> Any:
        return await self.connection.fetchrow(
            "SELECT * FROM strandline.nodes WHERE id = $1", who.id
        )

    async def state(self, who: Node) -> str:
        return (await self.node(who))["state"]

    async def lease(self) -> Any:
        return await self.connection.fetchrow(
            "SELECT * FROM strandline.leases WHERE name = 'leader'"
        )

    async def logged(self, *kinds: str) -> list[tuple[str, str, int | None]]:
        rows = await self.connection.fetch(
            "SELECT kind, name, epoch FROM strandline.node_log WHERE kind = ANY ($1) ORDER BY id",
            list(kinds),
        )
        return [tuple(row) for row in rows]

    async def backends(self, like: str = "strandline pulse%") -> list[int]:
        rows = await self.connection.fetch(
            """SELECT pid FROM pg_stat_activity
                WHERE datname = current_database() AND application_name LIKE $1 ORDER BY 1""",
            like,
        )
        return [row[0] for row in rows]

    async def run(self, sql: str, *arguments: Any) -> Any:
        return await self.connection.fetchval(sql, *arguments)


@asynccontextmanager
async def watching(url: str) -> AsyncIterator[Watcher]:
    connection = await asyncpg.connect(url)
    try:
        yield Watcher(connection)
    finally:
        await connection.close()
