"""Nodes as processes of their own that run nothing but jobs, and what became of these."""

from __future__ import annotations

import json
import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg
from crowd import HERE, PATIENCE, PYTHONPATH, QUICK
from tally import holds

from strandline.testing.nodes import NodeProcess

RAN = "CREATE TABLE ran (at timestamptz DEFAULT clock_timestamp(), name text, what text, pid int)"


class JobCrowd:
    """Nodes of ``job_node:app`` on one database."""

    def __init__(self, url: str, folder: Path, **settings: Any) -> None:
        self.url = url
        self.folder = folder
        self.settings = {**QUICK, "poll_interval": 0.1, "job_poll_interval": 0.2, **settings}
        self._stack = AsyncExitStack()
        self.connection: Any = None

    async def __aenter__(self) -> JobCrowd:
        self.connection = await asyncpg.connect(self.url)
        await self.connection.execute(RAN)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()
        self.connection.terminate()

    async def start(self, *names: str, **settings: Any) -> list[NodeProcess]:
        """Start nodes at once, and wait until they are active."""
        nodes = [
            NodeProcess(
                "job_node:app",
                self.url,
                name=name,
                settings={**self.settings, **settings},
                environment={"PYTHONPATH": os.pathsep.join([str(HERE), *PYTHONPATH])},
                log=self.folder / f"{name}.log",
                folder=HERE / "cluster",
            )
            for name in names
        ]
        for node in nodes:
            await self._stack.enter_async_context(node)
        for node in nodes:
            await node.until("active", timeout=PATIENCE)
        return nodes

    async def enqueue(self, kind: str, **args: Any) -> int:
        found: int = await self.connection.fetchval(
            "SELECT strandline.enqueue($1, $2::jsonb)", kind, json.dumps(args)
        )
        return found

    async def begun(self, name: str) -> list[int]:
        """The processes that have begun the job *name*, in their order."""
        rows = await self.connection.fetch(
            "SELECT pid FROM ran WHERE name = $1 AND what = 'begun' ORDER BY at", name
        )
        return [row["pid"] for row in rows]

    async def until_begun(self, name: str, times: int = 1) -> list[int]:
        async def look() -> list[int] | None:
            found = await self.begun(name)
            return found if len(found) >= times else None

        found: list[int] = await holds(look, PATIENCE)
        return found

    async def live(self, job: int) -> Any:
        return await self.connection.fetchrow("SELECT * FROM strandline.jobs WHERE id = $1", job)

    async def history(self, job: int) -> list[Any]:
        found: list[Any] = await self.connection.fetch(
            "SELECT * FROM strandline.job_history WHERE id = $1", job
        )
        return found

    async def until_ended(self, job: int) -> Any:
        """The only row that the history has of *job*."""
        rows = await holds(lambda: self.history(job), PATIENCE)
        assert len(rows) == 1
        return rows[0]
