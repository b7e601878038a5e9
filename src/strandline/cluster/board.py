"""A board of 128 bytes that the app and its pulse both see: who is alive, who leads until when.

It is shared memory where the pulse is a process of its own, so that neither side needs the other
to run. Each number is eight aligned bytes, written at once by one side only. Epoch and end of
trust belong together: the end is set to 0 before the epoch changes, and the reader looks twice.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import Any

from strandline.cluster.lease import Leadership
from strandline.cluster.node import NodeState

BYTES = 128
STATES = ("", *NodeState)


class _Moment:
    """A slot that holds a float."""

    def __init__(self, slot: int) -> None:
        self._slot = slot

    def __get__(self, board: Board, _: Any = None) -> float:
        return float(board.floats[self._slot])

    def __set__(self, board: Board, value: float) -> None:
        board.floats[self._slot] = value


class _Count:
    """A slot that holds a whole number."""

    def __init__(self, slot: int) -> None:
        self._slot = slot

    def __get__(self, board: Board, _: Any = None) -> int:
        return int(board.numbers[self._slot])

    def __set__(self, board: Board, value: int) -> None:
        board.numbers[self._slot] = value


class Board:
    """The shared numbers. All moments are of ``boot_time``; 0: never.

    Attributes:
        stamp: By the app: when its event loop last ran.
        lag: By the app: worst lateness of its event loop since the last tick.
        progress: By the app: grows while its work gets on.
        tick_at: By the pulse, as are all that follow: when the last good tick began.
        ticks: Good ones.
        failures: Of ticks.
        tick_seconds: How long the last good one took.
        leader_seen_at: When a tick last saw that somebody leads.
        attempts: To become leader.
        wins: Of these.
        losses: Of these.
        timeouts: Of these.
        election_seconds: How long the last one took.
    """

    stamp = _Moment(0)
    lag = _Moment(1)
    progress = _Count(2)
    tick_at = _Moment(5)
    ticks = _Count(6)
    failures = _Count(7)
    tick_seconds = _Moment(8)
    leader_seen_at = _Moment(9)
    attempts = _Count(10)
    wins = _Count(11)
    losses = _Count(12)
    timeouts = _Count(13)
    election_seconds = _Moment(14)
    _epoch = _Count(3)
    _until = _Moment(4)
    _state = _Count(15)

    def __init__(self, fd: int | None = None) -> None:
        memory = mmap.mmap(-1 if fd is None else fd, BYTES)
        # struct.pack_into would clear the bytes before it writes them; these write at once
        self.floats = memoryview(memory).cast("d")
        self.numbers = memoryview(memory).cast("q")

    @classmethod
    def shared(cls) -> tuple[Board, int]:
        """A board, and a file descriptor by which another process can see it."""
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("strandline-board")
        else:
            fd, path = tempfile.mkstemp(prefix="strandline-board-")
            os.unlink(path)  # noqa: PTH108 - the descriptor keeps it
        os.truncate(fd, BYTES)
        return cls(fd), fd

    @property
    def state(self) -> str:
        """Of the node, as the last good tick read it; empty before the first."""
        return str(STATES[self._state])

    @state.setter
    def state(self, state: str) -> None:
        self._state = STATES.index(state)

    def count(self, outcome: str, seconds: float) -> None:
        """Count an attempt to become leader."""
        self.attempts += 1
        self.wins += outcome == "won"
        self.losses += outcome == "lost"
        self.timeouts += outcome == "timed_out"
        self.election_seconds = seconds

    def lead(self, leadership: Leadership | None) -> None:
        """Write down under which epoch the node leads, and until when it may trust that."""
        if leadership is None:
            self._until = 0.0
            return
        if self._epoch != leadership.epoch:
            self._until = 0.0
            self._epoch = leadership.epoch
        self._until = leadership.trusted_until

    def leadership(self, now: float) -> Leadership | None:
        """The leadership that may be trusted at *now*."""
        for _ in range(10):
            until = self._until
            epoch = self._epoch
            if until == self._until:
                return Leadership(epoch, until) if now < until else None
        return None  # it changes faster than it can be read: trust nothing
