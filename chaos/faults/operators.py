"""What operators do at bad moments: declare a living node dead, ask the leader to resign."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import asyncpg

from chaos import choices
from chaos.blow import Blow, Fault, NoTarget
from strandline.cluster import membership
from strandline.postgres.operations import AsyncpgSession, Op

SCHEMA = "strandline"
REASON = "chaos"


async def evict_owner(blow: Blow) -> None:
    """An owner in the middle of its work is declared dead: the zombie that never slept."""
    node = await blow.aim(choices.owner(blow.field, blow.random))
    look = blow.field.watch.latest
    rows = [one.id for one in look.nodes.values() if one.pid == node.pid] if look else []
    if not rows:
        raise NoTarget
    blow.hit()
    for one in rows:
        await _do(blow, membership.evict(UUID(one), REASON, channel=membership.channel(SCHEMA)))


async def ask_to_resign(blow: Blow) -> None:
    """The leader is asked to let another one lead."""
    await blow.aim(choices.leader(blow.field))
    blow.hit()
    await _do(blow, membership.request_resign(REASON, channel=membership.channel(SCHEMA)))


async def _do(blow: Blow, op: Op[Any]) -> None:
    connection: Any = await asyncpg.connect(blow.field.url)
    try:
        await AsyncpgSession(connection, SCHEMA).run(op)
    finally:
        await connection.close()


ALL = (
    Fault("evict_owner", evict_owner, in_solo=False),
    Fault("ask_to_resign", ask_to_resign, in_solo=False),
)
