"""Is there a pooler on the way, and does it lend backends from one statement to the next?

PgBouncer in transaction mode gives a client another backend whenever it likes between two
transactions. LISTEN and prepared statements do not survive that, so it must be declared
(``pooler="transaction"``). One that was not declared gives itself away: it tells its clients a
process number of its own, and of two connections one gets the backend that the other just used.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

from strandline.postgres.faults import driver_errors
from strandline.postgres.operations import AsyncpgSession, Op, one
from strandline.postgres.pool import unreachable
from strandline.postgres.statements import SqlFile

UNDECLARED_WARNING = (
    "database_url leads to a pooler that lends backends from one statement to the next:"
    ' set pooler="transaction", and direct_url to a way past it'
)
DIRECT_WARNING = (
    "direct_url leads to a pooler that lends backends from one statement to the next: LISTEN"
    " does not work there; let it lead to the server itself"
)


@dataclass(frozen=True, slots=True)
class Backend:
    """Who answers at the other end.

    Attributes:
        pid: Of the server's process.
        database: Its number on that server.
        started_at: When the server was started.
    """

    pid: int
    database: int
    started_at: datetime

    def is_beside(self, other: Backend) -> bool:
        """Whether both serve the same database of the same server."""
        return (self.database, self.started_at) == (other.database, other.started_at)


_sql = SqlFile(__name__)
BACKEND = _sql.one("backend", Backend)


def backend() -> Op[Backend]:
    """Answer who answers."""
    found = yield from one(BACKEND)
    assert found is not None
    return found


async def lends_backends(url: str, *, timeout: float) -> bool:
    """Whether a pooler at *url* gives one client's backend to another between two statements.

    Raises:
        Unavailable: No answer, or none in time.
    """
    try:
        async with asyncio.timeout(timeout), AsyncExitStack() as stack:
            return await _lends(url, stack)
    except driver_errors() as error:
        raise unreachable(error) from error


async def _lends(url: str, stack: AsyncExitStack) -> bool:
    first, session = await _connected(url, stack)
    before = await session.run(backend())
    if before.pid == first.get_server_pid():
        return False  # nobody stands between
    second, other = await _connected(url, stack)
    await second.execute("BEGIN")  # keeps the backend it gets, though the first is connected
    taken = await other.run(backend())
    if taken.pid == before.pid:
        return True
    return (await session.run(backend())).pid != before.pid


async def _connected(url: str, stack: AsyncExitStack) -> tuple[Any, AsyncpgSession]:
    connection = await asyncpg.connect(
        url, statement_cache_size=0, server_settings={"application_name": "strandline look"}
    )
    stack.callback(connection.terminate)
    return connection, AsyncpgSession(connection, "public")
