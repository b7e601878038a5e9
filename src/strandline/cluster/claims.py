"""The right to run work: offered, looked at, claimed, released, given up because it fails here.

Every operation is one statement, which locks the rows that it decides on; see ``reconciler``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from strandline.cluster.node import Identity
from strandline.cluster.work import Grant, Work
from strandline.postgres.operations import Op, many, none, one
from strandline.postgres.statements import SqlFile


@dataclass(frozen=True, slots=True)
class WorkRow:
    """A piece of work as the plan has it for one node."""

    work: str
    epoch: int
    owned: bool
    wanted: bool


@dataclass(frozen=True, slots=True)
class WorkOwner:
    """Who has a piece of work."""

    owner: UUID | None
    node: str
    epoch: int


@dataclass(frozen=True, slots=True)
class _Granted:
    work: str
    epoch: int


@dataclass(frozen=True, slots=True)
class _Offered:
    changed: int


_sql = SqlFile(__name__)
OFFER = _sql.one("offer_work", _Offered)
LOOK = _sql.many("look_at_work", WorkRow)
CLAIM = _sql.many("claim_work", _Granted)
RELEASE = _sql.many("release_work", _Granted)
GIVE_BACK = _sql.many("give_work_back", _Granted)
FAILED = _sql.none("work_failed")
AVOID = _sql.one("avoid_work", _Granted)
OWNER = _sql.one("owner_of_work", WorkOwner)
LOG_LOST = _sql.none("log_lost_work")


def offer(works: Sequence[Work], channel: str) -> Op[int]:
    """Make *works* known to the cluster; how much of that was new or another than before."""
    body = [
        {
            "name": one.name,
            "needs": sorted(one.needs),
            "together": one.together,
            "apart": one.apart,
            "weight": one.weight,
        }
        for one in works
    ]
    found = yield from one(OFFER, json.dumps(body), channel)
    return found.changed if found else 0


def look(me: Identity) -> Op[list[WorkRow]]:
    """Everything that *me* has or should have."""
    return (yield from many(LOOK, me.id))


def claim(me: Identity, *, revoke: float, most: int, channel: str) -> Op[list[Grant]]:
    """Take what is meant for *me* and is nobody's any more, each under a new epoch.

    Args:
        me: Who claims. It must be active and have beaten in time, or gets nothing.
        revoke: Seconds after which work is taken from an owner who should have given it up.
        most: As many pieces at once.
        channel: Who listens there is told.
    """
    rows = yield from many(CLAIM, me.id, me.name, revoke, most, channel)
    return [Grant(row.work, me.id, row.epoch) for row in rows]


def release(me: Identity, epochs: Mapping[str, int], *, channel: str) -> Op[list[str]]:
    """Give up work under the epochs by which *me* has it; what was still its own."""
    names = sorted(epochs)
    numbers = [epochs[name] for name in names]
    rows = yield from many(RELEASE, me.id, me.name, names, numbers, channel)
    return [row.work for row in rows]


def give_back(me: Identity, *, channel: str) -> Op[list[str]]:
    """Give up whatever is still *me*'s; what that was."""
    rows = yield from many(GIVE_BACK, me.id, me.name, channel)
    return [row.work for row in rows]


def failed(me: Identity, grant: Grant, detail: Mapping[str, Any]) -> Op[None]:
    """Write down that it failed here and will be started again."""
    yield from none(FAILED, me.id, me.name, grant.work, grant.epoch, json.dumps(detail))


def avoid(
    me: Identity, grant: Grant, detail: Mapping[str, Any], *, seconds: float, channel: str
) -> Op[bool]:
    """Give it up and not get it again for *seconds*, if another node can run it; whether so."""
    facts = json.dumps(detail)
    row = yield from one(AVOID, me.id, me.name, grant.work, grant.epoch, seconds, facts, channel)
    return row is not None


def owner_of(work: str) -> Op[WorkOwner | None]:
    """Who has *work* now; None when there is no such work any more."""
    return (yield from one(OWNER, work))


def log_lost(me: Identity, grant: Grant, detail: Mapping[str, Any]) -> Op[None]:
    """Write down that *grant* ended without *me* having given it up."""
    yield from none(LOG_LOST, me.id, me.name, grant.work, grant.epoch, json.dumps(detail))
