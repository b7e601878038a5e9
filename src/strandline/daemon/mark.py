"""The mark as other nodes publish it: every node knows it, one of them moves it.

The detector of the high-water mark runs on one node. All others read the row it writes: when it
tells them to, and every ``poll_interval``. The notice is a hint, the row is the truth. A mark that
went back (the database was restored, or failed over) is told, since checkpoints went back too.
"""

from __future__ import annotations

from collections.abc import Callable

from strandline.events.gaps import read_mark
from strandline.loops import Loop, LoopStatistics, Rhythm
from strandline.postgres.pools import Pool
from strandline.settings import Settings
from strandline.telemetry.journal import Journal

log = Journal("strandline.mark")

ANSWER_WITHIN = 5.0  # seconds for one row: a connection that forwards nothing is given up
BREATH = 0.01  # seconds between looks, however often told: one look carries many appends


class MarkFollower:
    """Reads the published mark again and again.

    Args:
        control: Where it reads.
        settings: ``poll_interval``.
        known: The mark as this node knows it.
        on_moved: Called with the new mark when it is another than ``known``; must not block.
    """

    def __init__(
        self,
        control: Pool,
        settings: Settings,
        *,
        known: Callable[[], int],
        on_moved: Callable[[int], None],
    ) -> None:
        self._control = control
        self._known = known
        self._on_moved = on_moved
        rhythm = Rhythm(settings.poll_interval, limit=ANSWER_WITHIN, gap=BREATH)
        self._loop = Loop("mark", self._look, rhythm)

    def start(self) -> None:
        """Begin to look."""
        self._loop.start()

    async def stop(self, *, timeout: float = 2.0) -> bool:
        """End; whether the look under way finished within *timeout* seconds."""
        return await self._loop.stop(timeout=timeout)

    def wake(self) -> None:
        """Look now: somebody moved the mark."""
        self._loop.wake()

    def statistics(self) -> LoopStatistics:
        """A picture of now."""
        return self._loop.statistics()

    async def _look(self) -> None:
        before = self._known()
        position = (await self._control.run(read_mark())).position
        if position > self._known():
            self._on_moved(position)
        elif position < before <= self._known():
            # Not merely overtaken by a detector in this process: the row was at `before` already.
            log.tell("high_water_went_back", before=before, position=position)
            self._on_moved(position)
