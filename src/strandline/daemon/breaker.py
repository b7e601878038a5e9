"""Ends transactions that a frozen owner has left open, so that they do not hold up a take-over.

A process that is stopped in the middle of a batch keeps its transaction, and with it the lock on
the shard's row. The shard belongs to another node by then, whose claim waits for that row. What
the transaction did could not be committed any more by right: its owner has no grant. So it is
ended, if it is one of ours, nothing happens in it, and it holds the very row that is claimed.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import asdict, dataclass
from uuid import UUID

from strandline.cluster import log as node_log
from strandline.errors import StrandlineError
from strandline.postgres.operations import Op, many
from strandline.postgres.pools import Pool
from strandline.postgres.statements import SqlFile
from strandline.telemetry.signals import Signals

log = logging.getLogger("strandline.breaker")

IDLE = 1.0  # seconds without a statement, after which a transaction counts as left
ANSWER_WITHIN = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class Zombie:
    """A session that held a shard's row in a transaction of the past."""

    pid: int
    application: str
    client: str | None
    idle: float
    query: str
    ended: bool


_sql = SqlFile(__name__)
END = _sql.many("end_zombies", Zombie)


def end_zombies(shard: str, *, idle: float = IDLE) -> Op[list[Zombie]]:
    """End the sessions that hold *shard*'s row and have done nothing for *idle* seconds."""
    return (yield from many(END, shard, idle))


async def free(
    shard: str, owner: UUID, node: str, *, control: Pool, signals: Signals
) -> list[Zombie]:
    """End whoever holds *shard*'s row without doing anything, and tell. Never raises.

    Args:
        shard: The shard that is being claimed.
        owner: The node that claims it.
        node: Its name.
        control: Where this runs: work may be waiting for the very row.
        signals: Told ``zombie_ended``.
    """
    try:
        async with asyncio.timeout(ANSWER_WITHIN):
            found = await control.run(end_zombies(shard))
            for one in found:
                log.error(
                    "session %d (%s, client %s) held shard %s in a transaction idle for %.1f s: %s",
                    one.pid,
                    one.application,
                    one.client or "local",
                    shard,
                    one.idle,
                    "ended" if one.ended else "it could not be ended",
                )
                signals.tell("zombie_ended", shard=shard, pid=one.pid, idle=one.idle)
                facts = asdict(one)
                await control.run(
                    node_log.write("zombie_ended", node=owner, name=node, work=shard, detail=facts)
                )
    except (StrandlineError, TimeoutError) as error:
        log.warning("who holds shard %s could not be found out: %s", shard, error)
        return []
    return found
