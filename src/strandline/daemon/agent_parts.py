"""What agents share with each other, and what they tell of themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from strandline.backoff import Backoff
from strandline.clock import Clock, SystemClock
from strandline.daemon.feed import Feed
from strandline.postgres.pools import Pool
from strandline.telemetry.signals import Signals


@dataclass(frozen=True, slots=True)
class AgentStatistics:
    """How an agent is doing.

    Attributes:
        state: ``claiming``, ``running``, ``paused`` or ``stopped``.
        reason: The failure that it has not got over, or what ended it.
        attempts: Tries that failed since the last pause.
        pauses: Pauses since the last batch that was committed.
        next_at: When it tries again, if it pauses.
        failure: The facts of the failure as JSON: position, stream, type, handler and more.
    """

    shard: str
    state: str
    position: int
    epoch: int
    events: int
    batches: int
    failures: int
    reason: str
    category: str = ""
    phase: str = ""
    attempts: int = 0
    pauses: int = 0
    next_at: datetime | None = None
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What agents of one node share."""

    feed: Feed
    pool: Pool
    control: Pool
    signals: Signals
    backoff: Backoff
    node: str
    on_progress: Callable[[], None]
    clock: Clock = field(default_factory=SystemClock)
