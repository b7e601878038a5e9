"""What an agent does about its failures: tells them, rests when every try has failed, goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from strandline.daemon.agent_parts import Surroundings
from strandline.daemon.checkpoint import take_write
from strandline.daemon.described import plain
from strandline.daemon.failures import Ledger
from strandline.daemon.resting import Rest
from strandline.daemon.telling import Telling
from strandline.errors import DiskFull, OwnershipLost, Unavailable
from strandline.projections.failure_policy import Category
from strandline.telemetry.journal import Journal

log = Journal("strandline.agent")

LOOK_EVERY = 1.0  # seconds between looks whether the database takes writes again
LOOK_WITHIN = 3.0  # seconds for one


class Recovery:
    """The failures of one agent, and its way back.

    Args:
        shard: The agent's.
        label: Of its projection or subscription.
        owner: The node's id.
        around: What agents of the node share.
        stopping: Set when the agent is told to stop.

    Attributes:
        ledger: What it fails with.
        telling: Its voice.
        reason: The failure that it has not got over; empty if there is none.
        next_at: When it tries again, while it pauses.
        failures: So far.
    """

    def __init__(
        self,
        shard: str,
        label: str,
        owner: UUID,
        around: Surroundings,
        stopping: asyncio.Event,
    ) -> None:
        self.ledger = Ledger(label)
        self.telling = Telling(
            shard, owner, around.node, control=around.control, signals=around.signals
        )
        self.reason = ""
        self.next_at: datetime | None = None
        self.failures = 0
        self._shard = shard
        self._rest = Rest(around.clock, stopping)
        self._clock = around.clock
        self._backoff = around.backoff
        self._control = around.control
        self._signals = around.signals

    async def between_tries(self, seconds: float) -> None:
        """Wait, or until it is told to stop."""
        await self._rest.between_tries(seconds)

    async def idle(self, seconds: float | None, until: Coroutine[Any, Any, None]) -> bool:
        """Wait for *until*, but no longer than *seconds*, if not None; whether that time is over."""
        if seconds is not None:
            return await self._rest.no_longer(seconds, until)
        await until
        return False

    def nudge(self) -> None:
        """End the pause under way: somebody has changed something."""
        self._rest.nudge()

    def failed(self, error: Exception, *, stopping: bool, category: Category | None = None) -> None:
        """A try has failed."""
        failure = self.ledger.failed(error, stopping=stopping, category=category)
        self.failures += 1
        self.reason = failure.reason
        if not isinstance(error, OwnershipLost):
            log.tell(
                "batch_failed",
                shard=self._shard,
                phase=failure.phase.value,
                reason=plain(str(error)),
                error=type(error).__name__,
                category=failure.category,
            )
        self._tell("batch_failed", error)

    def got_over(self) -> None:
        """A batch was committed, or there is nothing left to do."""
        self.reason = ""
        if self.ledger.got_over():
            log.tell("shard_recovered", shard=self._shard)
            self._signals.tell("shard_recovered", shard=self._shard)

    async def pause(self, error: Exception) -> None:
        """Rest; each time longer while nothing succeeds between.

        A pause for an outage ends when the database takes writes again. A full disk cannot be
        seen from outside: only the next try tells.
        """
        clock, ledger = self._clock, self.ledger
        seconds = self._backoff.pause_after(ledger.pauses)
        ledger.pauses += 1
        self.next_at = clock.now() + timedelta(seconds=seconds)
        log.tell(
            "shard_paused",
            shard=self._shard,
            seconds=seconds,
            reason=plain(str(error)),
            error=type(error).__name__,
        )
        self._tell("shard_paused", error, seconds=seconds, pauses=ledger.pauses)
        is_outage = isinstance(error, Unavailable) and not isinstance(error, DiskFull)
        until = clock.monotonic() + seconds
        is_told = False
        while (left := until - clock.monotonic()) > 0:
            is_told = is_told or await self.telling.paused(ledger.trouble(left))
            left = until - clock.monotonic()  # the note may have taken seconds
            looks = is_outage or not is_told
            if await self._rest.during_pause(min(left, LOOK_EVERY) if looks else left):
                break
            if is_outage and await self._takes_writes():
                break
        self.next_at = None
        ledger.tries = 0

    async def _takes_writes(self) -> bool:
        try:
            async with asyncio.timeout(LOOK_WITHIN):
                await self._control.run(take_write())
        except Exception:  # whatever it is, the pause goes on
            return False
        return True

    def _tell(self, name: str, error: Exception, **facts: Any) -> None:
        failing = self.ledger.failing
        assert failing is not None
        where = {"phase": failing.phase.value, "category": failing.category.value}
        self._signals.tell(name, shard=self._shard, error=error, **where, **facts)
