"""What a pulse is given and what it tells, as plain data that fits through a pipe."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from strandline.cluster.node import Identity

if TYPE_CHECKING:
    from collections.abc import Callable

    from strandline.cluster.board import Board
    from strandline.settings import Settings

Kind = Literal["process", "thread", "loop"]

SILENCE = 0.9  # of node_ttl; the rest is for the verdict and for the claim elsewhere


@dataclass(frozen=True, slots=True)
class PulseOptions:
    """How a pulse beats; see the settings of the same names.

    Attributes:
        prepared: Keep prepared statements and session settings; not behind a pooler.
        listens: Hear notices; not behind a pooler.
    """

    url: str
    schema: str
    interval: float
    deadline: float
    ttl: float
    leader_ttl: float
    margin: float
    stall_after: float
    stall_resign_after: float
    stall_kill_after: float
    prepared: bool = True
    listens: bool = True

    @classmethod
    def of(cls, settings: Settings, url: str) -> PulseOptions:
        """As set, for the database at *url*: past the pooler where there is a way."""
        pooled = settings.pooler == "transaction" and not settings.direct_url
        return cls(
            url=url,
            schema=settings.schema,
            interval=settings.pulse_interval,
            deadline=settings.pulse_deadline,
            ttl=SILENCE * settings.node_ttl,
            leader_ttl=settings.leader_ttl,
            margin=settings.leader_margin,
            stall_after=settings.stall_after,
            stall_resign_after=settings.stall_resign_after,
            stall_kill_after=settings.stall_kill_after,
            prepared=settings.prepared_statements and not pooled,
            listens=not pooled,
        )

    @property
    def channel(self) -> str:
        """The channel on which changes of the cluster are told."""
        return f"{self.schema}.cluster"


@dataclass(frozen=True, slots=True)
class Chest:
    """What a heart is put into.

    Attributes:
        kind: Of the host.
        board: Shared with the app.
        tell: Called with news, in the heart's thread.
        joined: The node's row was made by an earlier heart of the same node.
    """

    kind: Kind
    board: Board
    tell: Callable[[News], None]
    joined: bool = False


@dataclass(frozen=True, slots=True)
class News:
    """Something that the pulse tells the node.

    ``joined``, ``ticked`` (seconds), ``tick_failed`` (error, seconds), ``changed`` (version,
    notice), ``leading`` (epoch), ``not_leading`` (epoch, reason), ``resign_requested`` (reason),
    ``drain_requested`` (reason), ``evicted`` (reason), ``blocked`` (seconds, stack), ``unblocked``
    (seconds), ``election`` (outcome: won, lost, timed_out or failed; seconds; error),
    ``side_process_died`` (code, error), ``refused`` (error: the pulse cannot work at all).
    """

    kind: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Command:
    """Something that the node asks of its pulse.

    ``ready``, ``drain``, ``resign`` (reason, for_good), ``leave`` (reason, report).
    """

    kind: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PulseStatistics:
    """How a pulse is doing.

    Attributes:
        kind: What hosts it.
        state: Of the node, as the last good tick read it; "" before the first.
        ticks: Good ones.
        failures: Of ticks.
        last_tick_seconds: How long the last good one took.
        seconds_since_tick: Since the last good one began.
        loop_lag: Seconds by which the app's event loop is late now.
        epoch: Of the leadership that is trusted now; 0: none.
        attempts: To become leader; all outcomes.
        wins: Of them.
        losses: Of them: another was faster.
        timeouts: Of them: no answer in time, or none at all.
        election_seconds: The last attempt took.
        seconds_since_leader_seen: Since a tick saw a leader.
        restarts: Of the side process.
    """

    kind: str
    state: str
    ticks: int
    failures: int
    last_tick_seconds: float
    seconds_since_tick: float
    loop_lag: float
    epoch: int
    attempts: int
    wins: int
    losses: int
    timeouts: int
    election_seconds: float
    seconds_since_leader_seen: float
    restarts: int


def packed(identity: Identity, options: PulseOptions) -> dict[str, Any]:
    """Both as JSON can carry them."""
    return {
        "identity": {**asdict(identity), "id": str(identity.id)},
        "options": asdict(options),
    }


def unpacked(facts: dict[str, Any]) -> tuple[Identity, PulseOptions]:
    """What ``packed`` packed."""
    told = dict(facts["identity"])
    told["id"] = UUID(told["id"])
    told["labels"] = tuple(told["labels"])
    return Identity(**told), PulseOptions(**facts["options"])
