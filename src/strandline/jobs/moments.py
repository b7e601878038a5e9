"""When a schedule is due: cron expressions in a time zone, and what is done about missed moments.

Over changes of the clock it goes as in Debian's cron: what has a fixed time of day runs once, right
after the hour that is left out, and not again in the hour that comes twice; what has a ``*`` at the
beginning of its minutes or hours runs by the time that really passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Literal, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from strandline.errors import InvalidInput

Missed = Literal["skip", "once", "all"]
MISSED = get_args(Missed)
LATE = timedelta(seconds=60)  # what is later than that was missed
MOST = 1_000  # moments fired in one go
NAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


@dataclass(frozen=True, slots=True)
class Due:
    """What is to be fired now, and when it is due again.

    Attributes:
        moments: To be fired, the earliest first.
        next_at: The first one after these that is not over, or not fired yet.
        missed: Moments that were seen to be over, and are not fired; at most ``MOST`` are counted.
    """

    moments: list[datetime]
    next_at: datetime
    missed: int = 0


def next_moment(spec: str, zone: str, after: datetime) -> datetime:
    """The first moment of *spec* after *after*, in UTC.

    Raises:
        InvalidInput: The expression or the zone cannot be read, or it never happens.
    """
    found = after
    ticks = _ticks(spec, after.astimezone(_zone(zone)))
    try:
        while found <= after:  # in the hour that comes twice it may begin with the first one
            found = next(ticks).astimezone(UTC)
    except (StopIteration, OverflowError):
        raise InvalidInput(f"cron expression {spec!r} never happens") from None
    return found


def due(spec: str, zone: str, missed: Missed, *, was: datetime, now: datetime) -> Due:
    """What to do at *now* about a schedule that is due since *was*.

    Raises:
        InvalidInput: See ``next_moment``.
    """
    if missed == "all":
        found = _until(spec, zone, was, now)
        return Due(found, next_moment(spec, zone, found[-1]))
    if missed == "once":
        last = _last(spec, zone, was, now)
        between = 0 if last == was else len(_until(spec, zone, was, last)) - 1
        return Due([last], next_moment(spec, zone, last), between)
    horizon = now - LATE
    if was >= horizon:
        found, missing = _until(spec, zone, was, now), 0
    else:
        missing = len(_until(spec, zone, was, horizon))
        first = next_moment(spec, zone, horizon)
        found = _until(spec, zone, first, now) if first <= now else []
    return Due(found, next_moment(spec, zone, found[-1] if found else now), missing)


def _until(spec: str, zone: str, first: datetime, last: datetime) -> list[datetime]:
    """The moments from *first*, which is one, to *last*; at most ``MOST``."""
    found = [first]
    ticks = _ticks(spec, first.astimezone(_zone(zone)))
    for moment in ticks:
        following = moment.astimezone(UTC)
        if following > last or len(found) >= MOST:
            break
        if following > found[-1]:  # in the hour that comes twice it may begin with the first one
            found.append(following)
    return found


def _last(spec: str, zone: str, was: datetime, now: datetime) -> datetime:
    """The last moment up to *now*; *was* is one."""
    just_after = now + timedelta(microseconds=1)
    backwards = _ticks(spec, just_after.astimezone(_zone(zone)), reverse=True)
    try:
        found = next(backwards).astimezone(UTC)
    except (StopIteration, OverflowError):
        return was
    found = max(found, was) if found <= now else was
    for _ in range(MOST):  # backwards it may stop short of the hour that comes twice
        following = next_moment(spec, zone, found)
        if following > now:
            break
        found = following
    return found


def _ticks(spec: str, start: datetime, *, reverse: bool = False) -> CronSim:
    try:
        return CronSim(NAMES.get(spec.strip().lower(), spec), start, reverse=reverse)
    except CronSimError as error:
        raise InvalidInput(f"cron expression {spec!r} cannot be read: {error}") from error


def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InvalidInput(f"time zone {name!r} is not known here: {error}") from error
