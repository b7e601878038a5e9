"""What an operator may see of work and do to it: pin, pause, forget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from strandline.postgres.operations import Op, many, one
from strandline.postgres.statements import SqlFile


@dataclass(frozen=True, slots=True)
class WorkRow:
    """Work, where it should run, and where it does.

    Attributes:
        needs: Labels that a node must have.
        together: All work of one such key runs on one node.
        apart: Work of one such key is spread over many nodes.
        pinned_to: The only name of nodes that it may run on, or None.
        rests_for: Who has paused it for a while, if no operator has.
        reason: Why it is paused.
        target: Name of the node that should run it, or None.
        owner: The node that runs it, or None.
        owner_name: The name of that node, or None.
        owner_state: Its state; ``dead`` also if its row is gone.
        epoch: Of the last claim.
        owned: Seconds since that claim, while it has an owner.
        failures: How often it failed in a row.
        avoid: Names of nodes that it avoids for now, since it failed there.
        unplaced: Why the leader found no node for it, or None.
    """

    name: str
    needs: list[str]
    together: str
    apart: str
    weight: float
    pinned_to: str | None
    paused_at: datetime | None
    rests_for: UUID | None
    reason: str
    target: str | None
    owner: UUID | None
    owner_name: str | None
    owner_state: str | None
    epoch: int
    owned: float | None
    failures: int
    avoid: str
    unplaced: str | None


@dataclass(frozen=True, slots=True)
class WorkName:
    """The name of work that was changed."""

    name: str


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Whether work was forgotten; *owner_name* is who runs it, if not."""

    is_forgotten: bool
    owner_name: str


_sql = SqlFile(__name__)
LIST = _sql.many("list_work", WorkRow)
PIN = _sql.one("pin_work", WorkName)
PAUSE = _sql.many("pause_work", WorkName)
RESUME = _sql.many("resume_work", WorkName)
REST = _sql.many("rest_work", WorkName)
END_REST = _sql.many("end_rest", WorkName)
FORGET = _sql.one("forget_work", Forgotten)


def list_work() -> Op[list[WorkRow]]:
    """All work, by name."""
    return (yield from many(LIST))


def pin(work: str, node_name: str, *, channel: str) -> Op[bool]:
    """Let *work* run only on nodes named *node_name*; while there is none, it does not run.

    Returns:
        Whether there is such work.
    """
    return (yield from one(PIN, work, node_name, channel)) is not None


def unpin(work: str, *, channel: str) -> Op[bool]:
    """Let *work* run on any node again; whether there is such work."""
    return (yield from one(PIN, work, None, channel)) is not None


def pause(names: Sequence[str], reason: str, *, channel: str) -> Op[list[str]]:
    """Take *names* from whoever runs them, until they are resumed; those that were found."""
    rows = yield from many(PAUSE, list(names), reason, channel)
    return [row.name for row in rows]


def resume(names: Sequence[str], *, channel: str) -> Op[list[str]]:
    """Let *names* run again; those that were paused."""
    rows = yield from many(RESUME, list(names), channel)
    return [row.name for row in rows]


def rest(names: Sequence[str], token: UUID, seconds: float, *, channel: str) -> Op[list[str]]:
    """Pause *names* for *seconds* from now, again and again if need be; those that rest so."""
    rows = yield from many(REST, list(names), token, seconds, channel)
    return [row.name for row in rows]


def end_rest(token: UUID, *, channel: str) -> Op[list[str]]:
    """Let what rests under *token* go on; what that is."""
    rows = yield from many(END_REST, token, channel)
    return [row.name for row in rows]


def forget(work: str, *, channel: str) -> Op[Forgotten | None]:
    """Delete *work*, if no node that is there owns it. None: there is no such work.

    A node whose code offers it declares it again when it starts.
    """
    return (yield from one(FORGET, work, channel))
