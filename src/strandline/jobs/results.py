"""Waiting for the results of jobs, and what they were."""

from __future__ import annotations

import asyncio
import typing
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from strandline.errors import (
    AnswerTimedOut,
    InvalidInput,
    JobNotDone,
    JobNotFound,
    NotOpen,
    ResultNotKept,
    UnknownJob,
)
from strandline.jobs.completer import CHANNEL
from strandline.jobs.control import Control
from strandline.jobs.kinds import Kinds
from strandline.jobs.looking import JobRow, Which, find, find_many
from strandline.jobs.ref import FINAL, JobRef, JobStatus
from strandline.jobs.row import Flag, JobState, Kept
from strandline.loops import Loop, Rhythm
from strandline.postgres.listener import Listener
from strandline.postgres.pools import Pool

__all__ = ["FINAL", "Answers", "JobRef", "JobStatus", "Results"]

AT_ONCE = 1_000  # awaited jobs that are looked up by one statement
SOON = 0.02  # seconds to the second look; what is not kept ends without a notice
CLOSED = "the app was closed before the job ended; the job goes on"
LONGEST = 0.5  # seconds between looks without a notice


class _Awaited:
    """A job whose end somebody waits for."""

    __slots__ = ("futures", "seen")

    def __init__(self) -> None:
        self.futures: set[asyncio.Future[JobRow | None]] = set()
        self.seen: JobRow | None = None


class Answers:
    """What is told of jobs that have ended: the result as their function's own type, or why not."""

    def __init__(self, kinds: Kinds) -> None:
        self._kinds = kinds
        self._decoders: dict[str, Callable[[str], Any]] = {}

    def told(
        self, job: int, kind: str, seen: JobRow | None, row: JobRow | None, kept: Kept | None
    ) -> Any:
        """The result of *job*, whose last *row* is this; *seen*: as it was while it lived.

        Raises:
            JobNotDone: It was cancelled, discarded, or is a dead letter.
            ResultNotKept: It has completed, and what it returned is not there.
            JobNotFound: It is nowhere.
        """
        if row is None:
            if seen is not None:
                kept = _kept(seen.flags)
            if kept is None or kept == "all":
                raise JobNotFound(_nowhere(job))
            if kept == "none":
                raise ResultNotKept(f"job {job} has ended, and nothing is kept of its kind")
            return None  # anything else would stand in the history, or among the dead letters
        if row.state != JobState.COMPLETED:
            raise JobNotDone(job, row.state, error=_why(row))
        if row.result is None and row.reason:
            raise ResultNotKept(f"job {job}: {row.reason}")
        return self._decoded(row, kind or row.kind)

    def _decoded(self, row: JobRow, kind: str) -> Any:
        decode = self._decoders.get(kind)
        if decode is None:
            decode = self._decoders[kind] = _decoder(self._returned(kind))
        try:
            return None if row.result is None else decode(row.result)
        except (msgspec.MsgspecError, ValueError, TypeError) as error:
            raise InvalidInput(
                f"the result of job {row.id} of kind {kind!r} is not what its function says:"
                f" {error}; JobStatus.result has it as it is"
            ) from error

    def _returned(self, kind: str) -> Any:
        """What the function of that kind is annotated to return."""
        try:
            function = self._kinds.get(kind).function
            return typing.get_type_hints(function, include_extras=True).get("return", Any)
        except (UnknownJob, NameError, TypeError, AttributeError):
            return Any


class Results:
    """Looks after the jobs that are awaited in this process: all of them with one statement.

    It looks when a notice says that something has ended, and now and then without: more rarely the
    longer nothing happens.

    Args:
        pool: Of the database.
        listener: Hears that something has ended.
        kinds: Tells what their functions return.
        control: Cancels.
    """

    def __init__(self, pool: Pool, listener: Listener, kinds: Kinds, control: Control) -> None:
        self._pool = pool
        self._listener = listener
        self._answers = Answers(kinds)
        self._control = control
        self._awaited: dict[int, _Awaited] = {}
        self._is_closed = False
        self._wait = SOON
        self._asked = asyncio.Event()
        self._loop = Loop("job results", self._look, Rhythm(interval=3600.0, gap=0.005))
        self._end_listening: Callable[[], None] | None = None

    async def status(self, job: int) -> JobStatus:
        """See ``JobRef.status``."""
        row = await self._pool.run(find(job))
        if row is None:
            raise JobNotFound(_nowhere(job))
        return JobStatus.of(row)

    async def cancel(self, job: int, reason: str) -> bool:
        """See ``JobRef.cancel``."""
        changed = await self._control.cancel(Which(ids=(job,)), reason)
        return bool(changed.done or changed.asked)

    async def result(
        self, job: int, kind: str, *, kept: Kept | None = None, timeout: float | None = None
    ) -> Any:
        """See ``JobRef.result``."""
        seen, row = await self._ended(job, timeout)
        return self._answers.told(job, kind, seen, row, kept)

    async def stop(self) -> None:
        """End looking; whoever waits is told that the app was closed."""
        self._is_closed = True
        if self._end_listening is not None:
            self._end_listening()
            self._end_listening = None
        await self._loop.stop(timeout=2.0)
        for awaited in self._awaited.values():
            for future in awaited.futures:
                if not future.done():
                    future.set_exception(NotOpen(CLOSED))

    async def _ended(self, job: int, timeout: float | None) -> tuple[JobRow | None, JobRow | None]:
        """As it was last seen alive, and as it has ended; None: it is nowhere."""
        if self._is_closed:
            raise NotOpen(CLOSED)
        self._begin()
        future: asyncio.Future[JobRow | None] = asyncio.get_running_loop().create_future()
        awaited = self._awaited.setdefault(job, _Awaited())
        awaited.futures.add(future)
        self._soon()
        try:
            async with asyncio.timeout(timeout):
                row = await future
        except TimeoutError as error:
            state = awaited.seen.state if awaited.seen else "not there"
            raise AnswerTimedOut(
                f"job {job} has not ended within {timeout} s: it is {state}"
            ) from error
        finally:
            awaited.futures.discard(future)
            if not awaited.futures and self._awaited.get(job) is awaited:
                del self._awaited[job]
        return awaited.seen, row

    def _begin(self) -> None:
        if self._end_listening is None:
            self._end_listening = self._listener.on(CHANNEL, lambda _: self._soon())
            self._loop.start()

    def _soon(self) -> None:
        self._wait = SOON
        self._asked.set()
        self._loop.wake()

    async def _look(self) -> bool:
        """Look up all that are awaited, and rest."""
        self._asked.clear()
        ids = list(self._awaited)
        for begun in range(0, len(ids), AT_ONCE):
            some = ids[begun : begun + AT_ONCE]
            self._tell(some, await self._pool.run(find_many(some)))
        if not self._awaited:
            return False
        try:
            async with asyncio.timeout(self._wait):
                await self._asked.wait()
        except TimeoutError:
            self._wait = min(self._wait * 2, LONGEST)
        return True

    def _tell(self, ids: Sequence[int], rows: Sequence[JobRow]) -> None:
        found = {row.id: row for row in rows}
        for job in ids:
            awaited = self._awaited.get(job)
            if awaited is None:
                continue
            row = found.get(job)
            if row is not None and row.state not in FINAL:
                awaited.seen = row
                continue
            for future in awaited.futures:
                if not future.done():
                    future.set_result(row)


def _kept(flags: int) -> Kept:
    if flags & Flag.KEEP_NOTHING:
        return "none"
    return "all" if flags & Flag.KEEP_ALL else "failed"


def _decoder(kind: Any) -> Callable[[str], Any]:
    validate = getattr(kind, "model_validate_json", None)  # a pydantic model
    if validate is not None:
        return validate  # type: ignore[no-any-return]  # by the name of it
    try:
        return msgspec.json.Decoder(kind).decode
    except (TypeError, NotImplementedError):
        return msgspec.json.Decoder().decode


def _why(row: JobRow) -> str:
    """The last error in a line, or the reason."""
    if row.reason:
        return row.reason
    records = msgspec.json.decode(row.errors or "[]")
    if not records:
        return ""
    return f"{records[-1].get('class', '?')}: {records[-1].get('message', '')}"


def _nowhere(job: int) -> str:
    return f"there is no job {job}: it was rolled back, or has ended and was not kept (see keep=)"
