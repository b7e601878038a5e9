"""What agents say of themselves: a status for people, and loudly when a shard is lost.

None of it may hold up or stop the work: what cannot be written in time is left out.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any
from uuid import UUID

from strandline.cluster import log as node_log
from strandline.daemon import checkpoint as checkpoints
from strandline.daemon.batch import Batch
from strandline.daemon.checkpoint import Checkpoint, Owner, Trouble
from strandline.errors import OwnershipLost
from strandline.postgres.operations import Answer, Op
from strandline.postgres.pools import Pool
from strandline.telemetry.journal import Journal
from strandline.telemetry.signals import Signals

log = Journal("strandline.agent")

TELL_EVERY = 2.0  # seconds between notes of the rate, while running
WITHIN = 2.0  # seconds for one note


class Telling:
    """The voice of one agent."""

    def __init__(
        self, shard: str, owner: UUID, node: str, *, control: Pool, signals: Signals
    ) -> None:
        self._shard = shard
        self._owner = owner
        self._node = node
        self._control = control
        self._signals = signals
        self._state = ""
        self._last = (0.0, 0)

    def committed(self, batch: Batch, events: int) -> None:
        """*batch* of *events* is committed."""
        self._signals.tell(
            "batch_committed",
            shard=self._shard,
            floor=batch.page.floor,
            ceiling=batch.page.ceiling,
            events=events,
            seconds=None if batch.began is None else time.monotonic() - batch.began,
        )

    async def running(self, events: int) -> None:
        """It runs, and has processed *events* so far; noted now and then."""
        since, before = self._last
        now = time.monotonic()
        if now - since >= TELL_EVERY or self._state != "running":
            self._last = (now, events)
            await self._note("running", rate=(events - before) / (now - since) if since else 0.0)

    async def paused(self, trouble: Trouble | None) -> bool:
        """It rests, since every try has failed; whether that could be written down."""
        return await self._note("paused", trouble=trouble)

    async def stopped(self, trouble: Trouble | None = None) -> None:
        """It has ended; *trouble* if something had failed that it had not got over."""
        await self._note("stopped", trouble=trouble)

    async def lost(self, error: OwnershipLost, held: Checkpoint | None) -> None:
        """The shard is another's: told loudly, with the numbers.

        If the shard itself is gone, since its projection was cut otherwise, that is no alarm.
        """
        found = await self._answer(checkpoints.owner_of(self._shard))
        if found == (None,):
            log.tell("shard_withdrawn", shard=self._shard)
            self._signals.tell("shard_withdrawn", shard=self._shard)
            return
        self._signals.tell("ownership_lost", shard=self._shard, error=error)
        now = found[0] if found else None
        was = f"epoch {held.epoch} at position {held.position}" if held else "no epoch yet"
        log.tell("ownership_lost", shard=self._shard, held=was, owner=_whose(now), error=error)
        facts = {
            "held": {"epoch": held.epoch, "position": held.position} if held else None,
            "now": _facts(now),
            "error": str(error),
        }
        await self._answer(
            node_log.write(
                "ownership_lost",
                node=self._owner,
                name=self._node,
                work=self._shard,
                epoch=held.epoch if held else None,
                detail=facts,
            )
        )

    async def _note(self, state: str, *, rate: float = 0.0, trouble: Trouble | None = None) -> bool:
        self._state = state
        op = checkpoints.tell(self._shard, state, node=self._node, rate=rate, trouble=trouble)
        return await self._answer(op) != ()

    async def _answer(self, op: Op[Answer]) -> tuple[Answer] | tuple[()]:
        """What *op* answers, if it does in time."""
        try:
            async with asyncio.timeout(WITHIN):
                return (await self._control.run(op),)
        except Exception as error:  # whatever it is, the work goes on
            log.tell("note_not_written", shard=self._shard, error=error)
            return ()


def _whose(now: Owner | None) -> str:
    if now is None:
        return "it cannot be seen whose it is"
    who = f"of node {now.node or 'unknown'} ({now.owner})" if now.owner else "of nobody"
    return f"it is {who}, epoch {now.epoch}, at position {now.position}"


def _facts(now: Owner | None) -> dict[str, Any] | None:
    if now is None:
        return None
    owner = str(now.owner) if now.owner else None
    return {"owner": owner, "node": now.node, "epoch": now.epoch, "position": now.position}
