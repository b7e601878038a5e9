"""Moments of schedules: over changes of the clock, and after a time in which nobody looked."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from strandline.errors import InvalidInput
from strandline.jobs.moments import MOST, due, next_moment

BERLIN = "Europe/Berlin"


def moments(spec: str, zone: str, begin: datetime, count: int) -> list[str]:
    """The next *count* moments, as local time with its offset."""
    found, last = [], begin
    for _ in range(count):
        last = next_moment(spec, zone, last)
        found.append(last.astimezone(ZoneInfo(zone)).strftime("%d %H:%M%z"))
    return found


def berlin(*when: int, fold: int = 0) -> datetime:
    year, month, day, hour, minute = when
    return datetime(year, month, day, hour, minute, tzinfo=ZoneInfo(BERLIN), fold=fold)


def test_a_time_of_day_that_is_left_out_comes_right_afterwards() -> None:
    assert moments("30 2 * * *", BERLIN, berlin(2026, 3, 28, 1, 0), 3) == [
        "28 02:30+0100",
        "29 03:00+0200",
        "30 02:30+0200",
    ]


def test_a_time_of_day_that_comes_twice_is_fired_once() -> None:
    assert moments("30 2 * * *", BERLIN, berlin(2026, 10, 24, 1, 0), 3) == [
        "24 02:30+0200",
        "25 02:30+0200",
        "26 02:30+0100",
    ]


def test_in_the_second_of_two_hours_the_first_is_over() -> None:
    assert moments("30 2 * * *", BERLIN, berlin(2026, 10, 25, 2, 10, fold=1), 1) == [
        "26 02:30+0100"
    ]


def test_every_half_hour_goes_by_the_time_that_really_passes() -> None:
    assert moments("*/30 * * * *", BERLIN, berlin(2026, 10, 25, 1, 30), 5) == [
        "25 02:00+0200",
        "25 02:30+0200",
        "25 02:00+0100",
        "25 02:30+0100",
        "25 03:00+0100",
    ]
    assert moments("*/30 * * * *", BERLIN, berlin(2026, 3, 29, 1, 0), 3) == [
        "29 01:30+0100",
        "29 03:00+0200",
        "29 03:30+0200",
    ]


NOON = datetime(2026, 6, 1, 12, 0, 30, tzinfo=UTC)


@pytest.mark.parametrize("missed", ["skip", "once", "all"])
def test_a_moment_that_is_on_time_is_fired_once_whatever_is_done_about_the_missed(
    missed: str,
) -> None:
    was = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)

    found = due("* * * * *", "UTC", missed, was=was, now=NOON)  # type: ignore[arg-type]

    assert found.moments == [was]
    assert found.next_at == was + timedelta(minutes=1)
    assert found.missed == 0


def test_missed_moments_are_left_out_made_up_for_once_or_all() -> None:
    was = datetime(2026, 6, 1, 9, 0, tzinfo=UTC)
    last = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
    following = datetime(2026, 6, 1, 13, 0, tzinfo=UTC)
    late = NOON + timedelta(minutes=5)

    skip = due("@hourly", "UTC", "skip", was=was, now=late)
    once = due("0 * * * *", "UTC", "once", was=was, now=late)
    each = due("0 * * * *", "UTC", "all", was=was, now=late)

    assert (skip.moments, skip.next_at, skip.missed) == ([], following, 4)
    assert (once.moments, once.next_at, once.missed) == ([last], following, 3)
    assert each.moments == [was + timedelta(hours=hours) for hours in range(4)]
    assert (each.next_at, each.missed) == (following, 0)


def test_what_is_less_than_a_minute_late_is_not_missed() -> None:
    was = datetime(2026, 6, 1, 9, 0, tzinfo=UTC)

    found = due("0 * * * *", "UTC", "skip", was=was, now=NOON)

    assert found.moments == [datetime(2026, 6, 1, 12, 0, tzinfo=UTC)]
    assert found.missed == 3


def test_years_of_seconds_that_were_missed_are_settled_at_once() -> None:
    was, now = NOON - timedelta(days=3650), NOON

    once = due("* * * * * *", "UTC", "once", was=was, now=now)
    skip = due("* * * * * *", "UTC", "skip", was=was, now=now)
    each = due("* * * * * *", "UTC", "all", was=was, now=now)

    assert (once.moments, once.next_at) == ([now], now + timedelta(seconds=1))
    assert len(skip.moments) in (60, 61)
    assert skip.next_at == now + timedelta(seconds=1)
    assert len(each.moments) == MOST
    assert each.next_at == each.moments[-1] + timedelta(seconds=1)


@pytest.mark.parametrize("hours", range(0, 72, 5))
@pytest.mark.parametrize("spec", ["30 2 * * *", "*/20 * * * *", "15 1-3 * * *", "0 */2 * * *"])
@pytest.mark.parametrize("change", [(2026, 3, 28, 0, 0), (2026, 10, 24, 0, 0)])
def test_once_fires_the_last_moment_of_those_that_all_would_fire(
    change: tuple[int, ...], spec: str, hours: int
) -> None:
    was = next_moment(spec, BERLIN, berlin(*change))
    now = was + timedelta(hours=hours, minutes=7)

    each = due(spec, BERLIN, "all", was=was, now=now)
    once = due(spec, BERLIN, "once", was=was, now=now)

    assert once.moments == each.moments[-1:]
    assert once.next_at == each.next_at
    assert each.moments == sorted(set(each.moments))
    assert once.missed == len(each.moments) - 1


@pytest.mark.parametrize(
    ("spec", "zone"),
    [
        ("* * * *", "UTC"),
        ("61 * * * *", "UTC"),
        ("0 0 30 2 *", "UTC"),
        ("", "UTC"),
        ("@never", "UTC"),
        ("* * * * *", "Europe/Nowhere"),
        ("* * * * *", "../etc/passwd"),
        ("* * * * *", ""),
    ],
)
def test_what_cannot_be_read_or_never_happens_is_refused(spec: str, zone: str) -> None:
    with pytest.raises(InvalidInput):
        next_moment(spec, zone, NOON)
