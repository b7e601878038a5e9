"""Claiming within limits that hold in the whole cluster: at most so many at once, of each key, in a time.

One claimer of a queue at a time, by an advisory lock of its transaction; running jobs are counted
from their rows, so that nothing can drift. Only queues with limits pay for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from strandline.jobs.row import Claimed
from strandline.postgres.operations import Call, Op
from strandline.postgres.statements import SqlFile

BEFORE_ID = 5  # columns of the answer before those of the job


@dataclass(frozen=True, slots=True)
class ClaimRow:
    """See ``claim_limited`` in the schema."""

    is_busy: bool
    pause: float | None
    next_key: str
    next_priority: int
    next_seq: int
    id: int | None
    claim: int | None
    kind: str | None
    args: str | None
    attempt: int | None
    max_attempts: int | None
    flags: int | None
    queue: str | None
    key: str | None
    tenant: str | None
    batch: int | None
    meta: str | None
    seq: int | None
    priority: int | None
    created_at: datetime | None


_sql = SqlFile(__name__)
CLAIM_LIMITED = _sql.many("claim_limited", ClaimRow)

START = ("", 0, 0)


class Limits:
    """Claims from queues with limits, for one node."""

    def __init__(self) -> None:
        self._places: dict[str, tuple[str, int, int]] = {}
        self._pauses: dict[str, float] = {}

    def claim(
        self, queue: str, kinds: Sequence[str], limit: int, claim: int
    ) -> Op[list[Claimed] | None]:
        """As ``fetch.claim``, within the limits.

        Returns:
            None if another node is claiming right now: try again in some milliseconds.
        """
        place = self._places.get(queue, START)
        rows = yield Call(CLAIM_LIMITED, (queue, kinds, limit, claim, *place))
        is_busy, pause, *place_after = rows[0][:BEFORE_ID]
        if is_busy:
            return None
        self._places[queue] = (place_after[0], place_after[1], place_after[2])
        if pause is None:
            self._pauses.pop(queue, None)
        else:
            self._pauses[queue] = pause
        return [Claimed._make(row[BEFORE_ID:]) for row in rows if row[BEFORE_ID] is not None]

    def pause_of(self, queue: str) -> float | None:
        """Seconds until the rate of *queue* allows the next job, as of its last claim; None: it does not wait for that."""
        return self._pauses.get(queue)
