"""Looks at the database all the while, past every proxy: who is there, who owns what, how far it is."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from chaos.oracle import Sample

LOOK = Path(__file__).with_suffix(".sql").read_text()
EVERY = 0.05  # seconds between looks
ANSWER = 2.0  # seconds that a look may take


@dataclass(frozen=True)
class NodeLook:
    """A node that has neither left nor died."""

    id: str
    name: str
    state: str
    pid: int
    beats: int
    expires_in: float
    number: int


@dataclass(frozen=True)
class Look:
    """The cluster at one moment.

    Attributes:
        taken: Monotonic time at which the answer came.
        shards: Name to (position, owner).
        works: Work that should run, to its owner.
        leader: The holder of an unexpired lease.
    """

    taken: float
    mark: int
    head: int
    nodes: dict[str, NodeLook]
    shards: dict[str, tuple[int, str | None]]
    works: dict[str, str | None]
    leader: str | None
    leader_epoch: int

    @property
    def slowest(self) -> int:
        """The position that every shard has passed."""
        return min((position for position, _ in self.shards.values()), default=0)

    def owners(self) -> dict[str, str | None]:
        """Of all work; in solo mode only shards have owners."""
        return self.works or {name: owner for name, (_, owner) in self.shards.items()}

    def works_of(self, node: str | None) -> set[str]:
        """What the node with this id owns."""
        return {name for name, owner in self.owners().items() if owner == node}


@dataclass
class Watch:
    """The latest look, and everything that was seen of the mark.

    Attributes:
        url: Where to look; a fail-over changes it.
        is_whole: Whether a look shows all work owned by live nodes; the field knows.
    """

    url: Callable[[], str]
    is_whole: Callable[[Look], bool]
    samples: list[Sample] = field(default_factory=list)
    looks: int = 0
    troubles: list[str] = field(default_factory=list)
    latest: Look | None = None
    _mark: int = 0
    _moved: asyncio.Event = field(default_factory=asyncio.Event)
    _task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._watch(), name="watch")

    async def stop(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def go_back_to(self, mark: int) -> None:
        """A fail-over has lost commits: forget what was seen beyond *mark*."""
        self.samples = [one for one in self.samples if max(one.before, one.mark) <= mark]
        self._mark = min(self._mark, mark)

    async def next(self, *, timeout: float = 5.0) -> Look | None:
        """The next look; None if there is none in time: the server is away."""
        try:
            async with asyncio.timeout(timeout):
                await self._moved.wait()
        except TimeoutError:
            return None
        return self.latest

    async def until(self, holds: Callable[[Look], Any], *, timeout: float) -> Look | None:
        """The first look from now on of which *holds* is true; None if there is none in time."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            look = await self.next(timeout=left)
            if look is not None and holds(look):
                return look
        return None

    async def until_recovered(self, head: int, *, deadline: float) -> float | None:
        """The moment when all work runs again, or None if that was not before *deadline*.

        All work is owned by live nodes, and then every shard passes what was the head at that
        moment, which must lie beyond *head*: so events appended since have gone through.
        """
        wanted: int | None = None
        while (left := deadline - time.monotonic()) > 0:
            look = await self.next(timeout=left)
            if look is None or not self.is_whole(look):
                wanted = None
                continue
            if wanted is None and look.head > head:
                wanted = look.head
            if wanted is not None and look.slowest >= wanted:
                return look.taken
        return None

    async def _watch(self) -> None:
        while True:
            connection: Any = None
            try:
                connection = await asyncpg.connect(self.url(), timeout=ANSWER)
                while True:
                    await self._look(connection)
                    await asyncio.sleep(EVERY)
            except Exception as error:  # drivers raise anything while a server dies; look again
                self.troubles.append(repr(error))
            finally:
                if connection is not None:
                    connection.terminate()
            await asyncio.sleep(EVERY)

    async def _look(self, connection: Any) -> None:
        row = await connection.fetchrow(LOOK, self._mark, timeout=ANSWER)
        self.samples.append(Sample(self._mark, row["mark"], row["visible"]))
        self._mark = max(self._mark, row["mark"])
        self.looks += 1
        nodes = [NodeLook(*one) for one in json.loads(row["nodes"])]
        self.latest = Look(
            taken=time.monotonic(),
            mark=row["mark"],
            head=row["head"],
            nodes={one.id: one for one in nodes},
            shards={name: (position, owner) for name, position, owner in json.loads(row["shards"])},
            works=dict(json.loads(row["works"])),
            leader=row["leader"] and str(row["leader"]),
            leader_epoch=row["leader_epoch"],
        )
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()
