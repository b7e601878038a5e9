"""How far builds are, for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from strandline.daemon.rebuilds import BuildProgress
from strandline.daemon.scope import Scope


@dataclass(frozen=True, slots=True)
class BuildShard:
    """A shard of a build.

    Attributes:
        state: What its agent says: ``running``, ``paused``, ``stopped``; empty before it has begun.
        reason: Why it pauses.
        rate: Events a second, lately.
    """

    name: str
    position: int
    node: str
    state: str
    reason: str
    rate: float


@dataclass(frozen=True, slots=True)
class RebuildProgress:
    """How far a build is.

    Attributes:
        purpose: ``rebuild``, ``verify`` or ``repair``.
        scope: Of which part of the projection, in words.
        state: ``queued``, ``building``, ``sealed``, ``done``, ``cancelled``, ``failed``.
        reason: Why it does not get on, or has ended.
        position: How far its shards are, on the average.
        target: The mark when it began.
        rate: Positions a second since it began.
        seconds_left: Until the target at that rate; None before that can be told.
        known_by: Nodes of the cluster whose code has the projection.
    """

    number: int
    label: str
    purpose: str
    scope: str
    state: str
    reason: str
    position: int
    target: int
    rate: float
    seconds_left: float | None
    known_by: int
    requested_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    shards: tuple[BuildShard, ...]


def told(rows: Sequence[BuildProgress]) -> list[RebuildProgress]:
    """The builds that *rows* are of, the oldest first."""
    builds: dict[int, list[BuildProgress]] = {}
    for row in rows:
        builds.setdefault(row.number, []).append(row)
    return [_told(one) for one in builds.values()]


def _told(rows: Sequence[BuildProgress]) -> RebuildProgress:
    one = rows[0]
    shards = tuple(
        BuildShard(
            row.shard,
            row.position or 0,
            row.node or "",
            row.shard_state or "",
            row.shard_reason or "",
            row.rate,
        )
        for row in rows
        if row.shard is not None
    )
    position = sum(shard.position for shard in shards) // len(shards) if shards else 0
    if one.state == "done":
        position = one.target
    until = one.ended_at or datetime.now(UTC)
    seconds = max(0.0, (until - one.started_at).total_seconds()) if one.started_at else 0.0
    rate = position / seconds if seconds else 0.0
    left = max(0, one.target - position) / rate if rate and one.ended_at is None else None
    return RebuildProgress(
        number=one.number,
        label=one.label,
        purpose=one.purpose,
        scope=str(Scope.parsed(one.scope)),
        state=one.state,
        reason=one.reason,
        position=position,
        target=one.target,
        rate=rate,
        seconds_left=left,
        known_by=one.known_by,
        requested_at=one.requested_at,
        started_at=one.started_at,
        ended_at=one.ended_at,
        shards=shards,
    )
