"""Schedules: declared by code, kept in the database, fired by whoever leads.

A row holds what to enqueue as it will stand in the table of jobs, so that a leader can fire it that
has never heard of its code. A moment is fired by one transaction that enqueues the job and moves the
row on from the moment that was read: of two leaders the second finds another moment there, and its
jobs are rolled back. So a moment is never fired twice, and what is due while nobody leads waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from strandline.errors import InvalidDefinition, InvalidInput, NotFound
from strandline.jobs.enqueue import Enqueued
from strandline.jobs.job import Call
from strandline.jobs.moments import MISSED, Missed, due, next_moment
from strandline.jobs.right import Right
from strandline.jobs.row import NewJob
from strandline.jobs.storable import clean
from strandline.jobs.templates import PLACEHOLDERS, Prepare, check_call, made, template
from strandline.postgres.operations import Op, many, one
from strandline.postgres.statements import SqlFile

LONGEST_NAME = 200  # bytes

Insert = Callable[[Sequence[NewJob]], Op[list[Enqueued]]]


@dataclass(frozen=True, slots=True)
class Schedule:
    """What code says: enqueue *call* at the moments of *spec*.

    Attributes:
        spec: Five fields of cron, six with seconds first, or a name such as ``@daily``.
        zone: Of the times in it, e.g. ``Europe/Berlin``.
        missed: About moments that came while nobody could fire them: ``skip`` those more than a
            minute ago, make up for them by ``once``, or by ``all``, one each.
    """

    name: str
    spec: str
    call: Call[Any]
    zone: str = "UTC"
    missed: Missed = "once"

    def check(self) -> None:
        """Refuse what can never work.

        Raises:
            InvalidDefinition: Its name, expression, zone, word for the missed, or arguments.
        """
        if not self.name or "\0" in self.name or len(self.name.encode()) > LONGEST_NAME:
            raise InvalidDefinition(f"the name of a schedule has 1 to {LONGEST_NAME} bytes, no NUL")
        if self.missed not in MISSED:
            raise InvalidDefinition(
                f"schedule {self.name!r}: missed is one of {', '.join(MISSED)}, not {self.missed!r}"
            )
        if not isinstance(self.call, Call):
            raise InvalidDefinition(
                f"schedule {self.name!r}: {self.call!r} is no call of a job: job.call(...) makes one"
            )
        if self.call.options.run_at is not None:
            raise InvalidDefinition(f"schedule {self.name!r}: a call with run_at runs only once")
        try:
            next_moment(self.spec, self.zone, PLACEHOLDERS[0])
        except InvalidInput as error:
            raise InvalidDefinition(f"schedule {self.name!r}: {error}") from error
        check_call(self.name, self.call)


@dataclass(frozen=True, slots=True)
class ScheduleRow:
    """A schedule as the database knows it.

    Attributes:
        job: What it enqueues, as JSON.
        next_at: When it is due.
        last_job: The job it enqueued last.
        fired: Jobs it has enqueued.
        set_by: ``code``, or ``operator``, which code does not change.
        error: Why it could not be fired the last time.
        now: The server's clock.
    """

    name: str
    spec: str
    zone: str
    missed: str
    job: str
    next_at: datetime
    last_at: datetime | None
    last_job: int | None
    fired: int
    paused_at: datetime | None
    set_by: str
    error: str | None
    created_at: datetime
    now: datetime

    def next_moments(self, count: int) -> list[datetime]:
        """The next *count* moments at which it is due, in UTC.

        Raises:
            InvalidInput: Its expression or zone cannot be read here.
        """
        found = [self.next_at] if count > 0 else []
        while len(found) < count:
            found.append(next_moment(self.spec, self.zone, found[-1]))
        return found


@dataclass(frozen=True, slots=True)
class DueSchedule:
    """A schedule that is due, at the server's *now*."""

    name: str
    spec: str
    zone: str
    missed: str
    job: str
    next_at: datetime
    now: datetime


@dataclass(frozen=True, slots=True)
class Named:
    """A schedule that was changed, and when it is due."""

    name: str
    next_at: datetime


@dataclass(frozen=True, slots=True)
class _Name:
    name: str


@dataclass(frozen=True, slots=True)
class _Now:
    now: datetime


@dataclass(frozen=True, slots=True)
class _Next:
    due_in: float


@dataclass(frozen=True, slots=True)
class _Advanced:
    held: bool
    is_moved: bool


_sql = SqlFile(__name__)
DECLARE = _sql.one("declare_schedule", Named)
SERVER_NOW = _sql.one("server_now", _Now)
UNDECLARED = _sql.many("undeclared", _Name)
DUE = _sql.many("due_schedules", DueSchedule)
NEXT = _sql.one("next_schedule", _Next)
ADVANCE = _sql.one("advance", _Advanced)
FAIL = _sql.one("fail_schedule", _Advanced)
LIST = _sql.many("list_schedules", ScheduleRow)
FIND = _sql.one("find_schedule", ScheduleRow)
PAUSE = _sql.one("pause_schedule", Named)
RESUME = _sql.one("resume_schedule", Named)
NOTE_RUN = _sql.one("note_run", Named)
FORGET = _sql.one("forget_schedule", Named)


class FiredAlready(Exception):  # noqa: N818 - rolls back
    """Somebody else has fired this moment, or has paused or changed the schedule."""


# ---- declaring


def declare(schedules: Sequence[Schedule], prepare: Prepare) -> Op[list[str]]:
    """Write down what code declares. A new one is due at its first moment from now on.

    Returns:
        Names that code declared once, and that are not among *schedules* now. They go on: another
        app, or an older version, may have them.

    Raises:
        InvalidDefinition: A call cannot be stored.
    """
    clock = yield from one(SERVER_NOW)
    assert clock is not None
    for one_of_them in schedules:
        text = template(one_of_them.name, one_of_them.call, prepare)
        begin = next_moment(one_of_them.spec, one_of_them.zone, clock.now)
        yield from one(
            DECLARE,
            *(
                one_of_them.name,
                one_of_them.spec,
                one_of_them.zone,
                one_of_them.missed,
                text,
                begin,
            ),
        )
    left = yield from many(UNDECLARED, [one_of_them.name for one_of_them in schedules])
    return [row.name for row in left]


# ---- firing


def due_schedules(*, without: Sequence[str] = (), most: int = 100) -> Op[list[DueSchedule]]:
    """Those that are due by the server's clock, the longest first."""
    return (yield from many(DUE, list(without), most))


def next_due_in() -> Op[float | None]:
    """Seconds until the next one is due that is not due yet; None: there is none."""
    found = yield from one(NEXT)
    return found.due_in if found else None


def plan(schedule: DueSchedule) -> tuple[list[datetime], datetime, int]:
    """The moments to fire, when it is due again, and how many moments are left out.

    Raises:
        InvalidInput: Its expression or zone cannot be read here.
    """
    found = due(
        schedule.spec,
        schedule.zone,
        cast("Missed", schedule.missed),
        was=schedule.next_at,
        now=schedule.now,
    )
    return found.moments, found.next_at, found.missed


def fire(
    right: Right,
    schedule: DueSchedule,
    moments: Sequence[datetime],
    next_at: datetime,
    jobs: Sequence[NewJob],
    insert: Insert,
) -> Op[list[int]]:
    """Enqueue *jobs*, one for each of *moments*, and move the schedule on, inside a transaction.

    Returns:
        Ids of those that are enqueued; fewer where a unique key was taken.

    Raises:
        FiredAlready: Somebody else was first: roll back. Likewise
        LeaseLost: Another one leads, or nobody.
    """
    answers = (yield from insert(jobs)) if jobs else []
    fired = [
        one_of_them.id for one_of_them in answers if one_of_them.is_new or one_of_them.replaced
    ]
    done = yield from one(
        ADVANCE,
        right.me,
        right.epoch,
        schedule.name,
        schedule.next_at,
        next_at,
        len(fired),
        moments[-1] if fired else None,
        fired[-1] if fired else None,
    )
    right.check("fire", held=done is not None and done.held)
    if done is None or not done.is_moved:
        raise FiredAlready(schedule.name)
    return fired


def fail(right: Right, schedule: DueSchedule, error: str) -> Op[None]:
    """Write down why *schedule* could not be fired.

    Raises:
        LeaseLost: Another one leads, or nobody; nothing was written.
    """
    done = yield from one(
        FAIL, right.me, right.epoch, schedule.name, schedule.next_at, clean(error)[:1000]
    )
    right.check("fail_schedule", held=done is not None and done.held)


# ---- what operators do


def list_schedules() -> Op[list[ScheduleRow]]:
    """All schedules, by name."""
    return (yield from many(LIST))


def find_schedule(name: str) -> Op[ScheduleRow]:
    """The schedule of that name.

    Raises:
        NotFound: There is none. So with all that follow.
    """
    found = yield from one(FIND, name)
    if found is None:
        raise NotFound(f"there is no schedule {name!r}")
    return found


def pause(name: str) -> Op[ScheduleRow]:
    """Fire it no more until it is resumed."""
    yield from one(PAUSE, name)
    return (yield from find_schedule(name))


def resume(name: str) -> Op[ScheduleRow]:
    """Fire it again from its next moment on; what was missed meanwhile is not made up for."""
    row = yield from find_schedule(name)
    if row.paused_at is not None:
        following = max(row.next_at, next_moment(row.spec, row.zone, row.now))
        if row.next_at > row.now:
            following = row.next_at
        yield from one(RESUME, name, row.next_at, following)
        row = yield from find_schedule(name)
    return row


def run_now(name: str, job_id: int, insert: Insert) -> Op[int]:
    """Enqueue its job now, out of turn and also if it is paused, inside a transaction.

    Returns:
        Its id, or that of the one that has its unique key.
    """
    row = yield from find_schedule(name)
    (answer,) = yield from insert([made(row.job, job_id, row.now)])
    yield from one(NOTE_RUN, name, answer.id, int(answer.is_new or answer.replaced))
    return answer.id


def forget(name: str) -> Op[None]:
    """Delete it. Code that declares it brings it back."""
    if (yield from one(FORGET, name)) is None:
        raise NotFound(f"there is no schedule {name!r}")
