"""Gives jobs of nodes that are gone to others: by the node's row, never by the job's age."""

from __future__ import annotations

from dataclasses import dataclass

from strandline.jobs.right import Right
from strandline.postgres import silence
from strandline.postgres.operations import Op, many, one
from strandline.postgres.silence import Zombie
from strandline.postgres.statements import SqlFile, quoted
from strandline.settings import Settings

AT_ONCE = 1_000  # jobs taken by one statement


@dataclass(frozen=True, slots=True)
class Rescued:
    """What was taken from nodes that are gone.

    Attributes:
        seen: Jobs of theirs that nobody had locked; as many as asked for: there may be more.
        freed: Of these, available again.
        dead: Of these, ids of those that are dead letters now.
        queues: Of those that are available again.
        nodes: The numbers of the nodes.
        to_cancel: Ids of those that were to be cancelled when their node went: see
            ``control.cancel_lost``. Until then they are found again.
        claims: Theirs.
    """

    held: bool
    seen: int
    freed: int
    dead: list[int]
    queues: list[str]
    nodes: list[int]
    to_cancel: list[int]
    claims: list[int]

    @property
    def took(self) -> bool:
        """Whether anything has changed, or is going to."""
        return bool(self.freed or self.dead or self.to_cancel)

    @property
    def stuck(self) -> int:
        """Jobs that are to be dead letters where there is one in their place: of their id or key."""
        return self.seen - self.freed - len(self.dead) - len(self.to_cancel)


@dataclass(frozen=True, slots=True)
class Session:
    """A session of a node that is gone; it may have ended by itself just now."""

    application: str
    is_ended: bool


@dataclass(frozen=True, slots=True)
class Drawn:
    """A number of the nodes' sequence."""

    number: int


_sql = SqlFile(__name__)
RESCUE = _sql.one("rescue", Rescued)
TABLES = (
    *("jobs", "dead_jobs", "job_history", "job_batches", "job_edges", "job_periods", "job_senders"),
    *("queues", "schedules"),
)
END_SESSIONS = _sql.many("end_sessions", Session)
DRAW_NUMBER = _sql.one("draw_number", Drawn)


def rescue(right: Right, *, own: int | None = None, most: int = AT_ONCE) -> Op[Rescued]:
    """Take running jobs from nodes that are gone.

    Args:
        right: Under which it is done.
        own: The number of a process that works alone: whoever had an earlier one is gone then. Of two
            that think so the later one is right, and they do not take each other's jobs for ever.
        most: Jobs.

    Raises:
        LeaseLost: Another one leads, or nobody; nothing was written.
    """
    done = yield from one(RESCUE, right.me, right.epoch, own, most)
    right.check("rescue", held=done is not None and done.held)
    assert done is not None
    return done


def end_sessions(*, own: int | None = None) -> Op[list[Session]]:
    """End what nodes that are gone have begun with jobs and not ended; *own* as above."""
    return (yield from many(END_SESSIONS, own))


def end_silent(settings: Settings) -> Op[list[Zombie]]:
    """End sessions, of whatever node, that hold rows of jobs within a statement and were silent.

    For as long as one between two statements may be: the server ends those by itself.
    """
    tables = [f"{quoted(settings.schema)}.{name}" for name in TABLES]
    return (
        yield from silence.end_silent(
            tables, idle=settings.idle_transaction_timeout, applications="strandline %"
        )
    )


def draw_number() -> Op[int]:
    """A number for a process that is no node of the cluster."""
    drawn = yield from one(DRAW_NUMBER)
    assert drawn is not None
    return drawn.number
