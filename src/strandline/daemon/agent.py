"""Runs one shard on this node: claim, then page by page to the mark, then wait.

States: *claiming* → *running* ⇄ *paused* → *stopped*. A failure is tried again after 250 ms, 500 ms
and 1 s, then the agent pauses 30 s and starts over; later pauses are longer while nothing succeeds.
One for an outage ends when the database takes writes again. An ``OwnershipLost`` is never tried
again: the agent stops itself, since another owner exists. An event that fails is put aside if the
projection's policy says so (``isolation``): at once, or after those tries where they may help.

While a batch commits, the next page is fetched and folded. A batch is committed only after the
one before it; when a commit fails, everything prepared is thrown away and the agent goes back to
the checkpoint in the database, which alone tells whether that commit took effect.

A checkpoint may also have a later epoch and no owner: it was reset, or sealed. Nobody has taken
the shard then, and the agent claims it anew, under the same grant. A sealed shard is processed up to
the seal exactly, however far the mark is.
"""

from __future__ import annotations

import asyncio
import time
from uuid import UUID

from strandline.cluster.work import Ended
from strandline.daemon.agent_parts import AgentStatistics, Surroundings
from strandline.daemon.batch import Batch, Processor
from strandline.daemon.checkpoint import Checkpoint
from strandline.daemon.claiming import Claiming
from strandline.daemon.failures import Phase
from strandline.daemon.isolation import Isolation
from strandline.daemon.pipeline import Pipeline
from strandline.daemon.recovery import Recovery
from strandline.daemon.replay import TURN, Replay
from strandline.daemon.spanned import BatchSpans
from strandline.daemon.streak import NothingSucceeds, Streak
from strandline.errors import CheckpointMoved, EventFailure, OwnershipLost
from strandline.loops import Loop, Rhythm
from strandline.projections.failure_policy import CONTINUOUS, Action, Category, ErrorPolicy
from strandline.telemetry.journal import Journal

log = Journal("strandline.agent")

AT_ONCE = Rhythm(interval=0.0, jitter=0.0)
LOOK_EVERY = 1.0  # seconds between looks at a seal whether it was taken away
LAST_WORDS = 2.0  # seconds an agent that has ended may take to say so


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
        policy: What is done about events that cannot be processed.
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
        policy: ErrorPolicy = CONTINUOUS,
    ) -> None:
        self.shard = shard
        self.state, self.reason = "claiming", ""
        self.checkpoint: Checkpoint | None = None
        self._processor = processor
        self._around = around
        self._granted = granted
        self._on_ended = ended
        self._stopping, self._doubted = asyncio.Event(), asyncio.Event()
        self._abandoned, self._has_time = False, True  # to end; not if another has the shard
        self._events = self._batches = 0
        self._suspect = self._attend = False
        self._turn = 0.0  # until then events have theirs, though letters wait
        self._got_on = time.monotonic()
        self._policy = policy
        self._recovery = Recovery(shard, processor.label, owner, around, self._stopping)
        self._ledger, self._telling = self._recovery.ledger, self._recovery.telling
        is_over, on_progress = self._stopping.is_set, self._has_got_on
        self._replay = Replay(
            *(shard, processor, around.pool, around.signals),
            is_over=is_over,
            on_progress=on_progress,
        )
        self._streak = Streak(shard, around.pool, around.backoff, around.clock)
        self._claiming = Claiming(
            shard, owner, around, granted=granted, start=start, is_over=is_over
        )
        self._pipeline = Pipeline(
            *(processor, around.feed, self._ledger),
            limit=self._limit,
            commit=self._commit,
            is_over=self._is_to_turn,
            spans=BatchSpans(shard, processor, around.node),
        )
        self._loop = Loop(
            f"agent {shard}", self._step, AT_ONCE, ends_on=(OwnershipLost,), kind="agent"
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
        self._has_time = timeout > 0
        self._stopping.set()
        self._doubted.set()
        self._around.feed.wake()
        clean = await self._loop.stop(timeout=timeout)
        self._abandoned = self._loop.running
        if self._abandoned:
            log.tell("shard_left_behind", shard=self.shard)
        if self._ended is not None and not self._abandoned:
            await asyncio.wait({self._ended}, timeout=LAST_WORDS)
        return clean

    def cut(self) -> None:
        """End it now, and wait for nothing."""
        self._stopping.set()
        self._doubted.set()
        self._abandoned = True
        self._cutting = asyncio.create_task(self._loop.stop(timeout=0.0))

    def attend(self, *, is_told: bool = True) -> None:
        """Somebody has asked for dead letters, just now if *is_told*: replay them before going on."""
        if self._streak.is_open and not is_told:
            return  # they wait for the end of a pause
        self._attend = True
        self._recovery.nudge()
        self._around.feed.wake()

    def doubt(self) -> None:
        """The database went back: read the checkpoint again before anything else is done."""
        self._suspect = True
        self._doubted.set()
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
        has_work = self.checkpoint is None or self.position < self._limit()
        if not has_work or self.state not in ("claiming", "running"):
            self._got_on = time.monotonic()
        return time.monotonic() - self._got_on

    def statistics(self) -> AgentStatistics:
        """A picture of now."""
        failing = self._ledger.failing
        return AgentStatistics(
            shard=self.shard,
            state=self.state,
            position=self.position,
            epoch=self.checkpoint.epoch if self.checkpoint else 0,
            events=self._events,
            batches=self._batches,
            failures=self._recovery.failures,
            reason=self.reason or self._recovery.reason,
            category=failing.category.value if failing else "",
            phase=failing.phase.value if failing else "",
            attempts=self._ledger.tries,
            pauses=self._ledger.pauses,
            next_at=self._recovery.next_at,
            failure=failing.json() if failing else None,
        )

    # ---- one round: with tries, then a pause

    async def _step(self) -> bool:
        try:
            return await self._round()
        except asyncio.CancelledError:
            if self._stopping.is_set() and self._has_time and not self._abandoned:
                self._cut_off()
            raise

    async def _round(self) -> bool:
        backoff = self._around.backoff
        tries = backoff.retrying(_can_be_tried_again, sleep=self._recovery.between_tries)
        try:
            async for attempt in tries:
                with attempt:
                    if self._stopping.is_set():
                        return False
                    number, before = attempt.retry_state.attempt_number, self._batches
                    try:
                        await self._try(is_last=number >= backoff.attempts)
                    except Exception as error:
                        goes_on = not isinstance(error, OwnershipLost | NothingSucceeds)
                        if goes_on and number > 1 and self._batches > before:
                            return True  # it gets on: these are tries of something else by now
                        raise
        except OwnershipLost:
            raise
        except Exception as error:  # every try failed: rest, then start over
            if not self._stopping.is_set():
                self.state = "paused"
                await self._recovery.pause(error)
                self._attend = self._attend or self._streak.is_open
            return not self._stopping.is_set()
        await self._telling.running(self._events)
        if not (self._stopping.is_set() or self._suspect or self._attend):
            await self._wait()
        return not self._stopping.is_set()

    async def _try(self, *, is_last: bool) -> None:
        """One try of everything there is to do."""
        try:
            try:
                await self._to_the_limit()
            except EventFailure as error:
                if not self._may_be_put_aside(error, is_last=is_last):
                    raise
                self._failed(error)
                await self._isolate()
            await self._streak.rested()
        except Exception as error:
            self._failed(error)
            raise
        if not self._stopping.is_set():
            self._recovery.got_over()

    def _may_be_put_aside(self, error: EventFailure, *, is_last: bool) -> bool:
        if self._stopping.is_set() or self._policy.action(error) is Action.PAUSE:
            return False
        return is_last or self._processor.is_pure  # else another try may help

    def _failed(self, error: Exception) -> None:
        self._processor.forget()
        self._suspect = True  # a commit may have taken effect: only the database knows
        self._recovery.failed(error, stopping=self._stopping.is_set())

    def _cut_off(self) -> None:
        late = TimeoutError("what was under way did not end in time, and is cut off")
        self._recovery.failed(late, stopping=True, category=Category.OTHER)

    async def _wait(self) -> None:
        """Wait until there is something to do."""
        checkpoint = self.checkpoint
        if checkpoint is None or checkpoint.seal is None or checkpoint.position < checkpoint.seal:
            more = self._around.feed.beyond(self.position)
            self._attend = await self._recovery.idle(self._streak.left, more) or self._attend
        elif not await self._told(LOOK_EVERY):
            self._suspect = True  # the seal may have been taken away, or the tables exchanged

    async def _told(self, seconds: float) -> bool:
        """Wait some seconds, or for a doubt; whether it was told to stop."""
        self._doubted.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._doubted.wait()
        except TimeoutError:
            pass
        return self._stopping.is_set()

    # ---- the work

    def _limit(self) -> int:
        """Nothing beyond it may be processed yet."""
        mark, seal = self._around.feed.mark, self.checkpoint.seal if self.checkpoint else None
        return mark if seal is None else min(mark, seal)

    async def _to_the_limit(self) -> None:
        """Claim or re-read the checkpoint, then process until there is nothing left below it."""
        if self.checkpoint is None or self._suspect:
            self.checkpoint = await self._found()
        self.state = "running"
        try:
            if self._attend:
                await self._replay_letters(self.checkpoint)
            self._turn = time.monotonic() + TURN
            await self._pipeline.run(self.checkpoint.position)
        except CheckpointMoved:
            # By another epoch; or by a commit of ours, late after a lost answer.
            self.checkpoint = await self._found()

    async def _replay_letters(self, checkpoint: Checkpoint) -> None:
        self._attend = False  # a letter that cannot be tried must not keep the others waiting
        self._streak.tried()
        with self._pipeline.spans.replaying(), self._ledger.during(Phase.APPLY):
            self._attend = await self._replay.run(checkpoint) or self._attend

    def _is_to_turn(self) -> bool:
        """Whether the events have to wait: it is to stop, or letters have their turn."""
        return self._stopping.is_set() or (self._attend and time.monotonic() > self._turn)

    def _has_got_on(self) -> None:
        self._got_on = time.monotonic()

    async def _isolate(self) -> None:
        """Put aside what fails in the page after the checkpoint, and process the rest of it."""
        try:
            self.checkpoint = await self._found()
            asked = time.time()
            page = await self._pipeline.page(self.checkpoint.position)
            if page.ceiling > page.floor:
                with self._pipeline.spans.begun(page, asked, time.time()):
                    await Isolation(
                        *(self.shard, self._processor, self._policy, self._ledger),
                        commit=self._commit,
                        is_over=self._stopping.is_set,
                        streak=None if self._processor.is_pure else self._streak,
                    ).through(page)
        except CheckpointMoved:
            self.checkpoint = await self._found()

    async def _found(self) -> Checkpoint:
        """The checkpoint as it is in the database; whatever is kept in memory is doubtful."""
        self._processor.forget()
        self._suspect = False  # before it reads: a doubt that comes meanwhile must not be lost
        with self._ledger.during(Phase.START):
            found = await self._claiming.checkpoint(self.checkpoint)
            is_parking = await self._replay.read_parking()
        if self.checkpoint is None or self.checkpoint.epoch != found.epoch:
            self._around.feed.forget_pages()  # it may have been sent back for what they lack
            if is_parking:
                self._attend = True  # what is asked for, the previous owner may not have done
                await self._streak.inherited(self._processor)
        self._got_on = time.monotonic()
        return found

    async def _commit(self, batch: Batch) -> None:
        checkpoint = self.checkpoint
        assert checkpoint is not None
        with self._pipeline.spans.commit(), self._ledger.during(Phase.COMMIT, batch.page.rows):
            await self._processor.commit(batch, checkpoint)
        self.checkpoint = checkpoint.at(batch.page.ceiling)
        self._got_on = time.monotonic()
        self._batches += 1
        events = len(batch.page.rows) or batch.page.ceiling - batch.page.floor
        self._events += events
        if batch.work and all(one.category is None for one in batch.letters):
            self._attend = await self._streak.broken(len(batch.page.rows)) or self._attend
        if not self._streak.is_open:
            self._recovery.got_over()
        self._around.on_progress()
        if batch.letters:
            self._replay.tell_written(batch.letters)
        self._telling.committed(batch, events)
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
            await self._telling.stopped(self._ledger.trouble(None))
            return
        self.reason = str(lost)
        self._processor.forget()
        if self._granted is not None and self._stopping.is_set():
            log.tell("shard_lost_while_stopping", shard=self.shard, error=lost)
            return  # whoever stopped it finds that out as well, and tells
        if self._on_ended is not None and not self._stopping.is_set():
            self._on_ended(self.shard, lost)
        await self._telling.lost(lost, self.checkpoint)  # its status is the new owner's to tell


def _can_be_tried_again(error: BaseException) -> bool:
    # The retry library asks about a cancellation too, and would swallow it.
    return isinstance(error, Exception) and not isinstance(error, OwnershipLost)
