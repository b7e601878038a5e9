"""Rows of jobs, nodes and schedules as the duties of a leader find them, written by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from strandline.jobs.right import Right
from strandline.postgres.operations import AsyncpgSession, Op

AVAILABLE, SCHEDULED, RUNNING, BLOCKED = range(4)


class Tables:
    """The tables of one database."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self._ids = 0

    async def run(self, op: Op[Any]) -> Any:
        return await AsyncpgSession(self.connection, "strandline").run(op)

    async def rows(self, sql: str, *arguments: Any) -> list[Any]:
        found: list[Any] = await self.connection.fetch(sql, *arguments)
        return found

    async def one(self, sql: str, *arguments: Any) -> Any:
        return await self.connection.fetchval(sql, *arguments)

    async def job(self, state: int = AVAILABLE, **columns: Any) -> int:
        """A job in *state*; *columns* are SQL expressions if they are texts. Its id."""
        self._ids += 1
        given = {"id": self._ids, "kind": "'test'", "state": state, **columns}
        names, values = ", ".join(given), ", ".join(str(one) for one in given.values())
        await self.connection.execute(f"INSERT INTO strandline.jobs ({names}) VALUES ({values})")
        return self._ids

    async def running(self, number: int, *, fetch: int = 1, **columns: Any) -> int:
        """A job that node *number* has claimed."""
        given = {"attempt": 1, "claimed_at": "now()", **columns}
        return await self.job(RUNNING, claim=(number << 32) + fetch, **given)

    async def node(self, state: str = "active") -> int:
        """A node; its number."""
        number: int = await self.one(
            """INSERT INTO strandline.nodes (id, name, state, mode, pulse, ttl, expires_at)
               VALUES ($1, 'n', $2, 'cluster', 'loop', 15, now() + interval '1 hour') RETURNING number""",
            *(uuid4(), state),
        )
        return number

    async def lead(self, node: UUID | None = None) -> Right:
        """Let *node* lead from now on, in a new term."""
        me = node or uuid4()
        epoch = await self.one(
            """UPDATE strandline.leases SET holder = $1, epoch = epoch + 1,
                      expires_at = now() + interval '1 hour' RETURNING epoch""",
            me,
        )
        return Right(me, epoch)

    async def state(self, job: int) -> int | None:
        """Of *job*; None: it is no live job."""
        found: int | None = await self.one("SELECT state FROM strandline.jobs WHERE id = $1", job)
        return found


@asynccontextmanager
async def tables(url: str) -> AsyncIterator[Tables]:
    connection: Any = await asyncpg.connect(url, server_settings={"TimeZone": "UTC"})
    try:
        yield Tables(connection)
    finally:
        connection.terminate()
