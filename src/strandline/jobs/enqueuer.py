"""Group commit: jobs that are enqueued one by one go to the server together.

As with appends: while one call is at the server the next ones queue, then they go as one call, each
with its own outcome; a call that finds nobody there goes straight. Two calls may be at the server at
once, never with the same ordered key in both. Jobs with unique keys go one by one, as each may have
to wait for somebody's transaction that holds its key, and others shall not wait with it; but for
those that come after it by an ordered key.

A lost answer is the difficult part. The jobs of a call whose connection broke may be stored, and
may even have run and be gone again by now, so that nothing in ``jobs`` tells. Hence each of the two
senders has a row of its own, and numbers its calls there in the same statement that inserts the
jobs: a call that is sent again inserts nothing if its number is there already. It waits at the row
for the first try if that is still under way, and a first try that comes late finds the number taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import copy_context
from operator import attrgetter

from strandline.backoff import QUICK
from strandline.errors import (
    AnswerTimedOut,
    DuplicateJob,
    NotOpen,
    OutcomeUnknown,
    PoolExhausted,
    Unavailable,
)
from strandline.jobs.enqueue import INSERT_ONCE, ONCE, Enqueued, answer, batch, columns
from strandline.jobs.row import ORDERED, NewJob
from strandline.jobs.turns import Turns
from strandline.postgres.faults import is_connection_loss
from strandline.postgres.operations import Op, many, none
from strandline.postgres.pools import Pool
from strandline.settings import Settings

SENDERS = 2
RESERVED = 3  # connections that jobs which wait for their unique key leave to others
CALLS_OF_A_ROW = 1_000  # then a sender takes a new row: a long snapshot keeps all versions of one
SHARED_FROM = 32  # jobs: a longer line is shared by two calls, a shorter one goes as one
MOST_WAITING_BYTES = 268_435_456  # of arguments in line; beyond it the server is too far behind
CLOSED = "the app was closed before this job was sent"

Told = Enqueued | DuplicateJob


class Sender:
    """Numbers calls to the server, one after the other."""

    __slots__ = ("_calls", "_process", "_row")

    def __init__(self) -> None:
        self._row = 0
        self._calls = CALLS_OF_A_ROW
        self._process = os.getpid()

    def next(self) -> tuple[int, int]:
        """Its row and the number of a new call."""
        if self._calls >= CALLS_OF_A_ROW or self._process != os.getpid():  # forked: not its row
            self._process = os.getpid()
            self._row = random.SystemRandom().getrandbits(62)
            self._calls = 0
        self._calls += 1
        return self._row, self._calls


class Waiting:
    """A job whose caller waits."""

    __slots__ = ("future", "job", "size")

    def __init__(self, job: NewJob, future: asyncio.Future[Enqueued]) -> None:
        self.job = job
        self.future = future
        self.size = len(job.args)

    def tell(self, told: Told) -> None:
        """Tell the caller, if it still waits."""
        if isinstance(told, Enqueued):
            if not self.future.done():
                self.future.set_result(told)
        else:
            self.fail(told)

    def fail(self, error: BaseException) -> None:
        """Tell the caller, if it still waits."""
        if not self.future.done():
            self.future.set_exception(error)


class Enqueuer:
    """Single jobs of one process that are enqueued in no transaction of the caller's.

    Args:
        pool: Where they are sent.
        settings: How many go together.
        on_enqueued: Is told what was committed.
    """

    def __init__(
        self, pool: Pool, settings: Settings, *, on_enqueued: Callable[[Sequence[NewJob]], None]
    ) -> None:
        self._lane = Lane(pool, settings, on_enqueued)
        self._senders = [Sender() for _ in range(max(2, settings.work_connections - RESERVED))]
        self._room = asyncio.Semaphore(len(self._senders))
        self._turns = Turns()
        self._patience = settings.statement_timeout
        self._closed = False

    async def enqueue(self, job: NewJob) -> Enqueued:
        """Enqueue *job*, alone or with others.

        Raises:
            DuplicateJob: Its unique key is taken, and the call says that this is an error.
            OutcomeUnknown: The server did not answer for too long; it may be enqueued.
            Unavailable: It is not enqueued.
        """
        if self._closed:
            raise NotOpen("the app is closed: nothing can be enqueued")
        if job.unique_key is not None:
            return await self._in_turn(job, job.unique_key)
        turn = _turn(job)
        if turn is None:
            return await self._lane.enqueue(job)
        async with self._turns.of(turn, shared=True):
            return await self._lane.enqueue(job)

    async def close(self, *, timeout: float = 10.0) -> None:
        """Refuse new jobs; wait for those under way, for *timeout* seconds at the most."""
        self._closed = True
        deadline = time.monotonic() + timeout
        await self._turns.end(timeout, NotOpen(CLOSED))
        await self._lane.close(max(0.0, deadline - time.monotonic()))

    async def _in_turn(self, job: NewJob, unique_key: str) -> Enqueued:
        turns = self._turns
        try:
            async with asyncio.timeout(self._patience) as waiting:
                async with turns.of(_turn(job)), turns.of(("", unique_key)), self._room:
                    waiting.reschedule(None)
                    sender = self._senders.pop()
                    try:
                        (told,) = await self._lane.sent([job], sender)
                    finally:
                        self._senders.append(sender)
        except TimeoutError as error:
            raise PoolExhausted(
                f"{job.kind!r} is not enqueued: for {self._patience:g} s there was no turn for unique"
                f" key {unique_key!r}; who holds it, or others, in a transaction, ends that too late"
            ) from error
        if isinstance(told, DuplicateJob):
            raise told
        return told


class Lane:
    """Jobs without unique keys, which go together. See ``Enqueuer``."""

    def __init__(
        self, pool: Pool, settings: Settings, on_enqueued: Callable[[Sequence[NewJob]], None]
    ) -> None:
        self._pool = pool
        self._context = copy_context()  # a sender works for all, and in nobody's span
        self._most = settings.group_jobs
        self._bytes = settings.group_bytes
        self._on_enqueued = on_enqueued
        self._line: deque[Waiting] = deque()
        self._waiting_bytes = 0
        self._free = [Sender() for _ in range(SENDERS)]
        self._turns: set[tuple[str, str]] = set()  # keys of which jobs are at the server
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._idle = asyncio.Event()

    async def enqueue(self, job: NewJob) -> Enqueued:
        """See ``Enqueuer.enqueue``."""
        if self._closed:
            raise NotOpen("the app is closed: nothing can be enqueued")
        if len(self._free) == SENDERS and not self._line:
            return await self._alone(job)
        if self._waiting_bytes > MOST_WAITING_BYTES:
            raise PoolExhausted(
                f"{self._waiting_bytes} bytes of jobs wait for the server already: enqueue more"
                " slowly, or by enqueue_many"
            )
        one = Waiting(job, asyncio.get_running_loop().create_future())
        self._waiting_bytes += one.size
        self._line.append(one)
        self._send()
        return await one.future

    async def close(self, timeout: float) -> None:
        """See ``Enqueuer.close``."""
        self._closed = True
        if self._line or len(self._free) < SENDERS:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._idle.wait()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)
        for one in self._line:
            one.fail(NotOpen(CLOSED))

    async def _alone(self, job: NewJob) -> Enqueued:
        sender = self._free.pop()
        turn = _turn(job)
        if turn:
            self._turns.add(turn)
        try:
            (told,) = await self.sent([job], sender)
        finally:
            self._turns.discard(turn) if turn else None
            self._back(sender)
            self._send()
        if isinstance(told, DuplicateJob):
            raise told
        return told

    def _back(self, sender: Sender) -> None:
        self._free.append(sender)
        if self._closed and not self._line and len(self._free) == SENDERS:
            self._idle.set()

    def _send(self) -> None:
        """Start a sender if there is work for one more."""
        if not self._line or not self._free or _turn(self._line[0].job) in self._turns:
            return
        is_second = len(self._free) < SENDERS
        if not is_second or self._turns or len(self._line) >= SHARED_FROM:
            sender = self._free.pop()
            task = asyncio.create_task(
                self._sending(sender), name="strandline:enqueue", context=self._context.copy()
            )
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _sending(self, sender: Sender) -> None:
        """Send group after group while there is something that may go."""
        try:
            await asyncio.sleep(0)  # whoever is ready to enqueue in this round comes along
            while taken := self._take():
                self._send()
                turns = {turn for one in taken if (turn := _turn(one.job))}
                self._turns |= turns
                try:
                    await self._together(taken, sender)
                except Exception as error:  # told to whom it concerns; others wait for this sender
                    for one in taken:
                        one.fail(error)
                except BaseException as error:
                    for one in taken:
                        one.fail(unknown([one.job], error))
                    raise
                finally:
                    self._turns -= turns
                await asyncio.sleep(0)
        finally:
            self._back(sender)
        self._send()

    def _take(self) -> list[Waiting]:
        """The next group: those in front, up to one whose key is at the server already."""
        taken: list[Waiting] = []
        size = 0
        line = self._line
        most = min(self._most, max(SHARED_FROM, (len(line) + 1) // 2))
        while line and len(taken) < most and size < self._bytes:
            if _turn(line[0].job) in self._turns:
                break
            one = line.popleft()
            self._waiting_bytes -= one.size
            if not one.future.done():  # else its caller was cancelled
                taken.append(one)
                size += one.size
        return taken

    async def _together(self, taken: list[Waiting], sender: Sender) -> None:
        """Get each of *taken* its answer."""
        try:
            answers = await self.sent([one.job for one in taken], sender)
        except Unavailable as error:
            for one in taken:
                one.fail(_own(one.job, error))
        except Exception as error:  # something about one of them: which, is seen alone
            if len(taken) == 1:
                taken[0].fail(error)
            else:
                await self._one_by_one(taken, sender)
        else:
            for one, told in zip(taken, answers, strict=True):
                one.tell(told)

    async def _one_by_one(self, waiting: Sequence[Waiting], sender: Sender) -> None:
        for one in waiting:
            try:
                (told,) = await self.sent([one.job], sender)
                one.tell(told)
            except Exception as error:  # told to whom it concerns
                one.fail(error)

    async def sent(self, jobs: Sequence[NewJob], sender: Sender) -> list[Told]:
        """Store *jobs*, all plain or all with unique keys, once; however often they are sent."""
        row, number = sender.next()
        try:
            answers = await self._pool.run(once(jobs, row, number))
        except Unavailable as error:
            answers = await self._sent_again(jobs, row, number, error)
        self._on_enqueued(
            [
                one
                for one, told in zip(jobs, answers, strict=True)
                if isinstance(told, Enqueued) and (told.is_new or told.replaced)
            ]
        )
        return answers

    async def _sent_again(
        self, jobs: Sequence[NewJob], row: int, number: int, failed: Unavailable
    ) -> list[Told]:
        """Store *jobs* after a first try that *failed*."""
        doubtful = in_doubt(failed)
        try:
            async for attempt in QUICK.retrying(may_pass):
                with attempt:
                    try:
                        if attempt.retry_state.attempt_number == 1:
                            raise failed
                        return await self._pool.run(once(jobs, row, number))
                    except Unavailable as error:
                        doubtful = doubtful or in_doubt(error)
                        raise
        except Unavailable as error:
            if not doubtful:
                raise
            raise unknown(jobs, error) from error
        raise AssertionError("it ends with an answer or an error")


def once(jobs: Sequence[NewJob], row: int, number: int) -> Op[list[Told]]:
    """Insert *jobs*, all plain or all with unique keys, unless call *number* of *row* is there."""
    if jobs[0].unique_key is None:
        yield from none(INSERT_ONCE, *columns(jobs), row, number)
        return [Enqueued(one.id) for one in jobs]
    outcomes = yield from many(ONCE, row, number, batch(jobs))
    told: list[Told] = []
    for one, outcome in zip(jobs, sorted(outcomes, key=attrgetter("item")), strict=True):
        try:
            told.append(answer(one, outcome))
        except DuplicateJob as error:
            told.append(error)
    return told


def _turn(job: NewJob) -> tuple[str, str] | None:
    """What must not be at the server twice, or the later one might be first."""
    if job.flags & ORDERED and job.key is not None:
        return job.queue, job.key
    return None


def unknown(jobs: Sequence[NewJob], error: BaseException) -> OutcomeUnknown:
    """What the caller is told when *error* was the last answer."""
    ids = ", ".join(str(one.id) for one in jobs[:3])
    found = OutcomeUnknown(
        f"{jobs[0].kind!r} may or may not be enqueued, as job {ids}: {error!r}; with a unique key"
        " trying again is safe"
    )
    found.__cause__ = error
    return found


def _own(job: NewJob, error: Unavailable) -> Unavailable:
    """*error*, which many share, as that of one of them."""
    if isinstance(error, OutcomeUnknown):
        return unknown([job], error.__cause__ or error)
    found = type(error)(*error.args)
    found.__cause__ = error
    return found


def in_doubt(error: Exception) -> bool:
    """Whether what was sent may have been done all the same."""
    return is_connection_loss(error) or isinstance(error, AnswerTimedOut)


def may_pass(error: Exception) -> bool:
    """Whether another try soon may help; the wait for a connection or an answer was long enough."""
    return isinstance(error, Unavailable) and not isinstance(error, PoolExhausted | AnswerTimedOut)
