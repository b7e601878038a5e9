"""Finds dead letters that somebody has asked for, and tells the agents that run their shards.

What is to be done stands in rows (``retry_at``); a notice on the channel only makes it quick. Every
node looks after the labels it runs. It also counts open letters for the metrics, and forgets those
closed long ago.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

from strandline.daemon import letters
from strandline.daemon.letters import CHANNEL, OpenCount
from strandline.loops import Loop, Rhythm
from strandline.postgres.listener import Listener
from strandline.postgres.pools import Pool
from strandline.projections.slice import parsed
from strandline.settings import Settings

LOOK_EVERY = 10.0  # seconds between looks without any notice
TIDY_EVERY = 60.0  # seconds between counting and forgetting


class Attending(Protocol):
    """An agent, as far as it matters here."""

    def attend(self, *, is_told: bool) -> None:
        """Somebody has asked for dead letters of its shard, or of another one of its label."""
        ...


class LetterWatch:
    """Looks after the dead letters of one node's shards.

    Args:
        pool: Where it looks.
        listener: Hears that somebody has asked for letters.
        settings: How long closed letters are kept.
        agents: Those of this node, by shard.
    """

    def __init__(
        self,
        pool: Pool,
        listener: Listener,
        settings: Settings,
        agents: Callable[[], Mapping[str, Attending]],
    ) -> None:
        self.counts: tuple[OpenCount, ...] = ()
        self._pool = pool
        self._listener = listener
        self._days = settings.letters_kept_days
        self._agents = agents
        self._is_told = False
        self._tidied: float | None = None
        self._deaf: Callable[[], None] | None = None
        self._loop = Loop("letters", self._look, Rhythm(LOOK_EVERY, limit=30.0))

    def start(self) -> None:
        """Begin."""
        self._deaf = self._listener.on(CHANNEL, lambda _: self._hear())
        self._loop.start()

    async def stop(self, *, timeout: float) -> bool:
        """End; whether it did by itself within *timeout* seconds."""
        if self._deaf is not None:
            self._deaf()
            self._deaf = None
        return await self._loop.stop(timeout=timeout)

    def _hear(self) -> None:
        self._is_told = True
        self._loop.wake()

    async def _look(self) -> None:
        is_told, self._is_told = self._is_told, False
        agents = {shard: agent for shard, agent in self._agents().items() if ":" in shard}
        labels = sorted({parsed(shard)[0] for shard in agents})
        due = set(await self._pool.run(letters.due(labels))) if labels else set()
        for shard, agent in agents.items():
            if parsed(shard)[0] in due:
                agent.attend(is_told=is_told)
        if self._tidied is None or time.monotonic() - self._tidied > TIDY_EVERY:
            await self._tidy()

    async def _tidy(self) -> None:
        self.counts = tuple(await self._pool.run(letters.count_open()))
        await self._pool.run(letters.prune(self._days))
        self._tidied = time.monotonic()
