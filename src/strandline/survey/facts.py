"""What a survey finds. Ages and durations are in seconds by the database's clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from strandline.cluster.work_control import WorkRow
from strandline.events.gaps import Holder
from strandline.survey.extras import (
    BuildFacts,
    LetterFacts,
    QueueFacts,
    ServerFacts,
    TransactionFacts,
)
from strandline.telemetry.catalogue.survey_metrics import NODE_STATES, SHARD_STATES, WORK_STATES

__all__ = [
    "DETECTOR_STATES",
    "DOWN",
    "NODE_STATES",
    "SHARD_STATES",
    "WORK_STATES",
    "BuildFacts",
    "LeaderFacts",
    "LetterFacts",
    "MarkFacts",
    "NodeFacts",
    "QueueFacts",
    "ServerFacts",
    "ShardFacts",
    "Survey",
    "TransactionFacts",
    "WorkFacts",
    "state_of",
]

DOWN = ("unassigned", "unplaced", "silent", "never_started", "stopped", "orphaned")
"""States in which nobody brings a shard up to date, and nobody has asked for that."""

DETECTOR_STATES = ("alive", "silent", "missing")


@dataclass(frozen=True, slots=True)
class MarkFacts:
    """The high-water mark, and what lies beyond it.

    Attributes:
        position: The mark: readers see nothing beyond it.
        highest: The highest visible position.
        settled_at: When the mark moved last.
        age: How long it has stood still while there was something beyond it; 0 when level.
        is_stale: Whether that is longer than ``stale_after``.
        holders: Transactions that may hold it, the oldest first; empty when level.
        rolled_back_numbers: Numbers in gaps that were proved empty, of the newest 10,000 gaps.
        forced_gaps: Gaps skipped without proof, ever.
        forced_numbers: Numbers in them.
        late_events: Events that turned up in them afterwards.
        detector: Name of the node that has the duty; empty if nobody, or in mode ``solo``.
        detector_state: ``alive``; ``missing``: nobody has the duty; ``silent``: its node does not
            beat, or the mark stands still though no transaction holds it.
    """

    position: int
    highest: int
    settled_at: datetime
    age: float
    is_stale: bool
    holders: tuple[Holder, ...]
    rolled_back_numbers: int
    forced_gaps: int
    forced_numbers: int
    late_events: int
    detector: str
    detector_state: str

    @property
    def difference(self) -> int:
        """Positions between the mark and the highest visible one."""
        return max(0, self.highest - self.position)


@dataclass(frozen=True, slots=True)
class ShardFacts:
    """A shard of a projection, a subscription or a build.

    Attributes:
        name: E.g. ``orders:v2:3/8``.
        projection: Its projection or subscription with the version: ``orders:v2``.
        kind: ``projection``, ``subscription`` or ``build``.
        state: One of ``SHARD_STATES``.
        position: Its checkpoint; None if it never ran.
        lag_events: Positions from there to the highest *visible* one, not to the mark.
        lag_seconds: Since the first event beyond the checkpoint was recorded.
        node: Name of the node that runs it, or did last; empty if none has.
        owner: The node that owns it.
        epoch: Of the last claim; None without one.
        rate: Events a second, lately.
        reason: Why it does not run; empty if it does.
        category: Of the failure of a paused one, such as ``apply``.
        phase: What failed: ``start``, ``fetch``, ``apply``, ``commit``, ``stop``.
        attempts: Tries that failed before the pause.
        pauses: Pauses since the last batch that was committed.
        failure: The failure's facts: class, message, cause, handler, position, stream, type ...
        since: How long it has been in this state, as far as that is known.
        told_at: When its agent told its state last.
        next_at: When a paused one is tried again.
        paused_by: ``operator``, ``rest`` (it ends by itself), ``failure``; empty if it is not paused.
        seal: Where it stops, since it is about to be cut otherwise or swapped.
        parts: Into how many shards its projection is cut.
        wanted: Into how many it is to be cut.
        avoid: Names of nodes that it avoids for now, since it failed there.
    """

    name: str
    projection: str
    kind: str
    state: str
    position: int | None
    lag_events: int
    lag_seconds: float
    node: str = ""
    owner: UUID | None = None
    epoch: int | None = None
    rate: float = 0.0
    reason: str = ""
    category: str = ""
    phase: str = ""
    attempts: int = 0
    pauses: int = 0
    failure: dict[str, Any] | None = None
    since: float | None = None
    told_at: datetime | None = None
    next_at: datetime | None = None
    paused_by: str = ""
    seal: int | None = None
    parts: int = 1
    wanted: int = 1
    avoid: str = ""

    @property
    def is_down(self) -> bool:
        """Whether nobody brings it up to date, and nobody has asked for that."""
        return self.state in DOWN


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """A node of the cluster. In mode ``solo`` there is none.

    Attributes:
        number: Short for people; grows with every start.
        state: One of ``NODE_STATES``; ``left`` or ``dead`` for one that is gone.
        beat_age: Since its last beat.
        expires_in: Until it counts as dead without a beat; negative afterwards.
        loop_lag: How late its event loop was at its last beat.
        work: How much work it owns, the detector included.
        shards: Of these, shards.
        labels: What its code has: projections and subscriptions, and words of its operator.
        drain_reason: Why it was asked to drain; None if nobody has.
        left_reason: Why it is gone; empty if it is there.
        report: What its stop told: result, steps, ...; None if it told nothing.
        gone_for: Since it left, or was declared dead; None if it is there.
    """

    id: UUID
    number: int
    name: str
    state: str
    mode: str
    beat_age: float
    expires_in: float
    loop_lag: float
    work: int
    shards: int
    is_leader: bool
    labels: tuple[str, ...]
    capacity: float
    priority: int
    version: str
    host: str
    pid: int
    pulse: str
    age: float
    drain_reason: str | None
    left_reason: str
    report: dict[str, Any] | None
    gone_for: float | None = None

    @property
    def is_here(self) -> bool:
        """Whether it has neither left nor died."""
        return self.state not in ("left", "dead")

    @property
    def result(self) -> str:
        """How it ended: ``clean``, ``degraded``, ``forced``, ``dead``; empty if it is there."""
        if self.is_here:
            return ""
        return "dead" if self.state == "dead" else str((self.report or {}).get("result", "clean"))


@dataclass(frozen=True, slots=True)
class LeaderFacts:
    """The leader's lease, while it is held.

    Attributes:
        name: Of the node; empty if its row is gone.
        since: How long the term has lasted.
        expires_in: Until the lease ends unless it is renewed.
        renewed: Since it was renewed last.
        resign_reason: Why it was asked to resign; None if nobody has.
    """

    id: UUID
    name: str
    epoch: int
    since: float
    expires_in: float
    renewed: float
    resign_reason: str | None = None


@dataclass(frozen=True, slots=True)
class WorkFacts:
    """All work of the cluster, as it is and as it should be; empty in mode ``solo``."""

    rows: tuple[WorkRow, ...] = ()

    @property
    def unplaced(self) -> tuple[WorkRow, ...]:
        """What the leader found no node for."""
        return tuple(one for one in self.rows if state_of(one) == "unplaced")

    @property
    def counts(self) -> dict[str, int]:
        """How much is in which of ``WORK_STATES``."""
        states = [state_of(one) for one in self.rows]
        return {state: states.count(state) for state in WORK_STATES}


def state_of(row: WorkRow) -> str:
    """The state of *row*, one of ``WORK_STATES``."""
    is_owned = row.owner is not None and row.owner_state not in ("left", "dead")
    if row.paused_at is not None:
        return "moving" if is_owned else "held"
    if is_owned:
        return "running" if row.target == row.owner_name else "moving"
    return "unplaced" if row.unplaced is not None else "waiting"


@dataclass(frozen=True, slots=True)
class Survey:
    """One picture of the database.

    Attributes:
        taken_at: By the database's clock.
        seconds: What it took.
        mode: ``cluster`` if there are nodes or work of a cluster, else ``solo``.
        shards: By projection and number.
        nodes: Those that are there, by number; then the last ones that are gone, newest first.
        leader: None if nobody leads, also in mode ``solo``.
        leaderless: Since the last term ended; None while somebody leads, and in mode ``solo``.
        leader_changes: Terms that began within the last hour.
        server: None if it could not be read.
        missing: Parts that could not be read in time: letters, queues, builds, server.
    """

    taken_at: datetime
    seconds: float
    mode: str
    mark: MarkFacts
    shards: tuple[ShardFacts, ...]
    nodes: tuple[NodeFacts, ...]
    leader: LeaderFacts | None
    leaderless: float | None
    leader_changes: int
    work: WorkFacts
    letters: tuple[LetterFacts, ...] = ()
    queues: tuple[QueueFacts, ...] = ()
    builds: tuple[BuildFacts, ...] = ()
    server: ServerFacts | None = None
    missing: tuple[str, ...] = field(default=())

    @property
    def nodes_here(self) -> tuple[NodeFacts, ...]:
        """Nodes that have neither left nor died."""
        return tuple(one for one in self.nodes if one.is_here)

    @property
    def candidates(self) -> tuple[NodeFacts, ...]:
        """Nodes that may lead, if they are asked to."""
        return tuple(
            one
            for one in self.nodes
            if one.state == "active" and one.mode == "cluster" and one.priority >= 0
        )
