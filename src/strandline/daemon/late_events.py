"""Events that turned up in gaps which were skipped by force: finding them, and noting what was done.

A shard that had passed such a gap has not processed them. One that had not will come to them by
itself; but it may hold a page that was read before they were there, so it is sent back to its
checkpoint. What is healed is noted per label in the gap's proof, in the transaction that does it or
after it: healing twice does no harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from strandline.postgres.operations import Call, Op, many, none, one
from strandline.postgres.statements import SqlFile
from strandline.projections.fold import POSITION, Row

PAGE = 1_000  # late events taken at once: a forced gap has few


@dataclass(frozen=True, slots=True)
class Cut:
    """Into how many shards a label is cut."""

    label: str
    parts: int


@dataclass(frozen=True, slots=True)
class ShardPosition:
    """Where a shard stands."""

    name: str
    position: int


@dataclass(frozen=True, slots=True)
class LetterId:
    """A dead letter."""

    id: int


@dataclass(frozen=True, slots=True)
class UnhealedGap:
    """A gap skipped by force in which so many events are left to be healed."""

    first: int
    last: int
    events: int


_sql = SqlFile(__name__)
_LATE = _sql.many("late_events", tuple)
_UNHEALED = _sql.many("unhealed_gaps", UnhealedGap)
_TAKE_TURNS = _sql.one("take_turns", Cut)
_READ_AGAIN = _sql.many("read_again", ShardPosition)
_CALL_AGAIN = _sql.many("call_again", LetterId)
_NOTE = _sql.none("note_healed")


def late_events(label: str) -> Op[list[Row]]:
    """The late events of every type that are left to be healed for *label*, in order."""
    found: list[Row] = []
    after = 0
    while True:
        page = yield Call(_LATE, (after, PAGE, label))
        found += page
        if len(page) < PAGE:
            return found
        after = page[-1][POSITION]


def unhealed_gaps(labels: Sequence[str] | None = None) -> Op[list[UnhealedGap]]:
    """The forced gaps that still need healing for any of *labels*, whatever types these want.

    None: for any label that nodes run.
    """
    return (yield from many(_UNHEALED, None if labels is None else list(labels)))


def take_turns(label: str) -> Op[None]:
    """Wait for others that heal *label*; they wait until this transaction ends."""
    yield from one(_TAKE_TURNS, label)


def is_passed(label: str, positions: Sequence[int]) -> Op[bool]:
    """Whether any shard of *label* has passed one of *positions*; others read again from where they are.

    Run it inside a transaction: *label*'s rows stay locked until its end.
    """
    yield from take_turns(label)
    shards = yield from many(_READ_AGAIN, label, max(positions))
    return any(shard.position >= min(positions) for shard in shards)


def call_again(label: str, positions: Sequence[int]) -> Op[int]:
    """Let the subscription *label* be called for late events at *positions*; how many it missed.

    Run it inside a transaction, after ``is_passed``.
    """
    reason = "came late, in a gap that force_after had skipped"
    return len((yield from many(_CALL_AGAIN, label, list(positions), reason)))


def note_healed(label: str, positions: Sequence[int]) -> Op[None]:
    """Nothing is left to be done for *label* about the late events at *positions*."""
    yield from none(_NOTE, label, list(positions))
