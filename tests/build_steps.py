"""Steps of a rebuild taken by hand; shared by tests of what reviews have found."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from tally import connected

from strandline.app import App
from strandline.daemon.batch import Processor
from strandline.daemon.checkpoint import Checkpoint, claim
from strandline.daemon.feed import Feed
from strandline.daemon.rebuilds import Build
from strandline.projections.slice import WHOLE

SOLO: dict[str, Any] = {"mode": "solo", "poll_interval": 0.02}


UNDECODABLE = """SELECT strandline.append('odd', '[{"type": "ticked", "data": {"number": "x"}}]')"""


async def builder_of(app: App, build: Build) -> tuple[Processor, Checkpoint]:
    """What processes the only shard of *build*, and its claim."""
    make = next(
        one.build.processor
        for one in app.opened_runtime.definitions(app._begin)
        if one.label == build.label and one.build is not None
    )
    return make(build, WHOLE), await app.pools.work.run(claim(f"{build.shadow}:all", uuid4()))


async def built(app: App, build: Build, mark: int) -> Checkpoint:
    """Process *build* up to *mark*, by hand."""
    processor, at = await builder_of(app, build)
    feed = Feed(app.pools.work, app.registry.types, app.settings)
    feed.move(mark)
    page = await feed.page(at.position, processor.appetite)
    await processor.commit(await processor.prepare(page), at)
    return at.at(page.ceiling)


async def state_of(app: App) -> str:
    return (await app.rebuilds())[-1].state


async def is_waiting(url: str) -> bool:
    async with connected(url) as look:
        found = await look.fetchval(
            """SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND wait_event_type = 'Lock'"""
        )
    return bool(found)
