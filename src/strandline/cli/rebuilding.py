"""Rebuilds one projection in this process, with progress, leaving all others alone."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from uuid import uuid4

from strandline.app.runtime import Runtime
from strandline.cli import output
from strandline.cli.connect import Database, need_app
from strandline.daemon import checkpoint as checkpoints
from strandline.daemon.daemon import Daemon, Wiring
from strandline.daemon.feed import Feed
from strandline.daemon.progress import progress
from strandline.errors import ApplyFailed, InvalidDefinition, OwnershipLost
from strandline.events.gaps import highest_position
from strandline.postgres.diagnosis import server_facts
from strandline.postgres.listener import Listener, Notifier
from strandline.postgres.pools import Pools
from strandline.projections.projection import Lifecycle, Projection
from strandline.telemetry.signals import Signals

LOOK = 0.1  # seconds between looks at how far it is


@dataclass(slots=True)
class Rebuilding:
    """One rebuild: planned, reset, run."""

    db: Database
    projection: Projection
    end: int
    node: str | None
    reached: int = 0
    seconds: float = 0.0

    @classmethod
    async def planned(cls, db: Database, name: str) -> Rebuilding:
        """A rebuild of projection *name*, nothing done yet.

        Raises:
            UnknownProjection: There is none.
            InvalidDefinition: It is not run by nodes.
        """
        projection = need_app(db.app).registry.projection(name)
        if projection.lifecycle is not Lifecycle.ASYNC:
            raise InvalidDefinition(
                f"{projection.label} is {projection.lifecycle}: only async projections are rebuilt"
                " (one that is folded live is always fresh)"
            )
        end = await db.pool.run(highest_position())
        told = (await db.pool.run(progress([projection.shard])))[0]
        apps = (await db.pool.run(server_facts())).apps
        runs = told.state in ("running", "paused") and told.owner is not None and apps > 0
        return cls(db, projection, end, told.node if runs else None)

    @property
    def name(self) -> str:
        """The projection's name."""
        return self.projection.name

    @property
    def label(self) -> str:
        """Its name and version."""
        return self.projection.label

    @property
    def warning(self) -> str:
        """What the user is about to do."""
        held = f" {self.node} runs it now and must be started again after." if self.node else ""
        return (
            f"{self.label} will be emptied and built again from {self.end:,} positions."
            f" Readers see it empty and growing meanwhile.{held}"
        )

    @property
    def told_rate(self) -> str:
        """How long it took, and the rate."""
        rate = self.reached / self.seconds if self.seconds else 0.0
        return f"{output.duration(self.seconds)}, {rate:,.0f} positions/s"

    async def reset(self) -> None:
        """Delete what the projection has written; its present owner is refused from now on."""
        async with self.db.pool.transaction() as session:
            await session.run(checkpoints.reset(self.projection.shard))
            await session.run(self.db.requests.create_read_models())
            await session.run(self.db.requests.empty(self.projection))

    async def run(self) -> None:
        """Process all events there were at the start, in this process.

        Raises:
            OwnershipLost: A node has claimed the shard meanwhile.
            ApplyFailed: The projection refuses an event.
        """
        begun = time.monotonic()
        pools = Pools.to(self.db.url, self.db.settings)
        await pools.open()
        listener = Listener(self.db.url, self.db.settings)
        notifier = Notifier(pools.control, self.db.settings)
        daemon = self._daemon(pools, listener, notifier)
        notifier.start()
        try:
            await daemon.start()
            await self._watched(daemon)
        finally:
            await daemon.stop(timeout=self.db.settings.stop_timeout)
            await notifier.stop()
            await pools.close()
        self.seconds = time.monotonic() - begun

    def _daemon(self, pools: Pools, listener: Listener, notifier: Notifier) -> Daemon:
        registry = need_app(self.db.app).registry
        runtime = Runtime(registry, self.db.settings, pools.work)
        shard = self.projection.shard
        wiring = Wiring(
            pools=pools,
            settings=self.db.settings,
            signals=Signals(),
            notifier=notifier,
            listener=listener,
            node_id=uuid4(),
            node_name="strandline projections rebuild",
        )
        return Daemon(
            wiring,
            Feed(pools.work, registry.types, self.db.settings),
            [one for one in runtime.shards(_no_transaction) if one.name == shard],
            on_progress=lambda: None,
        )

    async def _watched(self, daemon: Daemon) -> None:
        agent = daemon.agents[self.projection.shard]
        with output.progress(self.label, self.end) as bar:
            while agent.position < self.end:
                if agent.failure is not None:
                    raise OwnershipLost(f"{agent.failure} (a node has claimed it)")
                if agent.state == "paused":
                    raise ApplyFailed(self.label, agent.reason)
                bar.at(agent.position)
                await asyncio.sleep(LOOK)
            bar.at(self.end)
        self.reached = agent.position


def _no_transaction(session: object) -> None:
    """Only subscriptions ask for one, and these are not rebuilt."""
    raise AssertionError(session)
