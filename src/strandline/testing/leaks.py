"""Nothing may be left: no task, no connection in use, no transaction open on the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg

from strandline.app import App
from strandline.postgres.operations import AsyncpgSession, many
from strandline.postgres.statements import SqlFile


@dataclass(frozen=True, slots=True)
class IdleTransaction:
    """A session that holds a transaction open and does nothing."""

    words: str


_sql = SqlFile(__name__)
IDLE = _sql.many("idle_transactions", IdleTransaction)


@asynccontextmanager
async def no_leaks(app: App | None = None, *, patience: float = 1.0) -> AsyncIterator[None]:
    """Fail if the block leaves a task running, or *app* with a connection or transaction in use.

    Args:
        app: Looked at when it is open at the end of the block.
        patience: Seconds that what is ending may still take.

    Raises:
        AssertionError: Something is left; the message names it.
    """
    before = asyncio.all_tasks()
    was_open = app is not None and app.is_open
    yield
    if app is not None and app.is_open and not was_open:
        raise AssertionError(f"left behind: app {app.name!r} is open")
    left = await _until_none(lambda: running_tasks(before), patience)
    if app is not None and app.is_open:
        left += await _until_none(lambda: connections_in_use(app), patience)
        left += await idle_transactions(app.url, patience=patience)
    if left:
        raise AssertionError("left behind: " + "; ".join(left))


def running_tasks(before: set[asyncio.Task[Any]]) -> list[str]:
    """The tasks of this loop that are neither done nor in *before* nor the caller's, in words."""
    mine = asyncio.current_task()
    now = (one for one in asyncio.all_tasks() if one not in before and one is not mine)
    return [f"task {one.get_name()!r}: {one.get_coro()!r}" for one in now if not one.done()]


def connections_in_use(app: App) -> list[str]:
    """The pools of *app* with a connection checked out, in words."""
    pools = (app.pools.work.statistics(), app.pools.control.statistics())
    return [f"pool {one.name!r} has {one.in_use} in use" for one in pools if one.in_use]


async def idle_transactions(url: str, *, patience: float = 1.0) -> list[str]:
    """The transactions open and idle in the database at *url* after *patience* seconds, in words."""
    connection: Any = await asyncpg.connect(url)
    session = AsyncpgSession(connection, "public")
    try:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        while True:
            rows = await session.run(many(IDLE))
            if not rows or loop.time() > deadline:
                return [row.words for row in rows]
            await asyncio.sleep(0.02)
    finally:
        await connection.close()


async def _until_none(look: Callable[[], list[str]], patience: float) -> list[str]:
    """What *look* still finds after *patience* seconds, asked as soon as it finds nothing."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience
    while (found := look()) and loop.time() < deadline:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.01)
    return found
