"""Retry delays as plain data, run by stamina: 250 ms, 500 ms, 1 s, then a 30 s pause."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterable, Callable
from dataclasses import dataclass

import stamina

# What is tried again is logged by us, with context; stamina's own words go nowhere unless asked for.
logging.getLogger("stamina").addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True)
class Backoff:
    """How often and how long to wait before trying again.

    Attributes:
        attempts: Tries in all, the first one included.
        first: Seconds before the second try; doubles from try to try.
        longest: Seconds, the cap of one wait.
        jitter: Seconds of random delay added at the most.
        pause: Seconds to rest once every try has failed.
    """

    attempts: int = 4
    first: float = 0.25
    longest: float = 1.0
    jitter: float = 0.1
    pause: float = 30.0

    def retrying(
        self, on: type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool]
    ) -> AsyncIterable[stamina.Attempt]:
        """Loop over tries: ``async for attempt in x.retrying(Unavailable): with attempt: ...``.

        Args:
            on: What is tried again: exception classes, or a function that says so.
        """
        return stamina.retry_context(
            on=on,
            attempts=self.attempts,
            timeout=None,
            wait_initial=self.first,
            wait_max=self.longest,
            wait_jitter=self.jitter,
        )


WORK = Backoff()  # a shard's batch: the brief's schedule
QUICK = Backoff(attempts=5, first=0.05, longest=0.4, jitter=0.05, pause=0.0)  # one request
