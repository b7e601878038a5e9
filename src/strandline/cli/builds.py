"""Building a projection again from the command line: by the nodes that are there, or by this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from strandline.cli import output
from strandline.cli.connect import Database, need_app
from strandline.cluster.membership import nodes
from strandline.daemon.progress import progress
from strandline.daemon.rebuilds import read
from strandline.errors import Unavailable
from strandline.events.gaps import highest_position
from strandline.postgres.diagnosis import server_facts
from strandline.projections.projection import Projection

if TYPE_CHECKING:
    from strandline.app import App
    from strandline.app.rebuilds import Rebuilt

LOOK = 0.1  # seconds between looks at how far it is
LONGEST = 7 * 86_400.0  # seconds that catching up is waited for
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Site:
    """Where a projection is built.

    Attributes:
        end: The log's last position when it was looked at.
        nodes: Names of the nodes that build it; none: this process does.
    """

    app: App
    projection: Projection
    end: int
    nodes: list[str]

    @property
    def is_elsewhere(self) -> bool:
        """Whether there are nodes for it."""
        return bool(self.nodes)

    @property
    def who(self) -> str:
        """The nodes that build it, in words."""
        return f"{self.nodes[0]} is" if len(self.nodes) == 1 else f"{len(self.nodes)} nodes are"

    async def shown(self, work: Awaitable[T]) -> T:
        """Wait for *work*, which builds the projection, with rate and time left on stderr."""
        working = asyncio.ensure_future(work)
        try:
            with output.progress(self.projection.label, self.end) as bar:
                while not working.done():
                    with suppress(Unavailable):  # it is looked at only
                        for one in await self.app.rebuilds(self.projection, ended=0):
                            bar.total = max(self.end, one.target)
                            bar.at(min(one.position, bar.total))
                    await asyncio.wait({working}, timeout=LOOK)
                bar.at(bar.total)
            return await working
        finally:
            working.cancel()
            await asyncio.wait({working})

    async def ended(self, asked: Rebuilt) -> Rebuilt:
        """The build that was *asked* for, when it has taken over."""
        build = await self.app.pools.control.run(read(asked.number))
        assert build is not None  # builds are never deleted
        done = await self.shown(self.app.ended_build(build))
        return replace(asked, state=done.state, position=done.target)

    async def caught_up(self) -> None:
        """Leave the projection at the end of the log, where nobody else brings it there."""
        if not self.is_elsewhere:
            await self.app.catch_up(self.projection, timeout=LONGEST)


@asynccontextmanager
async def site(db: Database, name: str, *, here: bool = True) -> AsyncIterator[Site]:
    """The open App; *here*, with a node of this process for projection *name* if nobody else runs it.

    Raises:
        UnknownProjection: There is none.
        InvalidDefinition: It is not run by nodes.
    """
    from strandline.app.rebuilds import rebuildable

    app = need_app(db.app)
    projection = rebuildable(app.registry.projection(name))
    end = await db.pool.run(highest_position())
    found = Site(app, projection, end, await at_work(db, [projection.label]))
    async with opened(db, alone=not found.is_elsewhere):
        if here and not found.is_elsewhere:
            await app.start(projection)
        yield found


@asynccontextmanager
async def opened(db: Database, *, alone: bool = False) -> AsyncIterator[App]:
    """The App, open on the chosen database; *alone*, its node has to do with no other."""
    app = need_app(db.app)
    mode = "solo" if alone else app.settings.mode
    # The ops port is the node's that runs beside this command
    app.settings = replace(app.settings, database_url=db.url, mode=mode, ops_port=-1)
    async with app:
        yield app


async def at_work(db: Database, labels: list[str]) -> list[str]:
    """The names of the nodes that run one of *labels*: those of the cluster, or one in mode solo."""
    found = [
        one.name
        for one in await db.pool.run(nodes())
        if one.state in ("active", "stalled")
        and not set(labels).isdisjoint(one.labels)
        and one.expires_in > 0
    ]
    connected = (await db.pool.run(server_facts())).apps > 0
    for one in await db.pool.run(progress(labels)):
        is_at_work = one.owner is not None and one.state in ("running", "paused") and connected
        if is_at_work and one.node and not found:
            found.append(one.node)
    return found
