"""A job as the tables know it: states, flags, what is enqueued, what was fetched, how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum, IntFlag, StrEnum
from typing import Any, Literal, NamedTuple

DEFAULT_QUEUE = "default"
DEFAULT_PRIORITY = 5
PRIORITIES = range(1, 10)  # 1 runs first
COUNTER_BITS = 32  # of a claim: the number of the fetch; the node's number stands above


class State(IntEnum):
    """What column ``state`` holds; a job that has ended is no row of ``jobs`` any more."""

    AVAILABLE = 0
    SCHEDULED = 1
    RUNNING = 2
    BLOCKED = 3


class Flag(IntFlag):
    """What column ``flags`` holds. A job with none of ``LINKED`` is completed by the short way."""

    NONE = 0
    ORDERED = 1  # by its key: one at a time, in the order of seq
    HAS_CHILDREN = 2
    HAS_PARENTS = 4
    IN_BATCH = 8
    ENCRYPTED = 16
    UNIQUE_UNTIL_STARTED = 32
    KEEP_ALL = 64
    KEEP_NOTHING = 128
    LIMITED = 256  # counts for the limits of its queue
    WAITS = 512  # for parents that have not ended


ORDERED = int(Flag.ORDERED)  # an enum's own & takes a microsecond
LINKED = Flag.ORDERED | Flag.HAS_CHILDREN | Flag.HAS_PARENTS | Flag.IN_BATCH

Kept = Literal["failed", "all", "none"]
"""What stays in the history of a kind: jobs that did not complete, all of them, or none."""


class JobState(StrEnum):
    """What a job is, in words; see docs/concepts/jobs.md."""

    SCHEDULED = "scheduled"
    AVAILABLE = "available"
    RUNNING = "running"
    RETRYABLE = "retryable"
    BLOCKED = "blocked"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    DISCARDED = "discarded"
    DEAD = "dead"


@dataclass(slots=True)
class NewJob:
    """A job on its way into the table: checked, encoded, with its id.

    Attributes:
        delay: Seconds from the server's now until it may run; used where *run_at* is None.
        unique_seconds: How long *unique_key* is taken, beyond the job's life; None: as long as it lives.
        on_duplicate: What is done if *unique_key* is taken.
        meta: JSON text: correlation, causation, trace, tags, timeout; None if there is none.
    """

    id: int
    kind: str
    args: str
    queue: str = DEFAULT_QUEUE
    priority: int = DEFAULT_PRIORITY
    max_attempts: int = 20
    flags: int = 0
    run_at: datetime | None = None
    delay: float | None = None
    key: str | None = None
    unique_key: str | None = None
    unique_seconds: float | None = None
    on_duplicate: Literal["ignore", "replace", "raise"] = "ignore"
    tenant: str | None = None
    batch: int | None = None
    meta: str | None = None
    blocked: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether COPY can write it: no look at other rows, and available at once."""
        return not (self.unique_key or self.blocked or self.flags & ORDERED) and (
            self.run_at is None and self.delay is None
        )


class Claimed(NamedTuple):
    """A job that this node has fetched, in the order of the columns of the fetch."""

    id: int
    claim: int
    kind: str
    args: str
    attempt: int
    max_attempts: int
    flags: int
    queue: str
    key: str | None
    tenant: str | None
    batch: int | None
    meta: str | None
    seq: int
    priority: int
    created_at: datetime


Ending = Literal["completed", "retry", "dead", "snoozed", "cancelled", "released"]


@dataclass(slots=True)
class Ended:
    """How one attempt ended; what the completer writes under the job's claim.

    Attributes:
        ending: ``retry``: again after *delay*; ``dead``: attempts are used up; ``snoozed``: again after
            *delay*, the attempt does not count; ``released``: available at once, the attempt does not count.
        result: JSON text; None if the handler returned None.
        delay: Seconds.
        error: What column ``errors`` gets one more of: attempt, at, class, message, stack.
        reason: Why it was cancelled or given back.
    """

    job: Claimed
    ending: Ending
    result: str | None = None
    delay: float = 0.0
    error: dict[str, Any] | None = None
    reason: str = ""
    fingerprint: str = ""
