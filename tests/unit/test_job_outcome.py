"""What becomes of a job whose handler raised."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from strandline.jobs.outcome import LONGEST_MESSAGE, TimeLimitExceeded, fingerprint, judged
from strandline.jobs.retry import Retry
from strandline.jobs.row import Claimed
from strandline.jobs.runner import time_limit
from strandline.jobs.verdicts import Cancel, Snooze

NOW = datetime(2026, 1, 2, tzinfo=UTC)
JOB = Claimed(1, 7, "k", "{}", 2, 5, 0, "q", None, None, None, None, 1, 5, NOW)
STEADY = Retry(first=10.0, factor=1.0, jitter=0.0)


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_a_failure_is_tried_again_with_its_record() -> None:
    ended = judged(JOB, STEADY, raised(ValueError("no")), now=NOW)
    assert (ended.ending, ended.delay) == ("retry", 10.0)
    assert ended.error is not None
    stack = ended.error.pop("stack")
    assert "in raised" in stack
    assert ended.error == {
        "attempt": 2,
        "at": "2026-01-02T00:00:00+00:00",
        "class": "ValueError",
        "message": "no",
    }


def test_the_last_attempt_makes_a_dead_letter() -> None:
    ended = judged(JOB._replace(attempt=5), STEADY, raised(ValueError("no")), now=NOW)
    assert ended.ending == "dead"
    assert ended.fingerprint


@pytest.mark.parametrize(
    ("error", "stopped_for", "ending"),
    [
        (Snooze(3), "", "snoozed"),
        (Snooze(3), "stop", "snoozed"),
        (Cancel("x"), "time", "cancelled"),
        (asyncio.CancelledError(), "cancelled", "cancelled"),
        (ValueError(), "cancelled", "cancelled"),
        (asyncio.CancelledError(), "stop", "released"),
        (ValueError(), "stop", "released"),
        (asyncio.CancelledError(), "time", "retry"),
        (asyncio.CancelledError(), "", "retry"),
        (SystemExit(1), "", "retry"),
    ],
)
def test_a_verdict_counts_first_then_why_it_was_stopped(
    error: BaseException, stopped_for: str, ending: str
) -> None:
    ended = judged(JOB, STEADY, raised(error), stopped_for=stopped_for, limit=1.0, now=NOW)
    assert ended.ending == ending


def test_the_time_limit_is_an_error_that_a_policy_knows() -> None:
    never = replace(STEADY, never=(TimeoutError,))
    error = raised(asyncio.CancelledError())
    ended = judged(JOB, never, error, stopped_for="time", limit=1.5, now=NOW)
    assert ended.ending == "dead"
    assert ended.error is not None
    assert ended.error["class"].endswith("TimeLimitExceeded")
    assert "1.5 s" in ended.error["message"]
    assert issubclass(TimeLimitExceeded, TimeoutError)


@pytest.mark.parametrize("answer", [float("nan"), float("inf"), "soon"])
def test_a_policy_that_fails_gives_way_to_the_default(answer: Any) -> None:
    ended = judged(JOB, Retry(delay=lambda *_: answer), raised(ValueError()), now=NOW)
    assert ended.ending == "retry"
    assert 5 < ended.delay < 15


def test_a_policy_that_raises_gives_way_to_the_default() -> None:
    def policy(attempt: int, error: BaseException) -> float:
        raise KeyError(attempt)

    assert judged(JOB, Retry(delay=policy), raised(ValueError()), now=NOW).ending == "retry"


def test_a_negative_delay_is_none() -> None:
    assert judged(JOB, Retry(delay=lambda *_: -3.0), raised(ValueError()), now=NOW).delay == 0.0


class Nasty(Exception):
    def __str__(self) -> str:
        raise RuntimeError


def test_an_error_that_cannot_be_shown_is_recorded_all_the_same() -> None:
    ended = judged(JOB, STEADY, raised(Nasty()), now=NOW)
    assert ended.error is not None
    assert ended.error["message"] == "Nasty"


def test_long_messages_are_cut() -> None:
    ended = judged(JOB, STEADY, raised(ValueError("x" * 9_999)), now=NOW)
    assert ended.error is not None
    assert len(ended.error["message"]) == LONGEST_MESSAGE


def test_the_fingerprint_overlooks_numbers_and_quoted_values() -> None:
    one = fingerprint(raised(ValueError("order 17 of 'Ada' at 0xff00")), "k")
    assert one == fingerprint(raised(ValueError("order 4 of 'Bo' at 0x1")), "k")
    assert one != fingerprint(raised(ValueError("order 4 of 'Bo' at 0x1")), "other")
    assert one != fingerprint(raised(KeyError("order 4 of 'Bo' at 0x1")), "k")


def test_a_job_may_bring_its_own_time_limit() -> None:
    assert time_limit(JOB, 3.0) == 3.0
    assert time_limit(JOB._replace(meta='{"timeout": 5}'), 3.0) == 5.0
    assert time_limit(JOB._replace(meta='{"timeout": 5}'), None) == 5.0
    for broken in ('{"timeout": "x"}', '{"timeout": -1}', '["timeout"]', '{"timeout"'):
        assert time_limit(JOB._replace(meta=broken), 3.0) == 3.0
