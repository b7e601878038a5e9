"""Ends transactions that a frozen process has left open, so that they do not hold up others.

A process that is stopped in the middle of a batch keeps its transaction, and with it the lock on
the shard's row. The shard belongs to another node by then, whose claim waits for that row. What
the transaction did could not be committed any more by right: its owner has no grant. So it is
ended, if it is one of ours, nothing happens in it, and it holds the very row that is claimed.

One that is stopped in the middle of a step of a build keeps the build's row. And one that is stopped
within a statement (see ``silence``) keeps a lock on its tables, for which a swap waits. These are
ended as well, but not as soon, since their owner has the right to go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Protocol
from uuid import UUID

from strandline.cluster import log as node_log
from strandline.errors import StrandlineError
from strandline.postgres import silence
from strandline.postgres.operations import Answer, Op, many
from strandline.postgres.pools import Pool
from strandline.postgres.silence import Zombie
from strandline.postgres.statements import SqlFile
from strandline.telemetry.journal import Journal
from strandline.telemetry.signals import Signals

log = Journal("strandline.breaker")

IDLE = 1.0  # seconds without a statement, after which a transaction counts as left
SILENT = 3.0  # the same where the owner may go on, and only be slow
ANSWER_WITHIN = 5.0  # seconds


class Runner(Protocol):
    """A pool, or a session."""

    async def run(self, op: Op[Answer], /) -> Answer:
        """Run *op*."""
        ...


_sql = SqlFile(__name__)
END = _sql.many("end_zombies", Zombie)
END_STEPPERS = _sql.many("end_steppers", Zombie)


def end_zombies(shard: str, *, idle: float = IDLE) -> Op[list[Zombie]]:
    """End the sessions that hold *shard*'s row and have done nothing for *idle* seconds."""
    return (yield from many(END, shard, idle))


def end_steppers(number: int, turn: str, *, idle: float | None = None) -> Op[list[Zombie]]:
    """End the sessions that are at a step of build *number*, or have its *turn*, and do nothing."""
    return (yield from many(END_STEPPERS, number, turn, SILENT if idle is None else idle))


def end_silent(tables: Sequence[str], *, idle: float | None = None) -> Op[list[Zombie]]:
    """End the sessions that were silent within a statement on one of *tables*."""
    return (yield from silence.end_silent(tables, idle=SILENT if idle is None else idle))


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
            what = f"shard {shard}"
            await _tell(found, what, shard, by=control, signals=signals, owner=owner, node=node)
    except (StrandlineError, TimeoutError) as error:
        log.tell("shard_holder_unknown", shard=shard, error=error)
        return []
    return found


async def free_build(
    op: Op[list[Zombie]], shadow: str, node: str, *, by: Runner, signals: Signals
) -> None:
    """End whoever holds up the build *shadow*, as *op* says, and tell.

    Args:
        op: ``end_steppers`` or ``end_silent``.
        shadow: The label of the build.
        node: Name of the node that takes a step of it.
        by: Where this runs; not waiting for what is held.
        signals: Told ``zombie_ended``.
    """
    found = await by.run(op)
    await _tell(found, f"build {shadow}", shadow, by=by, signals=signals, node=node)


async def _tell(
    found: Sequence[Zombie],
    what: str,
    work: str,
    *,
    by: Runner,
    signals: Signals,
    node: str,
    owner: UUID | None = None,
) -> None:
    for one in found:
        log.tell(
            "zombie_ended",
            pid=one.pid,
            application=one.application,
            client=one.client or "local",
            held=what,
            idle=one.idle,
            outcome="ended" if one.ended else "it could not be ended",
        )
        signals.tell("zombie_ended", shard=work, pid=one.pid, idle=one.idle)
        facts = asdict(one)
        await by.run(node_log.write("zombie_ended", node=owner, name=node, work=work, detail=facts))
