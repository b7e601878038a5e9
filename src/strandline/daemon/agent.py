"""Runs one shard on this node: claim, then page by page to the mark, then wait.

States: *claiming* → *running* ⇄ *paused* → *stopped*. A failure is tried again after 250 ms, 500 ms
and 1 s, then the agent pauses 30 s and starts over; sooner when the database was away and answers
again. An ``OwnershipLost`` is never tried again: the agent stops itself, since another owner exists.

While a batch commits, the next page is fetched and folded. A batch is committed only after the
one before it; when a commit fails, everything prepared is thrown away and the agent goes back to
the checkpoint in the database, which alone tells whether that commit took effect.

A checkpoint may also have a later epoch and no owner: it was reset, or sealed. Nobody has taken
the shard then, and the agent claims it anew, under the same grant. A sealed shard is processed up to
the seal exactly, however far the mark is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from strandline.backoff import Backoff
from strandline.cluster.work import Ended
from strandline.daemon.batch import Batch, Processor
from strandline.daemon.checkpoint import Checkpoint
from strandline.daemon.claiming import Claiming
from strandline.daemon.feed import Feed, Page
from strandline.daemon.telling import Telling
from strandline.errors import CheckpointMoved, OwnershipLost, Unavailable
from strandline.events.gaps import read_mark
from strandline.loops import Loop, Rhythm
from strandline.postgres.pools import Pool
from strandline.projections.fold import POSITION
from strandline.telemetry.signals import Signals

log = logging.getLogger("strandline.agent")

LOOK_EVERY = (
    1.0  # seconds between looks, in a pause whether the database answers, at a seal for more
)
LAST_WORDS = 2.0  # seconds an agent that has ended may take to say so


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
    node: str
    on_progress: Callable[[], None]


class Agent:
    """The running of one shard on one node.

    Args:
        shard: Its name.
        processor: Makes and commits its batches; this agent's own.
        around: What it shares with others.
        owner: The node's id.
        granted: Epoch of the assignment under which it may run; None where nobody assigns.
        start: Where a shard begins that has never run.
        ended: Told if it ends without ``stop``.
    """

    def __init__(
        self,
        shard: str,
        processor: Processor,
        around: Surroundings,
        *,
        owner: UUID,
        granted: int | None = None,
        start: int = 0,
        ended: Ended | None = None,
    ) -> None:
        self.shard = shard
        self.state = "claiming"
        self.reason = ""
        self.checkpoint: Checkpoint | None = None
        self._processor = processor
        self._around = around
        self._granted = granted
        self._on_ended = ended
        self._stopping = asyncio.Event()
        self._abandoned = False
        self._events = self._batches = self._failures = 0
        self._suspect = False
        self._got_on = time.monotonic()
        self._telling = Telling(
            shard, owner, around.node, control=around.control, signals=around.signals
        )
        self._claiming = Claiming(
            shard,
            owner,
            around.node,
            granted=granted,
            start=start,
            pool=around.pool,
            control=around.control,
            signals=around.signals,
            is_over=self._stopping.is_set,
        )
        self._loop = Loop(
            f"agent {shard}", self._step, Rhythm(interval=0.0, jitter=0.0), ends_on=(OwnershipLost,)
        )
        self._ended: asyncio.Task[None] | None = None
        self._cutting: asyncio.Task[bool] | None = None

    def start(self) -> None:
        """Begin."""
        self._loop.start()
        self._ended = asyncio.create_task(self._at_end(), name=f"strandline:end of {self.shard}")

    async def stop(self, *, timeout: float = 5.0) -> bool:
        """Finish the batch under way within *timeout* seconds, then end; whether it did.

        What has not ended then is cancelled, and abandoned a second later.
        """
        self._stopping.set()
        self._around.feed.wake()
        clean = await self._loop.stop(timeout=timeout)
        self._abandoned = self._loop.running
        if self._ended is not None and not self._abandoned:
            await asyncio.wait({self._ended}, timeout=LAST_WORDS)
        return clean

    def cut(self) -> None:
        """End it now, and wait for nothing."""
        self._stopping.set()
        self._abandoned = True
        self._cutting = asyncio.create_task(self._loop.stop(timeout=0.0))

    def doubt(self) -> None:
        """The database went back: read the checkpoint again before anything else is done."""
        self._suspect = True
        self._around.feed.wake()

    @property
    def position(self) -> int:
        """Everything up to here is applied; 0 before the claim."""
        return self.checkpoint.position if self.checkpoint else 0

    @property
    def was_cut_off(self) -> bool:
        """Whether it ended though nobody stopped it and it lost nothing: its task was cancelled."""
        return self.state == "stopped" and self.failure is None and not self._stopping.is_set()

    @property
    def failure(self) -> BaseException | None:
        """The ``OwnershipLost`` that ended it."""
        return self._loop.failure

    def idle_for(self) -> float:
        """Seconds for which it has got nowhere though there is something to do and it may."""
        has_work = self.checkpoint is None or self.position < self._limit
        if not has_work or self.state not in ("claiming", "running"):
            self._got_on = time.monotonic()
        return time.monotonic() - self._got_on

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
                        await self._to_the_limit()
                    except Exception as error:
                        self._failed(error)
                        raise
        except OwnershipLost:
            raise
        except Exception as error:  # every try failed: rest, then start over
            await self._pause(error, backoff.pause)
            return True
        await self._telling.running(self._events)
        if not self._stopping.is_set() and not self._suspect:
            await self._wait()
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
        await self._telling.paused(self.reason, error)
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not await self._told(
            min(left, LOOK_EVERY)
        ):
            if isinstance(error, Unavailable) and await self._is_answered():
                return  # an outage is over when it is over

    async def _is_answered(self) -> bool:
        try:
            await self._around.control.run(read_mark())
        except Exception:  # whatever it is, the pause goes on
            return False
        return True

    async def _wait(self) -> None:
        """Wait until there is something to do."""
        checkpoint = self.checkpoint
        if checkpoint is None or checkpoint.seal is None or checkpoint.position < checkpoint.seal:
            await self._around.feed.beyond(self.position)
        elif not await self._told(LOOK_EVERY):
            self._suspect = True  # the seal may have been taken away

    async def _told(self, seconds: float) -> bool:
        """Wait some seconds; whether it was told to stop."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True

    # ---- the work

    @property
    def _limit(self) -> int:
        """Nothing beyond it may be processed yet."""
        mark, seal = self._around.feed.mark, self.checkpoint.seal if self.checkpoint else None
        return mark if seal is None else min(mark, seal)

    async def _to_the_limit(self) -> None:
        """Claim or re-read the checkpoint, then process until there is nothing left below it."""
        if self.checkpoint is None or self._suspect:
            self.checkpoint = await self._found()
        self.state, self.reason = "running", ""
        try:
            await self._pipeline(self.checkpoint.position)
        except CheckpointMoved:
            # By another epoch; or by a commit of ours, late after a lost answer.
            self.checkpoint = await self._found()

    async def _found(self) -> Checkpoint:
        """The checkpoint as it is in the database; whatever is kept in memory is doubtful."""
        self._processor.forget()
        self._suspect = False  # before it reads: a doubt that comes meanwhile must not be lost
        found = await self._claiming.checkpoint(self.checkpoint)
        self._got_on = time.monotonic()
        return found

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
        except asyncio.CancelledError:
            if committing is not None:
                committing.cancel()  # the user's code may be in it, and never return
            raise
        finally:
            fetching.cancel()
            await _ended(fetching)
            if committing is not None:
                await _ended(committing)

    def _fetch(self, after: int) -> asyncio.Task[Page]:
        return asyncio.create_task(self._page(after))

    async def _page(self, after: int) -> Page:
        processor, limit = self._processor, self._limit
        if after >= limit:
            return Page(after, after, ())
        if not processor.reads_pages:
            return Page(after, min(limit, after + processor.appetite.most), ())
        page = await self._around.feed.page(after, processor.appetite)
        if page.ceiling <= limit:
            return page
        return replace(
            page, ceiling=limit, rows=[row for row in page.rows if row[POSITION] <= limit]
        )

    async def _commit(self, batch: Batch) -> None:
        checkpoint = self.checkpoint
        assert checkpoint is not None
        await self._processor.commit(batch, checkpoint)
        self.checkpoint = checkpoint.at(batch.page.ceiling)
        self._got_on = time.monotonic()
        self._batches += 1
        self._events += len(batch.page.rows) or batch.page.ceiling - batch.page.floor
        self._around.on_progress()
        self._around.signals.tell(
            "batch_committed", shard=self.shard, floor=batch.page.floor, ceiling=batch.page.ceiling
        )
        await self._telling.running(self._events)  # a long catch-up shows its rate

    # ---- the end

    async def _at_end(self) -> None:
        await self._loop.join()
        self.state = "stopped"
        lost = self._loop.failure
        if self._abandoned:
            return  # long ago; whatever is to be said of the shard is another's to say
        if not isinstance(lost, OwnershipLost):
            if self._on_ended is not None and not self._stopping.is_set():
                self._on_ended(self.shard, lost)  # somebody cancelled its task: it is to go on
            await self._telling.stopped()
            return
        self.reason = str(lost)
        self._processor.forget()
        if self._granted is not None and self._stopping.is_set():
            log.warning("shard %s was lost while it was being stopped: %s", self.shard, lost)
            return  # whoever stopped it finds that out as well, and tells
        if self._on_ended is not None and not self._stopping.is_set():
            self._on_ended(self.shard, lost)
        await self._telling.lost(lost, self.checkpoint)  # its status is the new owner's to tell


def _can_be_tried_again(error: BaseException) -> bool:
    # The retry library asks about a cancellation too, and would swallow it.
    return isinstance(error, Exception) and not isinstance(error, OwnershipLost)


async def _ended(task: asyncio.Task[Any]) -> None:
    """Wait for a task under way: what a commit does must be known before anything else is done."""
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # told already by what is being raised
