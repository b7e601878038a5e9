"""Parts of a survey that may be missing: letters, queues, builds, the server."""

from __future__ import annotations

from dataclasses import dataclass

from strandline.jobs.queues import QueueState
from strandline.postgres.diagnosis import Room


@dataclass(frozen=True, slots=True)
class LetterFacts:
    """Open dead letters of a projection or subscription: exact up to ``survey.COUNTED`` events.

    Attributes:
        status: ``parked`` or ``skipped``.
        failed: Of these, those that failed themselves; the others wait behind one.
        oldest: Since the oldest was written.
        newest: Since the newest was.
        error: Class and message of the newest that failed itself.
        fingerprint: Of that one: failures that look alike.
    """

    projection: str
    status: str
    count: int
    failed: int
    oldest: float
    newest: float
    error: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class QueueFacts:
    """A queue of jobs. Numbers are exact up to ``survey.COUNTED``.

    Attributes:
        state: Its settings, what is available, scheduled and running, and how long the next job has
            waited.
        dead: Dead jobs.
        oldest_dead: Since the oldest of them died; None without any.
    """

    state: QueueState
    dead: int = 0
    oldest_dead: float | None = None

    @property
    def name(self) -> str:
        """Of the queue."""
        return self.state.name


@dataclass(frozen=True, slots=True)
class BuildFacts:
    """A build that has not ended.

    Attributes:
        projection: What is built.
        purpose: ``rebuild``, ``verify``, ``repair``.
        state: ``queued``, ``building``, ``sealed``.
        position: How far its shards are, on the average.
        target: The mark when it began.
        done: The share of it that is done, 0 to 1.
        shards: How many shards it has; 0 while it is queued.
        paused: How many of these rest, since they failed.
        known_by: Nodes whose code has the projection.
        age: Since it was asked for.
        idle: Since one of its shards told anything; None while it is queued.
    """

    number: int
    projection: str
    purpose: str
    state: str
    reason: str
    position: int
    target: int
    done: float
    rate: float
    shards: int
    paused: int
    known_by: int
    age: float
    idle: float | None


@dataclass(frozen=True, slots=True)
class TransactionFacts:
    """An open transaction of this database. None where the role may not see it.

    Attributes:
        pid: Of its backend; None for a prepared one.
        state: As in ``pg_stat_activity``, or ``prepared``.
        age: Since it began, or was prepared.
        idle: Since its state changed: for ``idle in transaction``, how long nobody has used it.
        holds_mark: Whether it may hold up the high-water mark.
        is_ours: Whether it is of an app or a command of strandline.
    """

    pid: int | None
    application: str
    user: str
    state: str
    age: float
    idle: float
    query: str
    client: str
    prepared: str
    holds_mark: bool
    is_ours: bool

    @property
    def is_idle(self) -> bool:
        """Whether its client does nothing."""
        return self.state.startswith("idle in transaction")


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """The server and its connections.

    Attributes:
        room: How many connections there may be, and are.
        transactions: The oldest open transactions of this database, at most ten; the survey's own
            and the server's own ones are left out.
        horizon: Age of the oldest snapshot that keeps dead rows from being removed.
        jobs_ended: Jobs that were deleted from the table of live ones, ever: two surveys tell a rate.
    """

    version: str
    room: Room
    is_standby: bool
    horizon: float
    jobs_ended: int
    transactions: tuple[TransactionFacts, ...] = ()

    @property
    def connections(self) -> int:
        """Clients connected to the server."""
        return self.room.connections

    @property
    def ours(self) -> int:
        """Of these, apps of strandline on this database."""
        return self.room.ours

    @property
    def apps(self) -> int:
        """Apps open on this database, in any process."""
        return self.room.apps

    @property
    def most(self) -> int:
        """Connections that roles without privileges may have on the server, whoever they are."""
        return self.room.max_connections - self.room.reserved

    @property
    def oldest_transaction(self) -> TransactionFacts | None:
        """The oldest one, whatever it does."""
        return self.transactions[0] if self.transactions else None

    @property
    def oldest_idle(self) -> TransactionFacts | None:
        """The one whose client has done nothing for the longest; not one just between two statements."""
        idle = (one for one in self.transactions if one.is_idle)
        return max(idle, key=lambda one: one.idle, default=None)
