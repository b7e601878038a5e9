"""What is done to nodes and databases."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
from crowd import HERE, QUICK
from tally import connected

from strandline.app import App
from strandline.testing.nodes import NodeProcess


async def opened(url: str, stream: str) -> Any:
    """A connection with a transaction that has appended, and does not end."""
    connection = await asyncpg.connect(url, server_settings={"application_name": "a report"})
    await connection.execute("BEGIN")
    await connection.fetchval(
        "SELECT position FROM strandline.append($1, $2)", stream, '[{"type": "ticked", "data": {}}]'
    )
    return connection


async def careless(app: App, over: asyncio.Event) -> None:
    """Hold a transaction that should have ended."""
    async with app.transaction() as tx:
        await tx.fetch("SELECT 1")
        await over.wait()


async def never() -> None:
    await asyncio.Event().wait()


async def hours_go_by(url: str) -> None:
    """Nodes that are gone have been so for long."""
    async with connected(url) as somebody:
        await somebody.execute(
            "UPDATE strandline.nodes SET left_at = left_at - interval '5 hours',"
            " beat_at = beat_at - interval '5 hours' WHERE left_at IS NOT NULL"
        )


def process(url: str, folder: Path, name: str, port: int, **settings: Any) -> NodeProcess:
    """A node as a process of its own, which is scraped at *port*."""
    return NodeProcess(
        "tally_node:app",
        url,
        name=name,
        settings={**QUICK, "ops_port": port, **settings},
        environment={"PYTHONPATH": str(HERE), "PYTHONUNBUFFERED": "1"},
        log=folder / f"{name}.log",
        folder=HERE / "cluster",
    )
