"""What a handler raises to decide about its own job: later, never, or as if it had failed."""

from __future__ import annotations

from datetime import timedelta


class Verdict(Exception):  # noqa: N818 - not an error
    """Raised by a handler: it says what becomes of its job."""


class Snooze(Verdict):
    """Run this job again after *delay* seconds; the attempt does not count."""

    def __init__(self, delay: float | timedelta, reason: str = "") -> None:
        seconds = delay.total_seconds() if isinstance(delay, timedelta) else float(delay)
        if not seconds >= 0:
            raise ValueError(f"a job cannot be snoozed for {seconds} seconds")
        super().__init__(f"snoozed for {seconds:g} s{': ' if reason else ''}{reason}")
        self.delay = seconds
        self.reason = reason


class Cancel(Verdict):
    """Do not run this job again: it is cancelled, with *reason* in its history."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason or "cancelled by its handler")
        self.reason = str(self)
