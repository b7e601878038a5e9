"""How attempts end, in statements: each names the claim under which the job was run.

After a lost answer nobody knows what was written. The same is sent again; a job that is then not
held under its claim any more has either been settled by the try before, or its claim was lost.
``traces`` tells the two apart. As long as the node's row says that it lives, nobody else may take a
running job from it (only the rescuer takes any, and only from nodes that are gone), so that what is
missing was settled by us. Without that row, as in solo mode, what was written tells: the record of
the error names the claim, the history names node and attempt. Where nothing is left that could tell
(the job is gone, and with it the row of its node), it is counted as neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from strandline.jobs.returned import not_stored
from strandline.jobs.row import LINKED, Ended, Ending, Flag
from strandline.jobs.storable import clean
from strandline.postgres.operations import Op, many
from strandline.postgres.statements import SqlFile

NOT_PLAIN = int(LINKED | Flag.KEEP_ALL)  # of these a row or a neighbour must be written
WAITED_FOR = int(LINKED & ~Flag.ORDERED)
NOT_STORABLE = "its result is not kept: PostgreSQL cannot store it"
ENDED = ("completed", "cancelled")  # a dead letter goes on, once somebody has decided about it
MOST_RESULT = 1_000_000  # characters of JSON
MOST_TEXT = 20_000  # characters of each text of an error's record
LONGEST_DELAY = 100 * 366 * 86_400.0  # seconds; a moment beyond it may not be one to PostgreSQL

Groups = Mapping[int, list[int]]
"""Ids by claim."""


@dataclass(frozen=True, slots=True)
class Settled:
    """A job whose attempt has ended as it is said here; without an id it is what followed.

    Attributes:
        ending: What was asked for, or ``cancelled`` where somebody had asked for that.
        is_available: It can be fetched now.
    """

    id: int | None
    claim: int | None
    ending: str
    queue: str
    key: str | None
    flags: int
    batch: int | None
    is_available: bool


@dataclass(frozen=True, slots=True)
class Trace:
    """See ``traces``."""

    id: int
    claim: int
    is_ours: bool
    is_there: bool
    node_is_here: bool


@dataclass(frozen=True, slots=True)
class Id:
    """A job."""

    id: int


class Held(NamedTuple):
    """An attempt that has ended; attempt 0: nothing is kept of it."""

    id: int
    claim: int
    attempt: int
    ending: Ending


class Linked(NamedTuple):
    """What became of linked jobs: queues with jobs that are available now, keys to look after."""

    settled: list[Settled]
    queues: set[str]
    keys: set[tuple[str, str]]


_sql = SqlFile(__name__)
COMPLETE = _sql.none("complete")
COMPLETE_KEPT = _sql.none("complete_kept")
SETTLE = _sql.many("settle", Settled)
SETTLE_LINKED = _sql.many("settle_linked", Settled)
TRACES = _sql.many("traces", Trace)
STILL_THERE = _sql.many("still_there", Id)
LOCKED = _sql.many("locked", Id)

_encode = msgspec.json.Encoder().encode


def completed(groups: Groups) -> tuple[list[int], list[int], list[int], list[int]]:
    """The arguments of ``COMPLETE``."""
    ids: list[int] = []
    firsts, lasts = [], []
    for group in groups.values():
        firsts.append(len(ids) + 1)
        ids += group
        lasts.append(len(ids))
    return ids, list(groups), firsts, lasts


def kept(items: Sequence[Ended]) -> tuple[list[int], list[int], list[str | None]]:
    """The arguments of ``COMPLETE_KEPT``."""
    return (
        [one.job.id for one in items],
        [one.job.claim for one in items],
        [one.result for one in items],
    )


def still_there(held: Sequence[Held]) -> Op[list[Id]]:
    """Some of these that live on under another claim."""
    return many(STILL_THERE, [one.id for one in held])


def locked(held: Sequence[Held]) -> Op[list[Id]]:
    """Those of these whose rows somebody else has locked."""
    return many(LOCKED, [one.id for one in held])


def settle_completed(groups: Groups) -> Op[list[Settled]]:
    """Complete jobs of which nothing is kept, and tell which."""
    ids = [one for group in groups.values() for one in group]
    claims = [claim for claim, group in groups.items() for _ in group]
    count = len(ids)
    nothing: list[None] = [None] * count
    empty = [""] * count
    zeros = [0.0] * count
    return many(SETTLE, ids, claims, ["completed"] * count, nothing, zeros, nothing, empty, empty)


def settle(items: Sequence[Ended]) -> Op[list[Settled]]:
    """End attempts; one that does not come back is not held under its claim."""
    return many(SETTLE, *_columns(items))


def settle_linked(items: Sequence[Ended]) -> Op[Linked]:
    """The same for jobs on which others wait: what follows from their end is the same statement.

    It is one, and no transaction of several: a process that is frozen between two of them would
    keep the rows of others, and whatever waits for them. What waits behind a key is to be promoted
    once this is committed, see ``Linked.keys``.
    """
    waited_for = [bool(one.job.flags & WAITED_FOR) for one in items]
    settled: list[Settled] = []
    queues: set[str] = set()
    keys: set[tuple[str, str]] = set()
    for row in (yield from many(SETTLE_LINKED, *_columns(items), waited_for)):
        if row.id is not None:
            settled.append(row)
        elif row.key is None:
            queues.add(row.queue)
        else:
            keys.add((row.queue, row.key))
    return Linked(settled, available(settled) | queues, _keys(settled) | keys)


def _columns(items: Sequence[Ended]) -> tuple[list[Any], ...]:
    return (
        [one.job.id for one in items],
        [one.job.claim for one in items],
        [one.ending for one in items],
        [one.result for one in items],
        [_seconds(one.delay) for one in items],
        [_recorded(one) for one in items],
        [clean(one.reason)[:MOST_TEXT] for one in items],
        [clean(one.fingerprint) for one in items],
    )


def available(settled: Iterable[Settled]) -> set[str]:
    """Queues in which there is something to fetch now."""
    return {one.queue for one in settled if one.is_available}


def _keys(settled: Iterable[Settled]) -> set[tuple[str, str]]:
    """Where the next of a key may go on: (queue, key)."""
    return {
        (one.queue, one.key)
        for one in settled
        if one.flags & Flag.ORDERED and one.key is not None and one.ending in ENDED
    }


# ---- after a lost answer


def find_traces(held: Sequence[Held]) -> Op[list[Trace]]:
    """What shows of these."""
    ids, claims, attempts, _ = (list(one) for one in zip(*held, strict=True))
    return many(TRACES, ids, claims, attempts)


def was_ours(ending: Ending, trace: Trace) -> bool | None:
    """Whether the try whose answer was lost has settled it. None: nothing is left that could tell."""
    if trace.is_ours:
        return True
    leaves_no_trace = ending in ("snoozed", "released")
    if trace.is_there and not leaves_no_trace:
        return False
    return True if trace.node_is_here else None


# ---- what PostgreSQL takes


def stripped(one: Ended) -> Ended:
    """The same end without anything that could be bad data."""
    error, reason = None, ""
    if one.error is not None:
        attempt, at = one.job.attempt, one.error.get("at")
        error = {"attempt": attempt, "class": "?", "message": "the record could not be stored"}
        if isinstance(at, str) and at.isascii():
            error["at"] = at[:40]
    if one.result is not None:
        reason = NOT_STORABLE
        error = not_stored(one.job, reason)
    return Ended(one.job, one.ending, delay=_seconds(one.delay), error=error, reason=reason)


def fit(one: Ended) -> None:
    """Drop the result of *one* if it cannot be stored, and say so."""
    if one.result is not None:
        if len(one.result) > MOST_RESULT:
            one.reason = f"its result is not kept: {len(one.result)} characters of JSON"
            one.error = not_stored(one.job, one.reason)
            one.result = None
        else:
            one.result = clean(one.result)


def _recorded(one: Ended) -> str | None:
    """One element of column ``errors``, which names the claim."""
    if one.error is None:
        return None
    record = {str(name): _storable(value) for name, value in one.error.items()}
    return _encode({**record, "claim": one.job.claim}).decode()


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value if len(value) <= MOST_TEXT else value[:MOST_TEXT] + " ...")
    if value is None or isinstance(value, bool | int | float):
        return value
    return clean(repr(value)[:MOST_TEXT])


def _seconds(delay: float) -> float:
    return min(max(delay, 0.0), LONGEST_DELAY) if math.isfinite(delay) else 0.0
