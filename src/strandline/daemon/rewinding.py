"""Sending a subscription back, or forward, while nodes run it.

In one transaction all its shards go to one position under a new epoch and lose their owner. A batch
under way is refused by the fence: what a function did by ``tx`` is rolled back with it, and comes
again. So with ``tx`` every event beyond the position is handled exactly once after a rewind.

A shard whose agent waits for events must be read again although nothing was appended: agents are told
by a notice, and nodes look for shards without an owner now and then as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from strandline.daemon import slicing
from strandline.errors import ConflictError, InvalidInput
from strandline.postgres.operations import Op, many, one
from strandline.postgres.statements import SqlFile
from strandline.projections import lifecycles

CHECKPOINTS_CHANNEL = "checkpoints"  # payload: a label whose checkpoints are to be read again
PATIENCE = 2.0  # seconds for a lock: whoever waits behind this one is let through then
CHUNK = 100_000  # positions looked through in one statement


@dataclass(frozen=True, slots=True)
class Rewound:
    """What a rewind has done.

    Attributes:
        position: Everything beyond it is handled from now on.
        shards: How many were sent there.
        letters: Open dead letters beyond it, superseded.
    """

    position: int
    shards: int
    letters: int


@dataclass(frozen=True, slots=True)
class Position:
    """A position."""

    position: int


@dataclass(frozen=True, slots=True)
class ShardName:
    """A shard."""

    name: str


_sql = SqlFile(__name__)
FIRST_SINCE = _sql.one("first_event_since", Position)
REWIND = _sql.one("rewind_shards", Rewound)
UNOWNED = _sql.many("unowned_shards", ShardName)


def checked(to: object, now: datetime) -> None:
    """Refuse what is no place in the log, whatever the log holds.

    Raises:
        InvalidInput: It is neither a position, nor a time with a zone that is past, nor a known word.
    """
    if isinstance(to, datetime):
        if to.tzinfo is None:
            raise InvalidInput(f"to={to!r} has no time zone: pass an aware datetime")
        if to > now:
            raise InvalidInput(f"to={to.isoformat()} is in the future; to='present' skips to now")
        return
    if to in ("beginning", "present"):
        return
    if isinstance(to, bool) or not isinstance(to, int) or to < 0:
        raise InvalidInput(
            f"to={to!r} is not a position from 0, a datetime, 'beginning' or 'present'"
        )


def position_of(to: int | datetime | str, mark: int) -> Op[int]:
    """Behind which position *to* begins. Run it outside a transaction.

    For a time: before the first event that was recorded then or later. Times need not grow with
    positions, since imports bring their own, so every event is looked at: nothing is left out.

    Args:
        to: As ``checked`` lets it pass.
        mark: Beyond it nobody can be sent.

    Raises:
        InvalidInput: It lies beyond the mark.
    """
    if to == "beginning":
        return 0
    if to == "present":
        return mark
    if isinstance(to, datetime):
        for after in range(0, mark, CHUNK):
            found = yield from one(FIRST_SINCE, after, min(after + CHUNK, mark), to)
            if found is not None:
                return found.position - 1
        return mark
    position = int(to)
    if position > mark:
        raise InvalidInput(f"to={position} lies beyond the high-water mark, which is at {mark}")
    return position


def rewind(
    label: str, parts: int, position: int, *, channel: str, patience: float = PATIENCE
) -> Op[Rewound]:
    """Send all shards of *label* to *position*; run it in a transaction of its own.

    Args:
        label: Of a subscription. One that nobody has run yet begins there.
        parts: Into how many shards the code wants it cut.
        position: At or below the mark.
        channel: Where nodes hear of it.
        patience: Seconds to wait for the batches under way.

    Raises:
        ConflictError: It belongs to a build.
        DatabaseUnavailable: A batch under way did not end soon; see ``lifecycles.is_locked``.
    """
    yield from one(lifecycles.BE_BRIEF, f"{int(1000 * patience)}ms")
    held = yield from lifecycles.hold([label])
    if label not in held:
        yield from slicing.declare(label, parts, start=position)
        held = yield from lifecycles.hold([label])
    if label in held and held[label].build is not None:
        raise ConflictError(f"{label} is being rebuilt: wait for it, or cancel it")
    yield from lifecycles.hold_shards([label])
    found = yield from one(REWIND, label, position, channel)
    assert found is not None
    return found


def unowned(shards: Sequence[str]) -> Op[list[str]]:
    """Those of *shards* that have no owner."""
    return [row.name for row in (yield from many(UNOWNED, list(shards)))]
