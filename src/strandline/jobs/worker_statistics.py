"""What workers tell of themselves."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    """How a queue is worked here.

    Attributes:
        concurrency: Jobs at once at the most.
        running: Jobs under way.
        buffered: Fetched and not begun.
        ended: Attempts so far, however they ended.
        seconds: What they took in all.
        fetches: Claims so far; *fetched* is what they brought, *fetch_seconds* the last one's time.
        given_back: Fetched jobs that were not begun in time.
        stuck: Attempts that did not end when they were told to.
        is_paused: By an operator.
        skips_dead_entries: The cursor is engaged: claims are slow at the queue's beginning.
    """

    queue: str
    concurrency: int
    running: int
    buffered: int
    ended: int
    seconds: float
    fetches: int
    fetched: int
    fetch_seconds: float
    given_back: int
    stuck: int
    is_paused: bool
    skips_dead_entries: bool


@dataclass(frozen=True, slots=True)
class WorkersStatistics:
    """How the queues of this node are worked."""

    queues: tuple[WorkerStatistics, ...]
