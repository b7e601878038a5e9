"""Watches the app's event loop from outside: stamps that it runs, and names what blocks it.

The loop stamps the board every 100 ms. A thread looks at the stamp: one that is too old is
reported with the stack of the loop's thread, in which the blocking call stands. A call in C that
never lets go of the interpreter stops this thread too; it is reported as soon as it ends.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from collections.abc import Callable

from strandline.cluster.board import Board
from strandline.cluster.heart import STAMP_EVERY
from strandline.cluster.lease import boot_time
from strandline.cluster.vitals import News
from strandline.telemetry.journal import Journal

log = Journal("strandline.pulse")

BLOCKED_AFTER = 1.0  # seconds without a stamp
LOOK_EVERY = 0.25


class LoopWatch:
    """Stamps *board* from the running loop, and tells ``blocked`` and ``unblocked``.

    Args:
        board: Where the stamp goes.
        tell: Called with news, in the watcher's thread.
    """

    def __init__(self, board: Board, tell: Callable[[News], None]) -> None:
        self._board = board
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._stopping = threading.Event()
        self._due = 0.0
        self._seen_ticks = -1
        self._timer: asyncio.TimerHandle | None = None
        self._thread = threading.Thread(
            target=self._watch, name="strandline-loop-watch", daemon=True
        )

    def start(self) -> None:
        """Begin; called in the loop that is watched."""
        self._due = boot_time()
        self._stamp()
        self._thread.start()

    def stop(self) -> None:
        """End, from any thread; the watcher's own ends within ``LOOK_EVERY``."""
        self._stopping.set()
        if self._timer is not None:
            self._timer.cancel()

    def _stamp(self) -> None:
        board, now = self._board, boot_time()
        late = max(0.0, now - self._due)
        ticks = board.ticks
        board.lag = late if ticks != self._seen_ticks else max(late, board.lag)
        self._seen_ticks = ticks
        board.stamp = now
        self._due = now + STAMP_EVERY
        if not self._stopping.is_set():
            self._timer = self._loop.call_later(STAMP_EVERY, self._stamp)

    def _watch(self) -> None:
        blocked_at = 0.0
        looked_at = boot_time()
        while not self._stopping.wait(LOOK_EVERY):
            if self._loop.is_closed():
                return
            now = boot_time()
            frozen, looked_at = now - looked_at - LOOK_EVERY, now
            stamp = self._board.stamp
            if blocked_at and stamp > blocked_at:
                self._tell(News("unblocked", {"seconds": stamp - blocked_at}))
                blocked_at = 0.0
            elif not blocked_at and now - stamp > BLOCKED_AFTER:
                blocked_at = stamp
                self._report(now - stamp, frozen)

    def _report(self, seconds: float, frozen: float) -> None:
        frame = sys._current_frames().get(self._loop_thread)
        stack = "".join(traceback.format_stack(frame)) if frame else ""
        whole = frozen > BLOCKED_AFTER
        log.tell("process_frozen" if whole else "event_loop_blocked", seconds=seconds, stack=stack)
        facts = {"seconds": seconds, "stack": stack, "every_thread": whole}
        self._tell(News("blocked", facts))
