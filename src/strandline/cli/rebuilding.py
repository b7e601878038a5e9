"""Rebuilds one projection, with progress: on the nodes that run it, or in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

from strandline.cli import output
from strandline.cli.connect import Database, need_app
from strandline.cluster.membership import nodes
from strandline.daemon.progress import ShardProgress, progress
from strandline.errors import ApplyFailed, InvalidDefinition, Unavailable
from strandline.events.gaps import highest_position
from strandline.postgres.diagnosis import server_facts
from strandline.projections.projection import Lifecycle, Projection

if TYPE_CHECKING:
    from strandline.app import App

LOOK = 0.1  # seconds between looks at how far it is
LONGEST = 7 * 86_400.0  # seconds a rebuild is waited for


@dataclass(slots=True)
class Rebuilding:
    """One rebuild: planned, then run.

    Attributes:
        end: The log's last position when it was planned.
        nodes: Names of the nodes that will build it; none: this process does.
        reached: How far it is, when it is done.
    """

    db: Database
    projection: Projection
    end: int
    nodes: list[str]
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
        return cls(db, projection, end, await _at_work(db, projection.label))

    @property
    def name(self) -> str:
        """The projection's name."""
        return self.projection.name

    @property
    def label(self) -> str:
        """Its name and version."""
        return self.projection.label

    @property
    def who(self) -> str:
        """The nodes that build it, in words."""
        return f"{self.nodes[0]} is" if len(self.nodes) == 1 else f"{len(self.nodes)} nodes are"

    @property
    def warning(self) -> str:
        """What the user is about to do."""
        by = f" {self.who} at work and will build it." if self.nodes else ""
        return (
            f"{self.label} will be emptied and built again from {self.end:,} positions."
            f" Readers see it empty and growing meanwhile.{by}"
        )

    @property
    def told_rate(self) -> str:
        """How long it took, and the rate."""
        rate = self.reached / self.seconds if self.seconds else 0.0
        return f"{output.duration(self.seconds)}, {rate:,.0f} positions/s"

    async def run(self, *, wait: bool) -> None:
        """Empty the projection, and process all events there were at the start.

        Args:
            wait: Until that is done; if no node is at work, this process does it.

        Raises:
            ApplyFailed: The projection refuses an event.
        """
        begun = time.monotonic()
        app = need_app(self.db.app)
        mode = app.settings.mode if self.nodes else "solo"
        app.settings = replace(app.settings, database_url=self.db.url, mode=mode)
        async with app:
            await app.rebuild(self.projection)
            if wait:
                await self._build(app)
        self.seconds = time.monotonic() - begun

    async def _build(self, app: App) -> None:
        working: asyncio.Future[int] | None = None
        if not self.nodes:
            working = asyncio.ensure_future(app.catch_up(self.projection, timeout=LONGEST))
        before = {one.name: one.changed_at for one in await self._shards()}
        try:
            with output.progress(self.label, self.end) as bar:
                while self.reached < self.end and not (working and working.done()):
                    with suppress(Unavailable):  # it is looked at only
                        self._look(await self._shards(), before)
                    bar.at(self.reached)
                    await asyncio.sleep(LOOK)
                if working is not None:
                    self.reached = await working
                bar.at(self.end)
        finally:
            if working is not None:
                working.cancel()
                await asyncio.wait({working})

    async def _shards(self) -> Sequence[ShardProgress]:
        return await self.db.pool.run(progress([self.label]))

    def _look(self, shards: Sequence[ShardProgress], before: dict[str, datetime | None]) -> None:
        for one in shards:
            is_news = one.changed_at != before.get(one.name)  # or it was told before the rebuild
            if self.nodes and one.state == "paused" and is_news:
                raise ApplyFailed(self.label, f"{one.name} on {one.node}: {one.reason}")
        self.reached = min(one.position or 0 for one in shards)


async def _at_work(db: Database, label: str) -> list[str]:
    """The names of the nodes that run *label*: those of the cluster, or one in mode solo."""
    found = [
        one.name
        for one in await db.pool.run(nodes())
        if one.state in ("active", "stalled") and label in one.labels and one.expires_in > 0
    ]
    connected = (await db.pool.run(server_facts())).apps > 0
    for one in await db.pool.run(progress([label])):
        is_at_work = one.owner is not None and one.state in ("running", "paused") and connected
        if is_at_work and one.node and not found:
            found.append(one.node)
    return found
