"""Deletes what nobody needs any more: old history, keys whose time is over, links of nobody."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from strandline.jobs.right import Right
from strandline.postgres.operations import Op, one
from strandline.postgres.statements import SqlFile, Statement

AT_ONCE = 5_000  # rows looked at by one statement
SENDER_AGE = 3_600.0  # seconds; what was sent before that is not sent again


@dataclass(frozen=True, slots=True)
class Pruned:
    """What one portion did.

    Attributes:
        looked: Rows it looked at; as many as asked for: there may be more.
        rows: Of these, deleted.
        last: Up to which id it looked.
    """

    held: bool
    looked: int
    rows: int
    last: int


_sql = SqlFile(__name__)
HISTORY = _sql.one("prune_history", Pruned)
PERIODS = _sql.one("prune_periods", Pruned)
SENDERS = _sql.one("prune_senders", Pruned)
EDGES = _sql.one("prune_edges", Pruned)
BATCHES = _sql.one("prune_batches", Pruned)


def prune_history(right: Right, *, days: int, most: int = AT_ONCE) -> Op[Pruned]:
    """Delete history older than *days* that stands in no day's partition.

    Raises:
        LeaseLost: Another one leads, or nobody; nothing was deleted. So with all of these.
    """
    return (yield from _pruned(HISTORY, right, days, most))


def prune_periods(right: Right, *, most: int = AT_ONCE) -> Op[Pruned]:
    """Delete unique keys whose time is over."""
    return (yield from _pruned(PERIODS, right, most))


def prune_senders(right: Right, *, age: float = SENDER_AGE, most: int = AT_ONCE) -> Op[Pruned]:
    """Delete senders of jobs that have sent nothing for *age* seconds."""
    return (yield from _pruned(SENDERS, right, age, most))


def prune_edges(right: Right, *, beyond: int, most: int = AT_ONCE) -> Op[Pruned]:
    """Delete edges to children that are gone; looks at those of children above *beyond*."""
    return (yield from _pruned(EDGES, right, beyond, most))


def prune_batches(right: Right, *, days: int, beyond: int, most: int = AT_ONCE) -> Op[Pruned]:
    """Delete batches that ended more than *days* ago; looks at those above *beyond*."""
    return (yield from _pruned(BATCHES, right, days, beyond, most))


def _pruned(statement: Statement[Pruned], right: Right, *arguments: Any) -> Op[Pruned]:
    done = yield from one(statement, right.me, right.epoch, *arguments)
    right.check(statement.name, held=done is not None and done.held)
    assert done is not None
    return done
