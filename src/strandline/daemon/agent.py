"""Runs one shard on this node: claim, then page by page to the mark, then wait.

States: *claiming* → *running* ⇄ *paused* → *stopped*. A failure is tried again after 250 ms, 500 ms
and 1 s, then the agent pauses 30 s and starts over; sooner when the database was away and answers
again. An ``OwnershipLost`` is never tried again: the agent stops itself, since another owner exists.

While a batch commits, the next page is fetched and folded. A batch is committed only after the
one before it; when a commit fails, everything prepared is thrown away and the agent goes back to
the checkpoint in the database, which alone tells whether that commit took effect.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from strandline.backoff import Backoff
from strandline.daemon import checkpoint as checkpoints
from strandline.daemon.batch import Batch, Processor
from strandline.daemon.checkpoint import Checkpoint
from strandline.daemon.feed import Feed, Page
from strandline.errors import CheckpointMoved, EventFailure, OwnershipLost, Unavailable
from strandline.events.gaps import read_mark
from strandline.loops import Loop, Rhythm
from strandline.postgres.pools import Pool
from strandline.telemetry.signals import Signals

log = logging.getLogger("strandline.agent")

LOOK_EVERY = 1.0  # seconds between looks whether the database answers again, in a pause
TELL_EVERY = 2.0  # seconds between notes of the rate, while running


@dataclass(frozen=True, slots=True)
class AgentStatistics:
    """How an agent is doing. ``state`` is claiming, running, paused or stopped."""

    shard: str
    state: str
    position: int
    epoch: int
    events: int
    batches: int
    failures: int
    reason: str


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What agents of one node share."""

    feed: Feed
    pool: Pool
    control: Pool
    signals: Signals
    backoff: Backoff
    owner: UUID
    node: str
    on_progress: Callable[[], None]


class Agent:
    """The running of one shard on one node."""

    def __init__(
        self, shard: str, processor: Processor, around: Surroundings, *, start: str | int = 0
    ) -> None:
        self.shard = shard
        self.state = "claiming"
        self.reason = ""
        self.checkpoint: Checkpoint | None = None
        self._processor = processor
        self._around = around
        self._start = start
        self._stopping = asyncio.Event()
        self._events = self._batches = self._failures = 0
        self._suspect = False
        self._told_state = ""
        self._told = (0.0, 0)
        self._loop = Loop(
            f"agent {shard}", self._step, Rhythm(interval=0.0, jitter=0.0), ends_on=(OwnershipLost,)
        )
        self._ended: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._loop.start()
        self._ended = asyncio.create_task(self._at_end(), name=f"strandline:end of {self.shard}")

    async def stop(self, *, timeout: float = 5.0) -> bool:
        """Finish the batch under way within *timeout* seconds, then end; whether it did."""
        self._stopping.set()
        self._around.feed.wake()
        clean = await self._loop.stop(timeout=timeout)
        if self._ended is not None:
            await asyncio.wait({self._ended}, timeout=2.0)
        return clean

    def doubt(self) -> None:
        """The database went back: read the checkpoint again before anything else is done."""
        self._suspect = True
        self._around.feed.wake()

    @property
    def position(self) -> int:
        """Everything up to here is applied; 0 before the claim."""
        return self.checkpoint.position if self.checkpoint else 0

    @property
    def failure(self) -> BaseException | None:
        """The ``OwnershipLost`` that ended it."""
        return self._loop.failure

    def statistics(self) -> AgentStatistics:
        """A picture of now."""
        return AgentStatistics(
            shard=self.shard,
            state=self.state,
            position=self.position,
            epoch=self.checkpoint.epoch if self.checkpoint else 0,
            events=self._events,
            batches=self._batches,
            failures=self._failures,
            reason=self.reason,
        )

    # ---- one round: with tries, then a pause

    async def _step(self) -> bool:
        backoff = self._around.backoff
        try:
            async for attempt in backoff.retrying(_can_be_tried_again):
                with attempt:
                    if self._stopping.is_set():
                        return False
                    try:
                        await self._to_the_mark()
                    except Exception as error:
                        self._failed(error)
                        raise
        except OwnershipLost:
            raise
        except Exception as error:  # every try failed: rest, then start over
            await self._pause(error, backoff.pause)
            return True
        await self._tell_running()
        if not self._stopping.is_set() and not self._suspect:
            await self._around.feed.beyond(self.position)
        return not self._stopping.is_set()

    def _failed(self, error: Exception) -> None:
        self._processor.forget()
        self._suspect = True  # a commit may have taken effect: only the database knows
        self._failures += 1
        if not isinstance(error, OwnershipLost):
            log.warning("shard %s failed: %s", self.shard, error)
        self._around.signals.tell("batch_failed", shard=self.shard, error=error)

    async def _pause(self, error: Exception, seconds: float) -> None:
        self.state, self.reason = "paused", f"{type(error).__name__}: {error}"
        log.error("shard %s pauses %.0f s after every try failed: %s", self.shard, seconds, error)
        self._around.signals.tell("shard_paused", shard=self.shard, error=error)
        await self._tell(failure=_failure(error))
        until = time.monotonic() + seconds
        while not self._stopping.is_set() and (left := until - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(min(left, LOOK_EVERY)):
                    await self._stopping.wait()
            except TimeoutError:
                if isinstance(error, Unavailable) and await self._is_answered():
                    return  # an outage is over when it is over

    async def _is_answered(self) -> bool:
        try:
            await self._around.control.run(read_mark())
        except Exception:  # whatever it is, the pause goes on
            return False
        return True

    # ---- the work

    async def _to_the_mark(self) -> None:
        """Claim or re-read the checkpoint, then process until there is nothing beyond the mark."""
        around = self._around
        if self.checkpoint is None:
            start = await self._first_position()
            self.checkpoint = await around.pool.run(
                checkpoints.claim(self.shard, around.owner, start=start)
            )
            around.signals.tell("shard_claimed", shard=self.shard, epoch=self.checkpoint.epoch)
        elif self._suspect:
            self._processor.forget()
            self.checkpoint = await around.pool.run(checkpoints.reread(self.checkpoint))
        self._suspect = False
        self.state, self.reason = "running", ""
        try:
            await self._pipeline(self.checkpoint.position)
        except (
            CheckpointMoved
        ):  # by another epoch; or by a commit of ours, late after a lost answer
            self._processor.forget()
            self._suspect = True
            self.checkpoint = await around.pool.run(checkpoints.reread(self.checkpoint))
            self._suspect = False

    async def _pipeline(self, after: int) -> None:
        processor = self._processor
        committing: asyncio.Task[None] | None = None
        fetching = self._fetch(after)
        try:
            while not self._stopping.is_set():
                page = await fetching
                if page.ceiling == page.floor:
                    break
                fetching = self._fetch(page.ceiling)
                await asyncio.sleep(0)  # lets the fetch go out before the fold takes the processor
                batch = await processor.prepare(page)
                if committing is not None:
                    await committing
                committing = asyncio.create_task(self._commit(batch))
            if committing is not None:
                await committing
                committing = None
        finally:
            fetching.cancel()
            await _ended(fetching)
            if committing is not None:
                await _ended(committing)

    def _fetch(self, after: int) -> asyncio.Task[Page]:
        feed, processor = self._around.feed, self._processor
        if processor.reads_pages:
            return asyncio.create_task(feed.page(after, processor.appetite))
        return asyncio.create_task(_range(after, min(feed.mark, after + processor.appetite.most)))

    async def _commit(self, batch: Batch) -> None:
        checkpoint = self.checkpoint
        assert checkpoint is not None
        await self._processor.commit(batch, checkpoint)
        self.checkpoint = checkpoint.at(batch.page.ceiling)
        self._batches += 1
        self._events += len(batch.page.rows) or batch.page.ceiling - batch.page.floor
        self._around.on_progress()
        self._around.signals.tell(
            "batch_committed", shard=self.shard, floor=batch.page.floor, ceiling=batch.page.ceiling
        )
        await self._tell_running()  # a long catch-up shows its rate, and that a pause is over

    async def _first_position(self) -> int:
        if self._start == "present":
            return self._around.feed.mark
        return self._start if isinstance(self._start, int) else 0

    # ---- telling

    async def _tell_running(self) -> None:
        since, events = self._told
        now = time.monotonic()
        if now - since >= TELL_EVERY or self._told_state != self.state:
            rate = (self._events - events) / (now - since) if since else 0.0
            self._told = (now, self._events)
            await self._tell(rate=rate)

    async def _tell(self, *, failure: str | None = None, rate: float = 0.0) -> None:
        """A note for people; that it cannot be written must not stop the work."""
        state = self._told_state = "running" if self.state == "claiming" else self.state
        op = checkpoints.tell(
            self.shard,
            state,
            node=self._around.node,
            reason=self.reason,
            failure=failure,
            rate=rate,
        )
        try:
            await self._around.control.run(op)
        except Unavailable as error:
            log.debug("status of %s not written: %s", self.shard, error)

    async def _at_end(self) -> None:
        await self._loop.join()
        self.state = "stopped"
        lost = self._loop.failure
        if lost is not None:
            self.reason = str(lost)
            log.error("shard %s stops itself: %s", self.shard, lost)
            self._around.signals.tell("ownership_lost", shard=self.shard, error=lost)
            return  # its status is the new owner's to tell
        await self._tell()


async def _range(floor: int, ceiling: int) -> Page:
    return Page(floor, max(floor, ceiling), ())


def _can_be_tried_again(error: BaseException) -> bool:
    # The retry library asks about a cancellation too, and would swallow it.
    return isinstance(error, Exception) and not isinstance(error, OwnershipLost)


async def _ended(task: asyncio.Task[Any]) -> None:
    """Wait for a task under way: what a commit does must be known before anything else is done."""
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # told already by what is being raised


def _failure(error: Exception) -> str:
    facts: dict[str, Any] = {"class": type(error).__name__, "message": str(error)}
    if isinstance(error, EventFailure):
        facts["position"] = getattr(error, "position", 0)
        facts["type"] = getattr(error, "event_type", None)
    if error.__cause__ is not None:
        facts["cause"] = repr(error.__cause__)
    return json.dumps(facts)
