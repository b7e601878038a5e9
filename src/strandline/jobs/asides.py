"""Flushes that could not be written, each until it is due again, while others go on."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from itertools import count

from strandline.clock import Clock
from strandline.jobs.flushes import Flush


class Asides:
    """What waits aside, the earliest first."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heap: list[tuple[float, int, Flush]] = []
        self._numbers = count()

    def put(self, flushes: Sequence[Flush], pause: float) -> None:
        """Try *flushes* again after *pause* seconds."""
        due = self._clock.monotonic() + pause
        for one in flushes:
            one.was_aside = True
            heapq.heappush(self._heap, (due, next(self._numbers), one))

    def taken(self, now: float) -> Flush | None:
        """Take out one that is due at *now*."""
        return heapq.heappop(self._heap)[2] if self.is_due(now) else None

    def is_due(self, now: float) -> bool:
        """Whether there is one to be tried."""
        return bool(self._heap) and self._heap[0][0] <= now

    def hasten(self, *, all: bool = False) -> None:  # noqa: A002 - whether it is all
        """Try those now that were refused; with *all* those too that were delayed."""
        self._move(0.0, all=all, sooner=True)

    def defer(self, pause: float) -> None:
        """Try none of those that were refused within *pause* seconds."""
        self._move(self._clock.monotonic() + pause, all=False, sooner=False)

    def _move(self, to: float, *, all: bool, sooner: bool) -> None:  # noqa: A002 - see above
        choose = min if sooner else max
        self._heap = [
            (choose(due, to) if all or not one.delays else due, number, one)
            for due, number, one in self._heap
        ]
        heapq.heapify(self._heap)

    def __iter__(self) -> Iterator[Flush]:
        return (one for _, _, one in self._heap)

    def clear(self) -> None:
        """Forget all."""
        self._heap.clear()

    @property
    def size(self) -> int:
        """How many attempts."""
        return sum(one.size for one in self)
