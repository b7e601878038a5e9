"""Claims jobs in portions: the claim is the fencing token of everything that is written about them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from typing import NamedTuple

from strandline.jobs.row import COUNTER_BITS, Claimed
from strandline.postgres.operations import Call, Op, many
from strandline.postgres.statements import SqlFile

PIECE = 2_000  # jobs
BEFORE_ID = 3  # columns of the answer for a piece before those of the job

_make = Claimed._make
_order = attrgetter("priority", "seq")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A running job that somebody looks for."""

    id: int
    claim: int


@dataclass(frozen=True, slots=True)
class Given:
    """A queue that jobs were given back to; or a job of it that was not, since it is to be cancelled."""

    queue: str
    unwanted: int | None


class Returned(NamedTuple):
    """Queues that jobs were given back to, and ids of those that are to be cancelled instead."""

    queues: set[str]
    unwanted: set[int]


class Piece(NamedTuple):
    """Jobs that were claimed from a piece of the line, and where it ended."""

    jobs: list[Claimed]
    place: tuple[int, int]
    is_end: bool


@dataclass(frozen=True, slots=True)
class PieceRow:
    """See ``claim_piece`` in the .sql."""

    next_priority: int
    next_seq: int
    is_end: bool
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
CLAIM_JOBS = _sql.many("claim_jobs", Claimed)
GIVE_BACK = _sql.many("give_back", Given)
RECALL = _sql.many("recall", Given)
CLAIM_PIECE = _sql.many("claim_piece", PieceRow)
RECALL_UNWANTED = _sql.many("recall_unwanted", Claimed)
LONG_RUNNING = _sql.many("long_running", Wanted)
CLAIMED_AS = _sql.many("claimed_as", Claimed)
JOBS_TO_CANCEL = _sql.many("jobs_to_cancel", Wanted)


def claim(
    queue: str,
    kinds: Sequence[str],
    limit: int,
    claim: int,
    after_priority: int = 0,
    after_seq: int = 0,
) -> Op[list[Claimed]]:
    """Claim up to *limit* jobs of *queue*, of *kinds* only, in the order of priority and seq.

    Args:
        queue: Where they wait.
        kinds: Those that can be run here.
        limit: How many at the most.
        claim: The token: see ``first_claim``.
        after_priority: With *after_seq* the place behind which to begin to look.
        after_seq: See above; 0 and 0 look at all.
    """
    rows = yield Call(CLAIM_JOBS, (queue, kinds, limit, claim, after_priority, after_seq))
    claimed = list(map(_make, rows))
    claimed.sort(key=_order)  # as a rule it is in order already; the server does not promise that
    return claimed


def claim_piece(
    queue: str, kinds: Sequence[str], limit: int, claim: int, start: tuple[int, int]
) -> Op[Piece]:
    """As ``claim``, from the next ``PIECE`` jobs behind *start*, of whatever kind they are."""
    rows = yield Call(CLAIM_PIECE, (queue, kinds, limit, claim, *start, PIECE))
    jobs = [_make(row[BEFORE_ID:]) for row in rows if row[BEFORE_ID] is not None]
    jobs.sort(key=_order)
    priority, seq, is_end = rows[0][:BEFORE_ID]
    return Piece(jobs, (priority, seq), is_end)


def give_back(jobs: Iterable[Claimed]) -> Op[Returned]:
    """Make *jobs*, which were not begun, available again; the attempt does not count."""
    # all nodes lock them in one order
    pairs = sorted((job.id, job.claim) for job in jobs)
    ids, claims = [one[0] for one in pairs], [one[1] for one in pairs]
    rows = yield from many(GIVE_BACK, ids, claims)
    return Returned(
        {one.queue for one in rows if one.unwanted is None},
        {one.unwanted for one in rows if one.unwanted is not None},
    )


def recall(claims: Sequence[int]) -> Op[set[str]]:
    """Give back whatever was claimed under *claims*, none of which ever got here."""
    given = yield from many(RECALL, claims)
    return {one.queue for one in given}


def recall_unwanted(claims: Sequence[int]) -> Op[list[Claimed]]:
    """Those under such *claims* that are to be cancelled, and were not given back."""
    return (yield from many(RECALL_UNWANTED, claims))


def jobs_to_cancel(number: int) -> Op[list[Wanted]]:
    """Running jobs of node *number* that somebody wants cancelled."""
    return (yield from many(JOBS_TO_CANCEL, first_claim(number), first_claim(number + 1)))


def long_running(first: int, beyond: int, seconds: float) -> Op[list[Wanted]]:
    """Jobs that have been running under claims from *first* up to *beyond* for so long at least."""
    return (yield from many(LONG_RUNNING, first, beyond, seconds))


def claimed_as(held: Sequence[tuple[int, int]]) -> Op[list[Claimed]]:
    """Those jobs that run under these claims."""
    return (yield from many(CLAIMED_AS, [one for one, _ in held], [claim for _, claim in held]))


def first_claim(number: int) -> int:
    """The claim below every other one of node *number*."""
    return number << COUNTER_BITS
