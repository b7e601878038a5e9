"""The first sign that something was noticed: a changed row, or a line in a log."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

EVERY = 0.03  # seconds between looks at the logs
TROUBLE = re.compile(r" (?:WARNING|ERROR|CRITICAL) ")

SIGNS = """
    SELECT extract(epoch FROM at)::float8 AS at, kind, name, owner::text AS owner, epoch, detail
      FROM chaos.signs WHERE at > to_timestamp($1) ORDER BY id
"""


@dataclass(frozen=True)
class Sign:
    """A row that changed."""

    at: float
    kind: str
    name: str
    owner: str | None
    epoch: int | None
    detail: str


async def signs_since(url: str, at: float) -> list[Sign]:
    """The rows that changed after the time of day *at*."""
    connection: Any = await asyncpg.connect(url)
    try:
        return [Sign(**dict(row)) for row in await connection.fetch(SIGNS, at)]
    finally:
        await connection.close()


class Logs:
    """Reads the logs of processes as they grow, and notes when a line of trouble came.

    The time is that of reading: a process whose clock was moved writes what it likes.
    """

    def __init__(self) -> None:
        self._read: dict[str, tuple[Path, int]] = {}
        self._lines: list[tuple[float, str, str]] = []

    def add(self, name: str, path: Path) -> None:
        """Read *path* as the log of *name*."""
        self._read[name] = (path, 0)

    async def follow(self) -> None:
        """Read for ever."""
        while True:
            self.read()
            await asyncio.sleep(EVERY)

    def read(self) -> None:
        """Read what is new."""
        now = time.time()
        for name, (path, begun) in self._read.items():
            if not path.exists() or path.stat().st_size == begun:
                continue
            with path.open("rb") as file:
                file.seek(begun)
                text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._read[name] = (path, begun + len(whole))
            for line in whole.decode(errors="replace").splitlines():
                if TROUBLE.search(line):
                    self._lines.append((now, name, line))

    def first_trouble(self, since: float, names: Collection[str] | None) -> float | None:
        """When the first line of trouble came after *since*, in the logs of *names* (or in any)."""
        found = (
            at for at, name, _ in self._lines if at > since and (names is None or name in names)
        )
        return min(found, default=None)
