"""The daemon of one node: detector, feed, and an agent for every shard."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from uuid import UUID

from strandline.backoff import Backoff
from strandline.daemon.agent import Agent, AgentStatistics, Surroundings
from strandline.daemon.batch import Processor
from strandline.daemon.feed import Feed
from strandline.daemon.progress import CHANNEL as PROGRESS_CHANNEL
from strandline.events.gaps import read_mark
from strandline.events.high_water import HighWater, HighWaterStatistics
from strandline.postgres.listener import Listener, Notifier
from strandline.postgres.pools import Pools
from strandline.settings import Settings
from strandline.telemetry.signals import Signals

log = logging.getLogger("strandline.daemon")

APPENDED_CHANNEL = "appended"
MARK_CHANNEL = "mark"


@dataclass(frozen=True, slots=True)
class DaemonStatistics:
    """How a daemon is doing."""

    mark: int
    high_water: HighWaterStatistics
    agents: tuple[AgentStatistics, ...]


@dataclass(frozen=True, slots=True)
class Shard:
    """What the daemon runs: a name, its processor, and where it begins when it never ran."""

    name: str
    processor: Processor
    start: str | int = 0


@dataclass(frozen=True, slots=True)
class Wiring:
    """What the daemon shares with the rest of the app."""

    pools: Pools
    settings: Settings
    signals: Signals
    notifier: Notifier
    listener: Listener
    node_id: UUID
    node_name: str


class Daemon:
    """Runs every shard on this node until stopped."""

    def __init__(
        self, wiring: Wiring, feed: Feed, shards: list[Shard], *, on_progress: Callable[[], None]
    ) -> None:
        self._wiring = wiring
        self._feed = feed
        self._shards = shards
        self._on_progress = on_progress
        self.agents: dict[str, Agent] = {}
        self.high_water = HighWater(
            wiring.pools.control, wiring.settings, wiring.signals, on_moved=self._mark_moved
        )
        self._deaf: list[Callable[[], None]] = []

    async def start(self) -> None:
        """Start the detector and an agent for every shard."""
        wiring, settings = self._wiring, self._wiring.settings
        self._feed.move((await wiring.pools.control.run(read_mark())).position)
        self._deaf = [
            wiring.listener.on(APPENDED_CHANNEL, lambda _: self.high_water.wake()),
            wiring.listener.on(MARK_CHANNEL, lambda _: self.high_water.wake()),  # a hint, no proof
        ]
        if any(shard.start == "present" for shard in self._shards):
            await self._bring_the_mark_up()
        around = Surroundings(
            feed=self._feed,
            pool=wiring.pools.work,
            control=wiring.pools.control,
            signals=wiring.signals,
            backoff=Backoff(pause=settings.failure_pause),
            owner=wiring.node_id,
            node=wiring.node_name,
            on_progress=self._progressed,
        )
        for shard in self._shards:
            agent = Agent(shard.name, shard.processor, around, start=shard.start)
            self.agents[shard.name] = agent
            agent.start()
        self._feed.agents = len(self.agents)
        self.high_water.start()
        log.info("node %s runs %d shards", wiring.node_name, len(self.agents))

    async def stop(self, *, timeout: float) -> Mapping[str, bool]:
        """Stop every agent, each after its batch under way, then the detector.

        Returns:
            For each shard whether it ended by itself within *timeout* seconds.
        """
        for end in self._deaf:
            end()
        self._deaf = []
        names = list(self.agents)
        ended = await asyncio.gather(*(self.agents[name].stop(timeout=timeout) for name in names))
        await self.high_water.stop()
        return dict(zip(names, ended, strict=True))

    def appended(self) -> None:
        """Something was appended by this process: look at once."""
        self.high_water.wake()

    def statistics(self) -> DaemonStatistics:
        """A picture of now."""
        return DaemonStatistics(
            mark=self._feed.mark,
            high_water=self.high_water.statistics(),
            agents=tuple(agent.statistics() for agent in self.agents.values()),
        )

    async def _bring_the_mark_up(self) -> None:
        """Move the mark until it only waits for appends under way: that is the present."""
        mark = -1
        while (position := await self.high_water.tick()) > mark:
            mark = position

    def _mark_moved(self, position: int) -> None:
        if position < self._feed.mark:  # restored, or failed over: the checkpoints went back too
            self._feed.move_back(position)
            for agent in self.agents.values():
                agent.doubt()
            return
        self._feed.move(position)
        self._wiring.notifier.notify(MARK_CHANNEL, str(position))

    def _progressed(self) -> None:
        self._on_progress()
        self._wiring.notifier.notify(PROGRESS_CHANNEL)
