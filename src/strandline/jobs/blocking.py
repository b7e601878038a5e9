"""Jobs for callers without an event loop: enqueued once, and references to them."""

from __future__ import annotations

import random
import threading
import time
from typing import Generic, TypeVar

from strandline.backoff import QUICK
from strandline.errors import AnswerTimedOut, DuplicateJob, JobNotFound, Unavailable
from strandline.jobs.control import Which, cancel
from strandline.jobs.enqueue import Enqueued
from strandline.jobs.enqueuer import Sender, in_doubt, may_pass, once, unknown
from strandline.jobs.looking import JobRow, find
from strandline.jobs.order import promote
from strandline.jobs.results import FINAL, Answers, JobStatus
from strandline.jobs.row import JobState, Kept, NewJob
from strandline.jobs.waking import Written, notify
from strandline.postgres.blocking import BlockingPool

R_co = TypeVar("R_co", covariant=True)

FIRST_LOOK = 0.02  # seconds to the second look at a job that is awaited; doubles
LONGEST = 0.5

_senders = threading.local()  # a sender's calls come one after the other


def enqueue_once(pool: BlockingPool, job: NewJob) -> Enqueued:
    """Enqueue *job* by one statement of its own, however often that must be sent.

    Raises:
        DuplicateJob: Its unique key is taken, and the call says that this is an error.
        OutcomeUnknown: The server did not answer for too long; it may be enqueued.
        Unavailable: It is not enqueued.
    """
    sender = getattr(_senders, "mine", None)
    if sender is None:
        sender = _senders.mine = Sender()
    row, number = sender.next()
    doubtful = False
    for left in reversed(range(QUICK.attempts)):
        try:
            (told,) = pool.run(once([job], row, number))
            break
        except Unavailable as error:
            doubtful = doubtful or in_doubt(error)
            if left and may_pass(error):
                longest = min(QUICK.longest, QUICK.first * 2 ** (QUICK.attempts - 1 - left))
                time.sleep(longest + QUICK.jitter * random.random())  # noqa: S311 - spreading
                continue
            if doubtful:
                raise unknown([job], error) from error
            raise
    if isinstance(told, DuplicateJob):
        raise told
    return told


def tell(pool: BlockingPool, channel: str, written: Written) -> None:
    """Tell workers of what was committed. If that fails, they find it by polling."""
    try:
        free = pool.run(promote(written.keys)) if written.keys else set()
        queues = written.queues | free
        if queues:
            pool.run(notify(channel, queues))
    except Unavailable:
        pass


class JobRef(Generic[R_co]):
    """The blocking twin of ``strandline.JobRef``.

    Attributes:
        id: Its number.
        kind: Its kind.
        is_new: False: a job with the same unique key was there already, and this is that one.
    """

    __slots__ = ("_answers", "_kept", "_pool", "id", "is_new", "kind")

    def __init__(
        self,
        id: int,  # noqa: A002 - it is one
        kind: str,
        pool: BlockingPool,
        answers: Answers,
        *,
        is_new: bool = True,
        kept: Kept | None = None,
    ) -> None:
        self.id = id
        self.kind = kind
        self.is_new = is_new
        self._pool = pool
        self._answers = answers
        self._kept = kept

    def status(self) -> JobStatus:
        """How it is now; see ``strandline.JobRef.status``."""
        row = self._pool.run(find(self.id))
        if row is None:
            raise JobNotFound(f"there is no job {self.id} (any more)")
        return JobStatus.of(row)

    def result(self, *, timeout: float | None = None) -> R_co:
        """What its function returned, once it has; see ``strandline.JobRef.result``."""
        end = None if timeout is None else time.monotonic() + timeout
        seen: JobRow | None = None
        wait = FIRST_LOOK
        while True:
            row = self._pool.run(find(self.id))
            if row is None or JobState(row.state) in FINAL:
                found: R_co = self._answers.told(self.id, self.kind, seen, row, self._kept)
                return found
            seen = row
            if end is not None and time.monotonic() + wait > end:
                raise AnswerTimedOut(
                    f"job {self.id} has not ended within {timeout} s: it is {seen.state}"
                )
            time.sleep(wait)
            wait = min(LONGEST, wait * 2)

    def cancel(self, reason: str = "") -> bool:
        """Cancel it; see ``strandline.JobRef.cancel``."""
        with self._pool.transaction() as session:
            portion = session.run(cancel(Which(ids=(self.id,)), reason))
        if portion.keys:
            self._pool.run(promote(portion.keys))
        return bool(portion.done or portion.asked)

    def __repr__(self) -> str:
        return f"<job {self.kind!r} {self.id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, JobRef) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)
