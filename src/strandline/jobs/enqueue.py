"""Enqueueing as operations: rows by one statement, those with unique keys each with its outcome.

A job without a unique key cannot be refused once it is prepared, so it needs no answer: its id is
known before. What has a unique key answers for itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import msgspec

from strandline.errors import DuplicateJob
from strandline.jobs.row import ORDERED, NewJob
from strandline.postgres.operations import Op, many, none
from strandline.postgres.operations import one as only
from strandline.postgres.statements import SqlFile

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one job with a unique key."""

    item: int
    outcome: str
    job: int


@dataclass(frozen=True, slots=True)
class Number:
    """A transaction's number."""

    number: str


@dataclass(frozen=True, slots=True)
class Status:
    """What became of a transaction."""

    status: str | None


_sql = SqlFile(__name__)
INSERT = _sql.none("insert_jobs")
INSERT_ONCE = _sql.none("insert_jobs_once")
BATCH = _sql.many("enqueue_batch", Outcome)
TOGETHER = _sql.many("enqueue_together", Outcome)
ONCE = _sql.many("enqueue_once", Outcome)
CURRENT_TRANSACTION = _sql.one("current_transaction", Number)
TRANSACTION_STATUS = _sql.one("transaction_status", Status)

_FIELDS = (
    "id", "kind", "args", "queue", "priority", "max_attempts", "flags", "run_at", "delay", "key",
    "tenant", "batch", "meta",
)  # fmt: skip
_values = attrgetter(*_FIELDS)
_unique_values = attrgetter("unique_key", "unique_seconds", "on_duplicate")


@dataclass(frozen=True, slots=True)
class Enqueued:
    """Where a call ended.

    Attributes:
        id: Of the job, or of the one that was there already.
        is_new: Whether it is the call's own.
        replaced: The one that was there has the call's arguments and time now.
    """

    id: int
    is_new: bool = True
    replaced: bool = False


def insert(jobs: Sequence[NewJob]) -> Op[list[Enqueued]]:
    """Enqueue *jobs* in order, inside the caller's transaction: all, or none with an error.

    Raises:
        DuplicateJob: A unique key is taken, and the call says that this is an error.
    """
    unique = [one for one in jobs if one.unique_key is not None]
    if not unique:
        if jobs:
            yield from none(INSERT, *columns(jobs))
        return [Enqueued(one.id) for one in jobs]
    may_refuse = len(jobs) > 1 and any(one.on_duplicate == "raise" for one in unique)
    in_order = any(one.flags & ORDERED for one in jobs)  # then all in one, which draws their places
    sent = jobs if in_order else unique
    outcomes = yield from many(TOGETHER if may_refuse else BATCH, batch(sent))
    answers: dict[int, Enqueued] = {}
    for job, outcome in zip(sent, sorted(outcomes, key=attrgetter("item")), strict=True):
        answers[job.id] = answer(job, outcome)
    plain = [] if in_order else [one for one in jobs if one.unique_key is None]
    if plain:
        yield from none(INSERT, *columns(plain))
    return [answers.get(one.id) or Enqueued(one.id) for one in jobs]


def transaction_number() -> Op[str]:
    """The number of this transaction."""
    row: Number | None = yield from only(CURRENT_TRANSACTION)
    return row.number if row else ""


def transaction_status(number: str) -> Op[str]:
    """``committed``, ``aborted``, ``in progress``, or empty where it is too long ago."""
    row: Status | None = yield from only(TRANSACTION_STATUS, number)
    return (row and row.status) or ""


def answer(job: NewJob, outcome: Outcome) -> Enqueued:
    """What the caller of a job with a unique key is told.

    Raises:
        DuplicateJob: It was refused.
    """
    if outcome.outcome == "refused":
        raise DuplicateJob(job.kind, job.unique_key or "", job=outcome.job)
    return Enqueued(outcome.job, outcome.outcome == "new", outcome.outcome == "replaced")


def columns(jobs: Sequence[NewJob]) -> list[list[Any]]:
    """*jobs* as the arrays that the statements take."""
    made = [list(one) for one in zip(*map(_values, jobs), strict=True)]
    made.append([is_blocked(one) for one in jobs])
    return made


def batch(jobs: Sequence[NewJob]) -> str:
    """Jobs, with unique keys and without, as the SQL functions take them."""
    rows = [(*_values(one), is_blocked(one), *_unique_values(one)) for one in jobs]
    return _encode(rows).decode()


def is_blocked(job: NewJob) -> bool:
    """Whether it waits for another: its parents, or one of its key, which only a later look can tell."""
    return job.blocked or bool(job.flags & ORDERED)


def is_due(job: NewJob) -> bool:
    """Whether it may run as soon as it is committed; of a past ``run_at`` the next poll finds out."""
    return job.run_at is None and not job.delay


def queues_of(jobs: Iterable[NewJob]) -> set[str]:
    """The queues in which something has become available."""
    return {one.queue for one in jobs if is_due(one) and not is_blocked(one)}


def keys_of(jobs: Iterable[NewJob]) -> set[tuple[str, str]]:
    """Queue and key of ordered jobs: somebody has to see whether the first of them may run."""
    return {
        (one.queue, one.key)
        for one in jobs
        if one.flags & ORDERED and not one.blocked and one.key is not None
    }
