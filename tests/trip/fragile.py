"""An app whose trips may meet poison, its dead letters, and events as another language would append them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from strandline.app import App
from trip.domain import trip_app
from trip.poison import FragileTrip

QUICK = {"failure_pause": 0.2, "poll_interval": 0.05}
LETTERS = """SELECT label, tenant, key, position, stream, version, type, status, category, attempts
               FROM strandline.dead_letters ORDER BY position, id"""


def fragile(url: str, *, on_error: Any = None, **settings: Any) -> App:
    """An app whose trips fail at poison."""
    declared = {} if on_error is None else {"on_error": on_error}
    given = {**QUICK, **settings}
    return trip_app(url, models={"trips": FragileTrip}, declared=declared, **given)


@asynccontextmanager
async def mended() -> AsyncIterator[None]:
    """As if the code had been mended and deployed."""
    FragileTrip.is_mended = True
    try:
        yield
    finally:
        FragileTrip.is_mended = False


async def raw(connection: Any, stream: str, kind: str, data: str) -> int:
    """Append as another language would: whatever JSON, whatever type."""
    events = json.dumps([{"type": kind, "data": json.loads(data)}])
    await connection.execute("SELECT strandline.append($1, $2)", stream, events)
    found: int = await connection.fetchval("SELECT max(position) FROM strandline.events")
    return found


async def letters(connection: Any) -> list[dict[str, Any]]:
    return [dict(row) for row in await connection.fetch(LETTERS)]


async def none_open(app: App) -> bool:
    """Whether no letter is open."""
    return not await app.letters.list()
