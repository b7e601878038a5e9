"""Looking at jobs wherever they are: live, dead, or in the history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from strandline.errors import InvalidInput
from strandline.jobs.row import JobState, State
from strandline.jobs.storable import clean
from strandline.postgres.operations import Op, many, one
from strandline.postgres.statements import SqlFile

MOST_LISTED = 10_000
PAGES = 2_000  # 16 MB of a table that are counted; of more, a sample of so many
LAST = (1 << 63) - 1

LIVE = {
    JobState.AVAILABLE: (State.AVAILABLE, None),
    JobState.SCHEDULED: (State.SCHEDULED, False),
    JobState.RETRYABLE: (State.SCHEDULED, True),
    JobState.RUNNING: (State.RUNNING, None),
    JobState.BLOCKED: (State.BLOCKED, None),
}


@dataclass(frozen=True, slots=True)
class Which:
    """Jobs of which everything holds that is given here.

    Attributes:
        state: In words, see ``JobState``.
        tag: One of its tags.
        fingerprint: Of dead letters: failures that look alike.
    """

    state: str | None = None
    queue: str | None = None
    kind: str | None = None
    tag: str | None = None
    tenant: str | None = None
    key: str | None = None
    ids: Sequence[int] | None = None
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        if self.state is not None and self.state not in list(JobState):
            raise InvalidInput(f"no state of a job: {self.state!r}; there is {', '.join(JobState)}")
        for text in (self.queue, self.kind, self.tag, self.tenant, self.key, self.fingerprint):
            if text is not None and clean(text) != text:
                raise InvalidInput(f"no job has {text!r}: PostgreSQL cannot store it")
        for number in self.ids or ():
            if not -LAST <= number <= LAST:
                raise InvalidInput(f"no job has the id {number}")

    @property
    def is_everything(self) -> bool:
        """Nothing is given."""
        return self == Which()


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job as it is in its table; a dead letter and one in the history as well.

    Attributes:
        state: In words.
        max_attempts: None in the history.
        args: JSON text, or encrypted, see ``Flag.ENCRYPTED``.
        errors: JSON text: one record for each failed attempt.
        reason: Why it was cancelled or discarded, or is to be.
        fingerprint: Of a dead letter.
        node: The number of the node that has it, or had it when it ended.
        cancel_at: When somebody asked for the end of its attempt.
        finished_at: When it ended, or died.
    """

    id: int
    kind: str
    queue: str
    state: str
    priority: int
    attempt: int
    max_attempts: int | None
    flags: int
    key: str | None
    unique_key: str | None
    tenant: str | None
    batch: int | None
    args: str
    meta: str | None
    errors: str | None
    progress: str | None
    result: str | None
    reason: str
    fingerprint: str
    node: int | None
    created_at: datetime
    run_at: datetime | None
    claimed_at: datetime | None
    cancel_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Count:
    """How many jobs of a queue are in a state.

    Attributes:
        oldest: Since when the first of them could run, or when it ended.
        is_estimate: From a sample of the table.
    """

    queue: str
    state: str
    count: int
    oldest: datetime | None
    is_estimate: bool


@dataclass(frozen=True, slots=True)
class Sizes:
    """Pages of the tables."""

    live: int
    dead: int
    ended: int


_sql = SqlFile(__name__)
LIST_JOBS = _sql.many("list_jobs", JobRow)
OLDEST_FIRST = LIST_JOBS.about(beyond=">", order="ASC")
NEWEST_FIRST = LIST_JOBS.about(beyond="<", order="DESC")
SIZES = _sql.one("sizes", Sizes)
COUNT = _sql.many("count_jobs", Count)


def find(id: int) -> Op[JobRow | None]:  # noqa: A002 - it is one
    """The job, wherever it is; None if it is nowhere (any more)."""
    rows = yield from listed(Which(ids=(id,)), limit=1)
    return rows[0] if rows else None


def find_many(ids: Sequence[int]) -> Op[list[JobRow]]:
    """Those of these jobs that are somewhere."""
    return listed(Which(ids=ids), limit=max(1, len(ids)))


def listed(
    which: Which = Which(),
    *,
    after: int | None = None,
    limit: int = 100,
    newest_first: bool = False,
) -> Op[list[JobRow]]:
    """Jobs in the order of their ids, which is about that of enqueueing.

    Args:
        which: All of them by default, also dead letters and the history.
        after: The last id of the page before.
        limit: At most so many.
        newest_first: The other way round.
    """
    if not 1 <= limit <= MOST_LISTED:
        raise InvalidInput(f"a page has 1 to {MOST_LISTED} jobs, not {limit}")
    state, attempted, outcome = meaning(which.state)
    return many(
        NEWEST_FIRST if newest_first else OLDEST_FIRST,
        (which.state is None or state is not None) and which.fingerprint is None,
        which.state in (None, JobState.DEAD),
        (which.state is None or outcome is not None) and which.fingerprint is None,
        state,
        attempted,
        outcome,
        *texts(which),
        None if which.ids is None else list(which.ids),
        which.fingerprint,
        (LAST if newest_first else -LAST) if after is None else after,
        limit,
    )


def counts() -> Op[list[Count]]:
    """How many jobs of each queue are in which state; of large tables estimated from a sample."""
    sizes = yield from one(SIZES)
    assert sizes is not None  # it always answers
    shares = [
        min(100.0, 100.0 * PAGES / max(1, size)) for size in (sizes.live, sizes.dead, sizes.ended)
    ]
    return (yield from many(COUNT, *shares))


def meaning(state: str | None) -> tuple[State | None, bool | None, str | None]:
    """The word as column ``state``, whether it was attempted, and column ``outcome``."""
    if state is None or state == JobState.DEAD:
        return None, None, None
    live = LIVE.get(JobState(state))
    return (*live, None) if live else (None, None, str(state))


def texts(which: Which) -> tuple[str | None, ...]:
    """The filters that every table has."""
    return (which.queue, which.kind, which.tag, which.tenant, which.key)
