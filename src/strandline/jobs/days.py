"""The history's partitions: made some days ahead, dropped when they are old.

The history has a default partition, so nothing fails where a day has no partition: its rows stand
there, are moved when the day's partition is made, and are deleted row by row when they are old.
Making or dropping one needs tables alone for a moment: it waits for them only briefly, and is tried
again later. Each is one statement: a process that stands still must not hold everybody's history.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from strandline.jobs.right import Right
from strandline.postgres.operations import Op, many, one
from strandline.postgres.statements import SqlFile

AHEAD = 3  # days
MOST_STRAYS = 20_000  # rows moved from the default partition; with more a day stays there


@dataclass(frozen=True, slots=True)
class Day:
    """A day of the history.

    Attributes:
        name: Of its partition.
        is_there: Whether it has one.
        is_old: Whether its rows need not be kept any longer.
    """

    name: str
    day: date
    is_there: bool
    is_old: bool


@dataclass(frozen=True, slots=True)
class _Done:
    outcome: str


_sql = SqlFile(__name__)
DAYS = _sql.many("days", Day)
MAKE = _sql.one("make_day", _Done)
DROP = _sql.one("drop_day", _Done)


def days(*, keep: int, ahead: int = AHEAD) -> Op[list[Day]]:
    """The days that have partitions, and those from today on that should, in order."""
    return (yield from many(DAYS, ahead, keep))


def make(right: Right, day: Day, *, most: int = MOST_STRAYS) -> Op[bool]:
    """Make the partition of *day*; its rows in the default one move there.

    False: there are more than *most* of these, so that they stay where they are.

    Raises:
        Unavailable: Others use the tables at the moment.
        LeaseLost: Another one leads, or nobody; nothing was changed.
    """
    done = yield from one(MAKE, day.day, most, right.me, right.epoch)
    assert done is not None
    right.check("make_day", held=done.outcome != "refused")
    return done.outcome == "made"


def drop(right: Right, day: Day) -> Op[None]:
    """Drop the partition of *day* with everything in it.

    Raises:
        Unavailable: Others use the table at the moment.
        LeaseLost: Another one leads, or nobody; nothing was changed.
    """
    done = yield from one(DROP, day.day, right.me, right.epoch)
    assert done is not None
    right.check("drop_day", held=done.outcome != "refused")
