"""Ordered by key: one job of a key at a time, in the order in which they were enqueued.

An ordered job is inserted blocked. Whoever has committed something that may let the next one begin
(an insert, an end, a discarded dead letter) promotes the key afterwards: of two at the same time
the second looks once the first has committed. Whoever dies in between is made good by the sweep.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from strandline.postgres.operations import Op, many
from strandline.postgres.statements import SqlFile

AT_ONCE = 200  # keys of one transaction: each takes a place in the server's table of locks
SWEPT_AT_ONCE = 1_000

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class QueueRow:
    """A queue with a job that is available now."""

    queue: str


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key with blocked ordered jobs; *stuck*: and no head."""

    queue: str
    key: str
    stuck: bool


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep found.

    Attributes:
        queues: With jobs that are available now.
        promoted: Keys that had nobody.
        after: Where the next sweep goes on; None: from the beginning.
    """

    queues: frozenset[str]
    promoted: int
    after: Pair | None


_sql = SqlFile(__name__)
PROMOTE = _sql.many("promote", QueueRow)
KEYS = _sql.many("keys_to_look_at", KeyRow)


def promote(pairs: Iterable[Pair]) -> Op[set[str]]:
    """Let the next job of each (queue, key) begin, if it is its turn.

    After the commit of what may have made it its turn, and outside of any transaction: each
    statement has to see what others have committed, and to let go of its locks.

    Returns:
        Queues with jobs that are available now.
    """
    queues: set[str] = set()
    line = sorted(set(pairs))
    for start in range(0, len(line), AT_ONCE):
        some = line[start : start + AT_ONCE]
        rows = yield from many(PROMOTE, [one for one, _ in some], [key for _, key in some])
        queues.update(row.queue for row in rows)
    return queues


def sweep(most: int = SWEPT_AT_ONCE, after: Pair | None = None) -> Op[Swept]:
    """Promote keys that nobody is going to: of those after *after*, *most* are looked at."""
    found = yield from many(KEYS, *(after or ("", "")), most)
    stuck = [(one.queue, one.key) for one in found if one.stuck]
    queues = yield from promote(stuck)
    last = (found[-1].queue, found[-1].key) if len(found) >= most else None
    return Swept(frozenset(queues), len(stuck), last)
