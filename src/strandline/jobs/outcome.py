"""What becomes of a job whose handler raised: the one place that judges it."""

from __future__ import annotations

import hashlib
import math
import re
import traceback
from asyncio import CancelledError
from datetime import datetime
from pathlib import Path
from typing import Any

from strandline.jobs.retry import Retry
from strandline.jobs.row import Claimed, Ended
from strandline.jobs.verdicts import Cancel, Snooze
from strandline.telemetry.journal import Journal

log = Journal("strandline.jobs")

LONGEST_MESSAGE = 2_000  # characters that are kept
LONGEST_STACK = 8_000
_OURS = str(Path(__file__).resolve().parents[1])
_VALUES = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|0x[0-9a-fA-F]+|\d+""")


class TimeLimitExceeded(TimeoutError):  # noqa: N818 - the standard's name ends in Error already
    """An attempt took longer than its job may."""


def judged(
    job: Claimed,
    retry: Retry,
    error: BaseException,
    *,
    stopped_for: str = "",
    limit: float | None = None,
    now: datetime,
) -> Ended:
    """How an attempt ends that raised *error*.

    Args:
        job: Whose attempt it was.
        retry: When it is tried again.
        error: A verdict of the handler counts whatever else there is.
        stopped_for: Why it was told to end: ``cancelled``, ``time``, ``stop``; empty: it was not.
        limit: Seconds it was allowed to take.
        now: The wall clock, for the record.
    """
    if isinstance(error, Snooze):
        return Ended(job, "snoozed", delay=error.delay, reason=error.reason)
    if isinstance(error, Cancel):
        return Ended(job, "cancelled", reason=error.reason)
    if stopped_for == "cancelled":
        return Ended(job, "cancelled", reason="cancelled while it ran")
    if stopped_for == "stop":
        return Ended(job, "released", reason="the node stopped")
    if stopped_for == "time":
        error = _over_time(error, limit)
    record = described(error, job.attempt, now)
    delay = _delay(job, retry, error)
    if delay is None:
        return Ended(job, "dead", error=record, fingerprint=fingerprint(error, job.kind))
    return Ended(job, "retry", delay=delay, error=record)


def described(error: BaseException, attempt: int, now: datetime) -> dict[str, Any]:
    """One element of column ``errors``."""
    return {
        "attempt": attempt,
        "at": now.isoformat(),
        "class": _class_of(error),
        "message": _words(error)[:LONGEST_MESSAGE],
        "stack": _stack(error)[-LONGEST_STACK:],
    }


def fingerprint(error: BaseException, kind: str) -> str:
    """The same for failures that look alike: they differ in numbers and quoted values only."""
    message = _VALUES.sub("?", _words(error)[:LONGEST_MESSAGE])
    parts = (_class_of(error), _place(error), message, kind)
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:16]


def _over_time(error: BaseException, limit: float | None) -> TimeLimitExceeded:
    words = "over its time limit" if limit is None else f"it took longer than {round(limit, 2):g} s"
    over = TimeLimitExceeded(words)
    over.__cause__ = error
    return over


def _delay(job: Claimed, retry: Retry, error: BaseException) -> float | None:
    """Seconds, made safe: the policy may be the user's own function."""
    try:
        delay = retry.after(job.attempt, error, max_attempts=job.max_attempts)
        if delay is None or math.isfinite(delay):
            return None if delay is None else max(0.0, float(delay))
        raise ValueError(f"a delay of {delay} seconds")
    except Exception as trouble:  # the user's code raises anything
        log.tell("retry_policy_failed", kind=job.kind, error=trouble)
        return Retry().after(job.attempt, error, max_attempts=job.max_attempts)


def _class_of(error: BaseException) -> str:
    kind = type(error)
    module = kind.__module__
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"


def _words(error: BaseException) -> str:
    if isinstance(error, CancelledError) and not error.args:
        return "something that it awaited was cancelled"
    try:
        return str(error) or repr(error)
    except Exception:  # it is the user's class
        return type(error).__name__


def _stack(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error, limit=-20))
    except Exception:  # it shows the error, and its notes, by the user's code
        return "".join(traceback.format_tb(error.__traceback__, limit=-20))


def _place(error: BaseException) -> str:
    """The function of the user's that *error* came out of; empty if none did."""
    trace = error.__traceback__ or (error.__cause__.__traceback__ if error.__cause__ else None)
    while trace is not None:
        code = trace.tb_frame.f_code
        if not code.co_filename.startswith((_OURS, "<frozen")):
            return code.co_qualname
        trace = trace.tb_next
    return ""
