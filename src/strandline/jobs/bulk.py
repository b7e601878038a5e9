"""Many jobs at once: by COPY, chunk after chunk, in one transaction and in constant memory.

While one chunk is at the server the next one is prepared. What COPY cannot write (unique keys,
ordered, delayed) goes by ``enqueue.insert`` in the same transaction.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter, deque
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby, islice, repeat
from operator import attrgetter
from typing import Any

from strandline.jobs.enqueue import Enqueued, insert
from strandline.jobs.ids import Ids
from strandline.jobs.job import Call, Job
from strandline.jobs.kinds import Kinds, Row, all_calls, circumstances
from strandline.jobs.row import DEFAULT_PRIORITY, DEFAULT_QUEUE, ORDERED, NewJob
from strandline.jobs.waking import Written
from strandline.postgres.operations import AsyncpgSession, Op, Session, none
from strandline.postgres.savepoint import BEGIN_PART, KEEP_PART, UNDO_PART

CHUNK = 5_000  # jobs of one COPY
CHUNK_BYTES = 16_777_216  # of arguments
PIECE = 250  # jobs prepared between two turns of the event loop
INSERTED = 2_000  # jobs of one INSERT, where there is no COPY

# Beyond these, a column goes along only where a job of the chunk has something else than the default.
_ALWAYS = ("id", "kind", "args")
_DEFAULTS: tuple[tuple[str, Any], ...] = (
    ("queue", DEFAULT_QUEUE),
    ("priority", DEFAULT_PRIORITY),
    ("max_attempts", 20),
    ("flags", 0),
    ("key", None),
    ("tenant", None),
    ("batch", None),
    ("meta", None),
)
_FLAGS = 3
_PLAIN = (None, False, None, None)
_usual = attrgetter(*(name for name, _ in _DEFAULTS), "unique_key", "blocked", "run_at", "delay")


@dataclass(slots=True)
class Many:
    """What was enqueued together: eight bytes a job, and where the kind changes.

    Attributes:
        ids: In the order of the calls.
        kinds: Kind and number of calls, as they came one after the other.
        old: Places of calls whose job was there already.
        written: What is to be told once it is committed.
    """

    ids: array[int] = field(default_factory=lambda: array("q"))
    kinds: list[tuple[str, int]] = field(default_factory=list)
    old: set[int] = field(default_factory=set)
    written: Written = field(default_factory=Written)

    def add_plain(self, jobs: Sequence[NewJob]) -> None:
        """*jobs* are enqueued, each as it is."""
        self.ids.extend(map(attrgetter("id"), jobs))
        for kind, some in groupby(map(attrgetter("kind"), jobs)):
            self.count(kind, sum(1 for _ in some))
        counts = Counter(map(attrgetter("queue"), jobs))
        self.written.counts.update(counts)
        self.written.queues |= counts.keys()

    def add(self, jobs: Sequence[NewJob], answers: Sequence[Enqueued]) -> None:
        """*jobs* have these *answers*."""
        for job, answer in zip(jobs, answers, strict=True):
            if not answer.is_new:
                self.old.add(len(self.ids))
            self.ids.append(answer.id)
            self.count(job.kind, 1)
        self.written.add(
            job
            for job, answer in zip(jobs, answers, strict=True)
            if answer.is_new or answer.replaced
        )

    def count(self, kind: str, count: int) -> None:
        """The next *count* calls are of *kind*."""
        if self.kinds and self.kinds[-1][0] == kind:
            count += self.kinds.pop()[1]
        self.kinds.append((kind, count))


async def enqueue_many(
    session: Session,
    calls: Iterable[Call[Any]] | AsyncIterable[Call[Any]],
    *,
    kinds: Kinds,
    ids: Ids,
    undo: bool = False,
) -> Many:
    """Enqueue *calls* in order, inside the transaction of *session*.

    Args:
        session: Inside a transaction.
        calls: What to enqueue.
        kinds: Makes rows of calls.
        ids: For those rows.
        undo: With a failure, undo what was written before it, so that the transaction can go on;
            else it must be rolled back.

    Raises:
        InvalidInput: Something in them cannot be stored.
        DuplicateJob: As for ``enqueue``.
    """
    if undo:
        return await _undone_if_it_fails(
            session, enqueue_many(session, calls, kinds=kinds, ids=ids)
        )
    bulk = _Bulk(session, kinds, ids, alone=isinstance(calls, AsyncIterable))
    with ids.watched():
        try:
            async for piece in _pieces(calls):
                await bulk.prepare(piece)
                await asyncio.sleep(0)  # whoever else wants to run
            await bulk.finish()
        except Exception:
            await bulk.written()  # what went wrong first is told first
            raise
        finally:
            await bulk.end()
    return bulk.many


async def _undone_if_it_fails(session: Session, work: Coroutine[Any, Any, Many]) -> Many:
    try:
        await session.run(none(BEGIN_PART))
    except BaseException:
        work.close()
        raise
    try:
        many = await work
    except BaseException:  # a cancellation too: the caller may catch it, and commit
        with suppress(Exception):  # what went wrong is being told already
            await session.run(none(UNDO_PART))
        raise
    await session.run(none(KEEP_PART))
    return many


class _Bulk:
    """One chunk that is prepared while the one before it is written.

    A chunk is either of rows of one job, which have only arguments of their own, or of any jobs.
    """

    def __init__(self, session: Session, kinds: Kinds, ids: Ids, *, alone: bool) -> None:
        """*alone*: write nothing while calls are asked for: they may be read by this connection."""
        self.many = Many()
        self._alone = alone
        self._session = session
        self._kinds = kinds
        self._ids = ids
        self._spare: deque[int] = deque()  # ids: nobody can draw while the connection writes
        self._usual: Job[..., Any] | None = None  # of the rows
        self._rows: list[Row] = []
        self._jobs: list[NewJob] = []
        self._bytes = 0
        self._writing: asyncio.Task[None] | None = None

    async def prepare(self, calls: list[Call[Any]]) -> None:
        """Add *calls*; write once there are enough."""
        await self._draw(len(calls))
        numbers = [self._spare.popleft() for _ in calls]
        about = circumstances()
        rows = None
        if not about and isinstance(self._session, AsyncpgSession):
            rows = self._kinds.rows(calls, numbers)
        usual = calls[0].job if rows else None
        if usual is not self._usual and (self._rows or self._jobs):
            await self._go_on()
        self._usual = usual
        if rows:
            self._rows += rows
            self._bytes += sum([len(one[2]) for one in rows])
        else:
            jobs = list(map(self._kinds.prepare, calls, numbers, repeat(about)))
            self._jobs += jobs
            self._bytes += sum([len(one.args) for one in jobs])
        if len(self._jobs) + len(self._rows) >= CHUNK or self._bytes >= CHUNK_BYTES:
            await self._go_on()

    async def _draw(self, count: int) -> None:
        if len(self._spare) < count:
            await self.written()
            self._spare.extend(await self._session.run(self._ids.draw(count)))

    async def _go_on(self) -> None:
        """Write what is prepared, and have ids for the next chunk."""
        size = len(self._jobs) + len(self._rows)
        await self.written()
        await self._draw(min(CHUNK, 2 * size))
        self._write()
        if self._alone:
            await self.written()

    async def finish(self) -> None:
        """Write what is left."""
        await self.written()
        if self._jobs or self._rows:
            self._write()
            await self.written()

    async def written(self) -> None:
        """Wait for the chunk that is being written."""
        if self._writing is not None:
            await self._writing

    async def end(self) -> None:
        """Leave nothing under way on the caller's connection."""
        if self._writing is None:
            return
        if not self._writing.done():
            self._writing.cancel()
            await asyncio.wait({self._writing})
        if not self._writing.cancelled():
            self._writing.exception()  # told already, or the caller was cancelled

    def _write(self) -> None:
        if self._rows and self._usual is not None:
            work = _write_rows(self._session, self._usual, self._rows, self.many)
        else:
            work = _write(self._session, self._jobs, self.many)
        self._rows, self._jobs, self._bytes = [], [], 0
        self._writing = asyncio.create_task(work, name="strandline:bulk")


def insert_many(calls: Iterable[Call[Any]], *, kinds: Kinds, ids: Ids) -> Op[Many]:
    """``enqueue_many`` where there is no COPY, and no waiting: chunk after chunk by INSERT."""
    many = Many()
    chunk: list[Call[Any]] = []
    for call in all_calls(calls):
        chunk.append(call)
        if len(chunk) >= INSERTED:
            yield from _insert(chunk, many, kinds, ids)
            chunk = []
    if chunk:
        yield from _insert(chunk, many, kinds, ids)
    return many


def _insert(chunk: list[Call[Any]], many: Many, kinds: Kinds, ids: Ids) -> Op[None]:
    numbers = yield from ids.draw(len(chunk))
    jobs = [kinds.prepare(call, number) for call, number in zip(chunk, numbers, strict=True)]
    many.add(jobs, (yield from insert(jobs)))


async def _write(session: Session, jobs: list[NewJob], many: Many) -> None:
    different = set(map(_usual, jobs))
    is_plain = all(map(_is_plain, different))
    if not isinstance(session, AsyncpgSession) or not is_plain:
        answers: list[Enqueued] = []
        for first in range(0, len(jobs), INSERTED):
            answers += await session.run(insert(jobs[first : first + INSERTED]))
        many.add(jobs, answers)
        return
    names = [
        *_ALWAYS,
        *(
            name
            for place, (name, usual) in enumerate(_DEFAULTS)
            if any(one[place] != usual for one in different)
        ),
    ]
    await session.copy("jobs", map(attrgetter(*names), jobs), names)
    many.add_plain(jobs)


async def _write_rows(session: Session, job: Job[..., Any], rows: list[Row], many: Many) -> None:
    assert isinstance(session, AsyncpgSession)  # nobody else has COPY
    values = (job.queue, job.priority, job.retry.max_attempts, job.flags)
    own = [
        (name, value)
        for (name, usual), value in zip(_DEFAULTS, values, strict=False)
        if value != usual
    ]
    rest = tuple(value for _, value in own)
    records: Iterable[tuple[Any, ...]] = (row + rest for row in rows) if rest else rows
    await session.copy("jobs", records, [*_ALWAYS, *(name for name, _ in own)])
    many.ids.extend([one[0] for one in rows])
    many.count(job.kind, len(rows))
    many.written.counts[job.queue] += len(rows)
    many.written.queues.add(job.queue)


def _is_plain(one: tuple[Any, ...]) -> bool:
    """``NewJob.is_plain`` for many at once, by what is behind the columns of COPY."""
    return not one[_FLAGS] & ORDERED and one[len(_DEFAULTS) :] == _PLAIN


async def _pieces(
    calls: Iterable[Call[Any]] | AsyncIterable[Call[Any]],
) -> AsyncIterator[list[Call[Any]]]:
    if isinstance(calls, AsyncIterable):
        piece: list[Call[Any]] = []
        async for call in calls:
            piece.append(call)
            if len(piece) == PIECE:
                yield piece
                piece = []
        if piece:
            yield piece
        return
    left = iter(all_calls(calls))
    while piece := list(islice(left, PIECE)):
        yield piece
