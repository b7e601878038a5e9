"""What a daemon is given: what to run, and what it shares with the rest of the app."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from strandline.clock import Clock, SystemClock
from strandline.daemon.agent_parts import AgentStatistics
from strandline.daemon.batch import Processor
from strandline.daemon.buildable import Buildable
from strandline.daemon.letters import OpenCount
from strandline.events.detections import HighWaterStatistics
from strandline.postgres.listener import Listener, Notifier
from strandline.postgres.pools import Pools
from strandline.projections.failure_policy import CONTINUOUS, ErrorPolicy
from strandline.projections.slice import Slice
from strandline.settings import Settings
from strandline.telemetry.signals import Signals


@dataclass(frozen=True, slots=True)
class DaemonStatistics:
    """How a daemon is doing.

    Attributes:
        detects: Whether it moves the mark, or follows another's.
        letters: How many dead letters were open lately, of all labels.
    """

    mark: int
    high_water: HighWaterStatistics
    agents: tuple[AgentStatistics, ...]
    detects: bool = False
    letters: tuple[OpenCount, ...] = ()


@dataclass(frozen=True, slots=True)
class Definition:
    """What this node's code can run.

    Attributes:
        label: Of a projection or subscription, e.g. ``orders:v2`` or ``notifier``.
        parts: Into how many shards it should be cut.
        make: Makes what processes one of them.
        start: Where it begins when it has never run: a position, or ``"present"``.
        policy: What is done about events that it cannot process.
        build: How it is built again beside itself; None: it cannot be.
    """

    label: str
    parts: int
    make: Callable[[Slice], Processor]
    start: str | int = 0
    policy: ErrorPolicy = CONTINUOUS
    build: Buildable | None = None


@dataclass(frozen=True, slots=True)
class Wiring:
    """What the daemon shares with the rest of the app."""

    pools: Pools
    settings: Settings
    signals: Signals
    notifier: Notifier
    listener: Listener
    node_name: str
    clock: Clock = field(default_factory=SystemClock)
