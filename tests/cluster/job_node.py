"""The App of a node that runs jobs and nothing else: ``job_node:app``; what ran stands in table ``ran``."""

from __future__ import annotations

import asyncio
import os

from strandline.app import App
from strandline.jobs.context import current
from strandline.jobs.retry import Retry

app = App("jobs", log_level="INFO")


async def note(name: str, what: str) -> None:
    async with app.pools.work.session() as session:
        await session.connection.execute(
            "INSERT INTO ran (name, what, pid) VALUES ($1, $2, $3)", name, what, os.getpid()
        )


@app.job(keep="all", retry=Retry(first=0.1))
async def hold(name: str, seconds: float, again: float | None = None) -> int:
    """Takes its time, from the second attempt on that of *again*, unless it is cancelled."""
    await note(name, "begun")
    is_first = current().attempt == 1 or again is None
    await asyncio.sleep(seconds if is_first else again)  # type: ignore[arg-type]
    await note(name, "ended")
    return os.getpid()


@app.job(keep="all")
async def cling(name: str) -> None:
    """Does not end, whoever asks."""
    await note(name, "begun")
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
