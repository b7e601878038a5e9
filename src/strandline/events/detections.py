"""What the detector of the mark tells of itself: its numbers, and its looks that met a gap."""

from __future__ import annotations

from dataclasses import dataclass

from strandline.clock import Clock
from strandline.events.gaps import Holder
from strandline.loops import LoopStatistics
from strandline.telemetry.signals import Signals

AT_MOST_EVERY = 0.05  # seconds between two notices; what lies between is summed


@dataclass(frozen=True, slots=True)
class HighWaterStatistics:
    """How the mark is doing, as this detector knows it.

    Attributes:
        position: The mark.
        highest: Highest visible position at the last look.
        pending: Generations that wait for their holders.
        pending_seconds: How long the oldest of them has waited.
        stale: Whether that is longer than ``stale_after``.
        stale_seconds: How long it has been stale.
        holders: Who holds it, as last reported; empty unless stale.
        looks: Looks at the head.
        probes: Looks at the holders.
        settled_gaps: Gaps proved by this detector.
        settled_numbers: Numbers in them.
        forced_gaps: Gaps skipped without proof by this detector.
        forced_numbers: Numbers in them.
        moves: Times it moved the mark.
        late_events: Events it saw turn up in forced gaps.
        loop: The loop that runs it.
    """

    position: int = 0
    highest: int = 0
    pending: int = 0
    pending_seconds: float = 0.0
    stale: bool = False
    stale_seconds: float = 0.0
    holders: tuple[Holder, ...] = ()
    looks: int = 0
    probes: int = 0
    settled_gaps: int = 0
    settled_numbers: int = 0
    forced_gaps: int = 0
    forced_numbers: int = 0
    moves: int = 0
    late_events: int = 0
    loop: LoopStatistics | None = None


@dataclass(frozen=True, slots=True)
class Detection:
    """The detector after a look. Numbers and gaps are counted since it began.

    Attributes:
        position: The mark.
        highest: The highest visible position.
        proved: Numbers passed that were proved to hold no event.
        forced: Numbers skipped without proof.
        gaps: Gaps of both kinds.
        is_open: A number below the highest is still missing, or was before this look.
        is_stale: It has been so for longer than ``stale_after``.
        holders: Transactions that may hold it.
    """

    position: int = 0
    highest: int = 0
    proved: int = 0
    forced: int = 0
    gaps: int = 0
    is_open: bool = False
    is_stale: bool = False
    holders: int = 0


class Detections:
    """Tells ``high_water_detected``, so seldom that a gap which is probed 50 times a second does not flood."""

    def __init__(self, signals: Signals, clock: Clock) -> None:
        self._signals = signals
        self._clock = clock
        self._seen = self._told = Detection()  # what was counted since the latter is yet to be told
        self._told_at = float("-inf")
        self._looks = 0
        self._seconds = 0.0

    def looked(self, now: Detection, *, seconds: float) -> None:
        """A look has ended with *now*, after *seconds*."""
        seen, self._seen, before = self._seen, now, self._told
        if now.is_open or now.is_stale != seen.is_stale or now.gaps != seen.gaps:
            self._looks += 1
            self._seconds += seconds
        elif not self._looks:
            self._told = now
            return
        moment = self._clock.monotonic()
        if moment - self._told_at < AT_MOST_EVERY:
            return
        proved, forced = now.proved - before.proved, now.forced - before.forced
        looks, spent = self._looks, self._seconds
        self._told, self._told_at, self._looks, self._seconds = now, moment, 0, 0.0
        self._signals.tell(
            "high_water_detected",
            mark=before.position,
            highest=now.highest,
            settled=now.position,
            difference=max(0, now.highest - now.position),
            stale=now.is_stale,
            holders=now.holders,
            skipped=proved + forced,
            proved=proved,
            forced=forced,
            gaps=now.gaps - before.gaps,
            looks=looks,
            seconds=spent,
        )
