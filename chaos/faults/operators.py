"""What operators do at bad moments: declare a living node dead, ask the leader to resign."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import UUID

import asyncpg

from chaos import choices
from chaos.blow import Blow, Fault, NoTarget
from strandline.cluster import membership
from strandline.errors import Unavailable
from strandline.postgres.operations import AsyncpgSession, Op

SCHEMA = "strandline"
CHANNEL = membership.channel(SCHEMA)
REASON = "chaos"
PATIENCE = 20.0  # seconds an operator tries
AGAIN = 0.2


async def evict_owner(blow: Blow) -> None:
    """An owner in the middle of its work is declared dead: the zombie that never slept."""
    node = await blow.aim(choices.owner(blow.field, blow.random))
    look = blow.field.watch.latest
    rows = [one.id for one in look.nodes.values() if one.pid == node.pid] if look else []
    if not rows:
        raise NoTarget
    blow.hit()
    for one in rows:
        await _do(blow, partial(membership.evict, UUID(one), REASON, channel=CHANNEL))


async def ask_to_resign(blow: Blow) -> None:
    """The leader is asked to let another one lead."""
    await blow.aim(choices.leader(blow.field))
    blow.hit()
    await _do(blow, partial(membership.request_resign, REASON, channel=CHANNEL))


async def _do(blow: Blow, op: Callable[[], Op[Any]]) -> None:
    """As an operator does, who tries again while the database cannot do it."""
    connection: Any = await asyncpg.connect(blow.field.url)
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    await AsyncpgSession(connection, SCHEMA).run(op())
                except Unavailable:
                    await asyncio.sleep(AGAIN)
                else:
                    return
    finally:
        await connection.close()


ALL = (
    Fault("evict_owner", evict_owner, in_solo=False),
    Fault("ask_to_resign", ask_to_resign, in_solo=False),
)
