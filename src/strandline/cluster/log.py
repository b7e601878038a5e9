"""The node log: what happened to nodes, leadership, plans and owners, for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from strandline.postgres.operations import Op, many, none, one
from strandline.postgres.statements import SqlFile

LONGEST_AGE = 5 * 86_400.0  # seconds an entry is kept
MOST_ROWS = 10_000  # entries kept; a storm of restarts writes many
AT_ONCE = 1_000  # entries deleted by one statement

KINDS = (
    *("node_joined", "node_active", "node_stalled", "node_draining", "node_left", "node_dead"),
    *("leader_acquired", "leader_lost", "leader_resigned", "leader_requested", "plan", "brake"),
    *("work_claimed", "work_released", "work_failed", "work_avoided", "work_pinned"),
    *("work_unpinned", "work_paused", "work_resumed", "work_forgotten", "ownership_lost"),
    *("zombie_ended", "shutdown"),
)
"""What an entry can be about."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the node log.

    Attributes:
        id: Grows; entries that are written at the same time may show up out of order.
        node: The process start it is about, or None.
        name: The node's name at that time.
        work: The work it is about, where it is only one.
        epoch: Of the lease or of the work.
        detail: Facts, as JSON.
    """

    id: int
    at: datetime
    kind: str
    node: UUID | None
    name: str
    work: str | None
    epoch: int | None
    detail: str


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many rows a prune has deleted."""

    rows: int


_sql = SqlFile(__name__)
WRITE = _sql.none("write_log")
READ = _sql.many("read_log", Entry)
PRUNE = _sql.one("prune_log", Pruned)


def write(
    kind: str,
    *,
    node: UUID | None = None,
    name: str = "",
    work: str | None = None,
    epoch: int | None = None,
    detail: Mapping[str, Any] | None = None,
) -> Op[None]:
    """Add an entry by itself. What changes something writes its entry in the same statement."""
    yield from none(WRITE, kind, node, name, work, epoch, json.dumps(detail or {}))


def read(
    limit: int = 50,
    *,
    node: UUID | None = None,
    name: str | None = None,
    work: str | None = None,
    kinds: Sequence[str] | None = None,
    after: int = 0,
) -> Op[list[Entry]]:
    """The newest entries, newest first.

    Args:
        limit: At most so many.
        node: Only those about this process start.
        name: Only those about nodes of this name, over restarts.
        work: Only those about this work, or that name it among others.
        kinds: Only of these kinds.
        after: Only those with a higher id, e.g. to follow the log.
    """
    wanted = None if kinds is None else list(kinds)
    return (yield from many(READ, limit, node, name, work, wanted, after))


def prune(*, age: float = LONGEST_AGE, rows: int = MOST_ROWS, most: int = AT_ONCE) -> Op[int]:
    """Delete what is older than *age* seconds or beyond the newest *rows*, at most *most* entries.

    Returns:
        How many were deleted; 0: there is nothing more to delete.
    """
    done = yield from one(PRUNE, age, rows, most)
    return done.rows if done else 0
