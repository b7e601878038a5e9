"""How an agent comes by its checkpoint: claimed, read again after a doubt, claimed anew."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from strandline.daemon import breaker
from strandline.daemon import checkpoint as checkpoints
from strandline.daemon.agent_parts import Surroundings
from strandline.daemon.checkpoint import Checkpoint
from strandline.errors import CheckpointMoved, DatabaseUnavailable
from strandline.telemetry.journal import Journal

log = Journal("strandline.agent")


class Claiming:
    """Gets the checkpoint of one shard for one agent.

    Args:
        shard: Its name.
        owner: The node's id.
        around: What agents of the node share.
        granted: Epoch of the assignment under which it may be claimed; None where nobody assigns.
        start: Where a shard begins that has never run.
        is_over: Whether the agent was told to stop meanwhile.
    """

    def __init__(
        self,
        shard: str,
        owner: UUID,
        around: Surroundings,
        *,
        granted: int | None,
        start: int,
        is_over: Callable[[], bool],
    ) -> None:
        self._shard = shard
        self._owner = owner
        self._node = around.node
        self._granted = granted
        self._start = start
        self._pool = around.pool
        self._control = around.control
        self._signals = around.signals
        self._is_over = is_over

    async def checkpoint(self, before: Checkpoint | None) -> Checkpoint:
        """The checkpoint as it is in the database, claimed if it is not this agent's.

        Args:
            before: As this agent had it last.

        Raises:
            OwnershipLost: The shard is another's.
        """
        if before is None:
            return await self._claimed(only_free=False)
        try:
            return await self._pool.run(checkpoints.reread(before))
        except CheckpointMoved:
            now = await self._pool.run(checkpoints.owner_of(self._shard))
            if now is None or now.owner is not None:
                raise
            log.tell("shard_claimed_anew", shard=self._shard, epoch=now.epoch)
            return await self._claimed(only_free=True)

    async def _claimed(self, *, only_free: bool) -> Checkpoint:
        while True:
            op = checkpoints.claim(
                self._shard,
                self._owner,
                start=self._start,
                granted=self._granted,
                only_free=only_free,
            )
            try:
                found = await self._pool.run(op)
            except DatabaseUnavailable as error:
                if not checkpoints.is_locked(error) or self._is_over():
                    raise
                log.tell("shard_held", shard=self._shard)
                await breaker.free(
                    self._shard,
                    self._owner,
                    self._node,
                    control=self._control,
                    signals=self._signals,
                )
                continue
            self._signals.tell("shard_claimed", shard=self._shard, epoch=found.epoch)
            return found
