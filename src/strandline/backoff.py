"""Retry delays as plain data, run by tenacity: 250 ms, 500 ms, 1 s, then a 30 s pause that grows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from tenacity import AsyncRetrying, retry_if_exception, retry_if_exception_type
from tenacity.stop import stop_after_attempt
from tenacity.wait import wait_exponential, wait_random


@dataclass(frozen=True, slots=True)
class Backoff:
    """How often and how long to wait before trying again.

    Attributes:
        attempts: Tries in all, the first one included.
        first: Seconds before the second try; doubles from try to try.
        longest: Seconds, the cap of one wait without its jitter.
        jitter: Seconds of random delay added at the most.
        pause: Seconds to rest once every try has failed; doubles from pause to pause.
        longest_pause: Seconds, the cap of one pause.
    """

    attempts: int = 4
    first: float = 0.25
    longest: float = 1.0
    jitter: float = 0.1
    pause: float = 30.0
    longest_pause: float = 300.0

    def retrying(
        self,
        on: type[Exception] | tuple[type[Exception], ...] | Callable[[Any], bool],
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> AsyncRetrying:
        """Loop over tries: ``async for attempt in x.retrying(Unavailable): with attempt: ...``.

        Args:
            on: What is tried again: exception classes, or a function that says so.
            sleep: Waits between two tries.
        """
        if isinstance(on, type | tuple):
            retry: retry_if_exception = retry_if_exception_type(on)
        else:
            retry = retry_if_exception(on)
        return AsyncRetrying(
            sleep=sleep,
            stop=stop_after_attempt(self.attempts),
            wait=wait_exponential(self.first, self.longest) + wait_random(0, self.jitter),
            retry=retry,
            reraise=True,
        )

    def pause_after(self, pauses: int) -> float:
        """Seconds of the next pause after *pauses* of them without any success between."""
        grown = self.pause * 2.0 ** min(pauses, 32)  # beyond that every cap is passed
        return min(grown, max(self.pause, self.longest_pause))


WORK = Backoff()  # a shard's batch: the brief's schedule
QUICK = Backoff(attempts=5, first=0.05, longest=0.4, jitter=0.05, pause=0.0)  # one request
