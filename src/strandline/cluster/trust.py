"""Writes down and tells whether the node leads, in the moment in which that changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from strandline.cluster.board import Board
from strandline.cluster.election import Election
from strandline.cluster.lease import boot_time
from strandline.cluster.vitals import News


class Trust:
    """The election's outcome, as the app sees it.

    The end of trust has a timer of its own: a tick under way may not come back in time.
    """

    def __init__(self, election: Election, board: Board, tell: Callable[[News], None]) -> None:
        self._election = election
        self._board = board
        self._tell = tell
        self._told: int | None = None
        self._over = ""
        self._timer: asyncio.TimerHandle | None = None

    def publish(self) -> None:
        """Bring the board up to date, and tell what has changed."""
        now = boot_time()
        leadership = None if self._over else self._election.leadership(now)
        self._board.lead(leadership)
        epoch = leadership.epoch if leadership else None
        if self._told is not None and epoch != self._told:
            told, self._told = self._told, None
            self._tell(News("not_leading", {"epoch": told, "reason": self._reason(told)}))
        if self._timer is not None:
            self._timer.cancel()
        if leadership is None:
            return
        if self._told is None:
            self._told = leadership.epoch
            self._tell(News("leading", {"epoch": leadership.epoch}))
        self._timer = asyncio.get_running_loop().call_later(
            max(0.0, leadership.trusted_until - now) + 0.001, self.publish
        )

    def end(self, reason: str) -> None:
        """Trust nothing from now on."""
        self._over = reason
        self.publish()

    def _reason(self, epoch: int) -> str:
        if self._over:
            return self._over
        if self._election.renewing == epoch:
            return "it could not be renewed in time"
        return self._election.lost_because
