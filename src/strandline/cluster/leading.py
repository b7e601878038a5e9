"""What only the leader may do to the database: each one statement, fenced by (holder, epoch)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from strandline.cluster.lease import LEADER
from strandline.cluster.sight import SeenNode, Sight
from strandline.errors import DatabaseUnavailable, LeaseLost
from strandline.postgres.operations import Op, one
from strandline.postgres.statements import SqlFile


@dataclass(frozen=True, slots=True)
class Term:
    """Under which right the leader acts.

    Attributes:
        me: The leader's node.
        epoch: Of its lease.
        channel: Where changes are told.
    """

    me: UUID
    epoch: int
    channel: str

    def lost(self, what: str) -> LeaseLost:
        """The error for a statement that the fence refused."""
        return LeaseLost(LEADER, epoch=self.epoch, reason=f"{what}: another one leads, or nobody")


@dataclass(frozen=True, slots=True)
class Dead:
    """A node that was declared dead, and for how many seconds it had been silent."""

    id: UUID
    name: str
    silent: float


@dataclass(frozen=True, slots=True)
class _Look:
    leads: bool
    nodes: str
    work: str


@dataclass(frozen=True, slots=True)
class _Marked:
    held: bool
    dead: str


@dataclass(frozen=True, slots=True)
class _Published:
    held: bool
    changes: int


@dataclass(frozen=True, slots=True)
class _Logged:
    epoch: int


_sql = SqlFile(__name__)
LOOK = _sql.one("look", _Look)
MARK_DEAD = _sql.one("mark_dead", _Marked)
PUBLISH = _sql.one("publish", _Published)
LOG_BRAKE = _sql.one("log_brake", _Logged)


def look(term: Term, *, grace: float) -> Op[Sight]:
    """Everything that a plan is made of, in one snapshot; nodes gone within *grace* seconds too.

    Raises:
        LeaseLost: Another one leads, or nobody.
    """
    seen = yield from one(LOOK, term.me, term.epoch, grace)
    if seen is None:
        raise DatabaseUnavailable("the table cluster is empty: restore its only row")
    if not seen.leads:
        raise term.lost("look")
    return Sight.of(seen.nodes, seen.work)


def mark_dead(term: Term, nodes: Sequence[SeenNode]) -> Op[list[Dead]]:
    """Declare *nodes* dead that have not beaten since they were seen and are still due.

    Raises:
        LeaseLost: Another one leads, or nobody; nothing was written.
    """
    ids, beats = [node.id for node in nodes], [node.beats for node in nodes]
    marked = yield from one(MARK_DEAD, term.me, term.epoch, ids, beats, term.channel)
    if marked is None or not marked.held:
        raise term.lost("mark_dead")
    return [Dead(UUID(node), name, silent) for node, name, silent in json.loads(marked.dead)]


def publish(term: Term, changes: Mapping[str, UUID | None], detail: str) -> Op[int]:
    """Set the targets of work, by name, and log it with *detail*.

    Returns:
        How many were changed; fewer than asked for if rows are locked, or work was paused.

    Raises:
        LeaseLost: Another one leads, or nobody; nothing was written.
    """
    names, targets = list(changes), list(changes.values())
    done = yield from one(PUBLISH, term.me, term.epoch, names, targets, detail, term.channel)
    if done is None or not done.held:
        raise term.lost("publish")
    return done.changes


def log_brake(term: Term, names: Sequence[str], present: int) -> Op[None]:
    """Log that a verdict on nodes with these *names* is held back.

    Raises:
        LeaseLost: Another one leads, or nobody; nothing was written.
    """
    detail = json.dumps({"due": list(names), "present": present})
    if (yield from one(LOG_BRAKE, term.me, term.epoch, detail)) is None:
        raise term.lost("log_brake")
