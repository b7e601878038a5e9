"""What is looked at once, when pools open: the same database at both ends, poolers, room.

Only a ``direct_url`` that leads elsewhere stops an app: its leases would be worth nothing. The rest
is said in the log, and by `strandline doctor`.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Protocol

from strandline.errors import InvalidSetting, Unavailable
from strandline.postgres import diagnosis
from strandline.postgres.faults import driver_errors
from strandline.postgres.operations import AsyncpgSession
from strandline.postgres.pooler import (
    DIRECT_WARNING,
    UNDECLARED_WARNING,
    Backend,
    backend,
    lends_backends,
)
from strandline.settings import Settings
from strandline.telemetry.journal import Journal

log = Journal("strandline.pools")


class Asked(Protocol):
    """What the checks need of a pool."""

    url: str
    application: str

    def session(self) -> AbstractAsyncContextManager[AsyncpgSession]:
        """A connection for the length of the block."""
        ...


async def check(work: Asked, control: Asked, settings: Settings, *, jobs: bool = False) -> None:
    """Say what will not work well with these pools, and refuse what must not be.

    Raises:
        InvalidSetting: ``direct_url`` leads to another database than ``database_url``.
    """
    try:
        async with asyncio.timeout(settings.connect_timeout):
            for warning in await _looked(work, control, settings, jobs=jobs):
                log.tell("connections_questionable", advice=warning)
    except Unavailable as error:
        log.tell("connections_unchecked", error=error)
    except driver_errors() as error:
        log.tell("connections_unchecked", error=error)


async def is_same_database(work: Asked, control: Asked) -> bool:
    """Whether both lead to one database of one server, which may restart meanwhile."""
    for _ in range(2):
        mine, other = (await _backend(work))[0], (await _backend(control))[0]
        if mine.is_beside(other):
            return True
    return False


async def _looked(work: Asked, control: Asked, settings: Settings, *, jobs: bool) -> list[str]:
    found = []
    _, is_behind = await _backend(work)
    limit = settings.connect_timeout
    if (
        is_behind
        and settings.pooler == "none"
        and work.url != settings.direct_url
        and await lends_backends(work.url, timeout=limit)
    ):
        found.append(UNDECLARED_WARNING)
    if control.url != work.url:
        if not await is_same_database(work, control):
            raise InvalidSetting(
                "direct_url",
                "...",
                "it leads to another server or database than database_url",
            )
        _, is_behind = await _backend(control)
        if is_behind and await lends_backends(control.url, timeout=limit):
            found.append(DIRECT_WARNING)
    async with control.session() as session:
        room = await session.run(diagnosis.room())
    if control.application == "strandline control":  # without a name we are not counted yet
        room = replace(room, apps=room.apps + 1)
    short = diagnosis.shortage(room, diagnosis.Needs.of(settings, jobs=jobs))
    return [*found, short] if short else found


async def _backend(pool: Asked) -> tuple[Backend, bool]:
    """Who answers, and whether somebody stands between."""
    async with pool.session() as session:
        found = await session.run(backend())
        return found, found.pid != session.connection.get_server_pid()
