"""Tells for how long the app's event loop has not run, as seen from the pulse.

Time counts only while the pulse itself looks: after both were frozen together, by a suspended
machine or a paused container, the app gets its chance to stamp before anybody calls it stalled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from strandline.cluster.board import Board
from strandline.cluster.lease import boot_time

LOOK_EVERY = 0.25


class Vigil:
    """Looks at the stamp again and again.

    Args:
        board: Where the stamp is.
        bounds: Ages that matter, in seconds.
        crossed: Called when the age has passed one of them, or fallen back to nothing from above.
    """

    def __init__(
        self, board: Board, bounds: tuple[float, ...], crossed: Callable[[], None]
    ) -> None:
        self.age = 0.0
        self._board = board
        self._bounds = bounds
        self._crossed = crossed
        self._every = min([LOOK_EVERY, *(bound / 4 for bound in bounds)])
        self._stamp = board.stamp
        self._looked_at = boot_time()
        if self._stamp:  # an earlier pulse of the same app may have ended while it was blocked
            self.age = max(0.0, self._looked_at - self._stamp)
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin; called in the event loop of the pulse."""
        self._look()

    def stop(self) -> None:
        """End."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        now, stamp = boot_time(), self._board.stamp
        before = self.age
        if stamp != self._stamp or not stamp:
            self._stamp, self.age = stamp, max(0.0, min(self._every, now - stamp))
        else:
            self.age += min(now - self._looked_at, 2 * self._every)
        self._looked_at = now
        if self._place(before) != self._place(self.age):
            self._crossed()
        self._timer = asyncio.get_running_loop().call_later(self._every, self._look)

    def _place(self, age: float) -> int:
        return sum(age > bound for bound in self._bounds)
