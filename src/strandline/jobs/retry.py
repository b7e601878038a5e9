"""When a failed job is tried again, and when no more."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

Errors = tuple[type[BaseException], ...]


@dataclass(frozen=True, slots=True)
class Retry:
    """When a failed attempt is followed by another.

    Attributes:
        max_attempts: In all, the first one included; then the job is a dead letter.
        first: Seconds before the second attempt; grows by *factor* from attempt to attempt.
        longest: Seconds, the cap of one wait.
        jitter: Share of the wait that is added or taken off at random.
        on: Only these errors are tried again; any other makes a dead letter at once. Empty: all.
        never: These are not.
        delay: Called with (attempt, error) instead of all that: seconds, or None for no more.
    """

    max_attempts: int = 20
    first: float = 5.0
    factor: float = 2.0
    longest: float = 21_600.0
    jitter: float = 0.1
    on: Errors = ()
    never: Errors = ()
    delay: Callable[[int, BaseException], float | None] | None = None

    def after(
        self,
        attempt: int,
        error: BaseException,
        *,
        max_attempts: int | None = None,
        chance: Callable[[], float] = random.random,
    ) -> float | None:
        """Seconds until the next attempt; None: there is none.

        Args:
            attempt: The one that failed, from 1.
            error: What it raised.
            max_attempts: Of this job, where it has its own.
            chance: From 0 to 1.
        """
        if attempt >= (self.max_attempts if max_attempts is None else max_attempts):
            return None
        if isinstance(error, self.never) or (self.on and not isinstance(error, self.on)):
            return None
        if self.delay is not None:
            return self.delay(attempt, error)
        wait = min(self.longest, self.first * self.factor ** min(attempt - 1, 64))
        return wait * (1 + self.jitter * (2 * chance() - 1))
