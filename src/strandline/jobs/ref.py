"""References to jobs: their state, their result once it is there, their end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from strandline.jobs.looking import JobRow
from strandline.jobs.row import JobState, Kept

R_co = TypeVar("R_co", covariant=True)

FINAL = frozenset({JobState.COMPLETED, JobState.CANCELLED, JobState.DISCARDED, JobState.DEAD})


class Asked(Protocol):
    """Whoever knows about jobs."""

    async def status(self, job: int) -> JobStatus:
        """See ``JobRef.status``."""
        ...

    async def result(
        self, job: int, kind: str, *, kept: Kept | None = None, timeout: float | None = None
    ) -> Any:
        """See ``JobRef.result``."""
        ...

    async def cancel(self, job: int, reason: str) -> bool:
        """See ``JobRef.cancel``."""
        ...


@dataclass(frozen=True, slots=True)
class JobStatus:
    """A job as it is now.

    Attributes:
        state: In words, see ``JobState``.
        attempt: Of the attempt under way, or the last one.
        errors: A record for each failed attempt: attempt, at, class, message, stack.
        progress: What it told last: done, total, message, at; None if nothing.
        result: As plain JSON values; see ``JobRef.result`` for the function's own type.
        reason: Why it was cancelled or discarded.
    """

    id: int
    kind: str
    queue: str
    state: JobState
    attempt: int
    max_attempts: int | None
    errors: tuple[Mapping[str, Any], ...]
    progress: Mapping[str, Any] | None
    result: Any
    reason: str
    created_at: datetime
    run_at: datetime | None
    claimed_at: datetime | None
    finished_at: datetime | None

    @property
    def is_final(self) -> bool:
        """Whether it runs no more, unless somebody retries a dead letter."""
        return self.state in FINAL

    @classmethod
    def of(cls, row: JobRow) -> JobStatus:
        """From its row."""
        return cls(
            id=row.id,
            kind=row.kind,
            queue=row.queue,
            state=JobState(row.state),
            attempt=row.attempt,
            max_attempts=row.max_attempts,
            errors=tuple(_json(row.errors) or ()),
            progress=_json(row.progress),
            result=_json(row.result),
            reason=row.reason,
            created_at=row.created_at,
            run_at=row.run_at,
            claimed_at=row.claimed_at,
            finished_at=row.finished_at,
        )


class JobRef(Generic[R_co]):
    """A job that was enqueued, from any process of any machine.

    Attributes:
        id: Its number; enough to refer to it again, see ``app.jobs``.
        kind: Its kind; empty if it is not known.
        is_new: False: a job with the same unique key was there already, and this is that one.
    """

    __slots__ = ("_kept", "_results", "id", "is_new", "kind")

    def __init__(
        self,
        id: int,  # noqa: A002 - it is one
        kind: str,
        results: Asked,
        *,
        is_new: bool = True,
        kept: Kept | None = None,
    ) -> None:
        self.id = id
        self.kind = kind
        self.is_new = is_new
        self._results = results
        self._kept = kept

    async def status(self) -> JobStatus:
        """How it is now.

        Raises:
            JobNotFound: It is nowhere: it was rolled back, or has ended and was not kept.
        """
        return await self._results.status(self.id)

    async def result(self, *, timeout: float | None = None) -> R_co:
        """What its function returned, once it has.

        Not to be asked before the transaction is committed in which it was enqueued, nor after that
        was rolled back: where nothing is kept of jobs that return None, as by default, one that is
        not there has either returned None or never was, and None is the answer to both.

        Args:
            timeout: Seconds to wait for that; None: as long as it takes.

        Raises:
            JobNotDone: It was cancelled, discarded, or is a dead letter.
            ResultNotKept: It has completed, and what it returned is not there: it has no JSON form,
                or is larger than 1 MB, or nothing is kept of its kind.
            JobNotFound: It is nowhere, and should be: of its kind all are kept, or that is not known.
            AnswerTimedOut: It has not ended in time. It goes on.
        """
        found: R_co = await self._results.result(
            self.id, self.kind, kept=self._kept, timeout=timeout
        )
        return found

    async def cancel(self, reason: str = "") -> bool:
        """Cancel it: it never runs (again), or is told to end if it is running.

        Returns:
            Whether there was anything left to cancel.
        """
        return await self._results.cancel(self.id, reason)

    def __repr__(self) -> str:
        return f"<job {self.kind!r} {self.id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, JobRef) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)


def _json(text: str | None) -> Any:
    return None if text is None else msgspec.json.decode(text)
