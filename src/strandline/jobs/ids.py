"""Ids of jobs, drawn in blocks: one question for 1,024 of them, and none for most jobs."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from strandline.errors import DatabaseUnavailable
from strandline.postgres.faults import is_taken
from strandline.postgres.operations import Op, many
from strandline.postgres.statements import SqlFile

BLOCK = 1_024  # ids of one value of the sequence
MOST_TAKEN = 100  # blocks that a single job is tried with
FEW = 512  # left: the next block is drawn beside


@dataclass(frozen=True, slots=True)
class Block:
    """A value of the sequence: stands for the ids from number * 1024."""

    number: int


_sql = SqlFile(__name__)
DRAW = _sql.many("draw_blocks", Block)


def are_taken(error: BaseException) -> bool:
    """Whether *error* says that a job has an id that was drawn for another.

    A server that took over may lack the last draws of the one before it, and gives them out again.
    """
    return is_taken(error, "jobs_pkey")


class Ids:
    """Ids that this process may give to jobs. Safe to use from many threads.

    A block belongs to whoever has drawn it, whatever becomes of the transaction it was drawn in.
    """

    def __init__(self) -> None:
        self._free: list[range] = []
        self._process = os.getpid()
        self._lock = threading.Lock()

    def draw(self, count: int) -> Op[list[int]]:
        """*count* ids that nobody else has, growing where they come from one block."""
        found = self._take(count)
        while len(found) < count:
            missing = count - len(found)
            yield from self.refill(-(-missing // BLOCK))
            found += self._take(missing)
        return found

    def refill(self, blocks: int = 1) -> Op[None]:
        """Draw that many blocks."""
        drawn = yield from many(DRAW, blocks)
        with self._lock:
            self._free.extend(range(one.number * BLOCK, (one.number + 1) * BLOCK) for one in drawn)

    def forget(self) -> None:
        """Give out none of those drawn before: the database is another one now."""
        with self._lock:
            self._free.clear()

    def spoiled(self, number: int) -> None:
        """Give out no more of the block of *number*, which somebody else has had too."""
        with self._lock:
            self._free = [one for one in self._free if one[0] // BLOCK != number // BLOCK]

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Draw others for the next try, if those that are used in the block are taken.

        Raises:
            DatabaseUnavailable: They are.
        """
        try:
            yield
        except Exception as error:
            if not are_taken(error):
                raise
            self.forget()
            raise DatabaseUnavailable(
                f"nothing was enqueued: its ids were given out twice, as a fail-over does; the next"
                f" try gets others ({error})"
            ) from error

    @property
    def are_few(self) -> bool:
        """Whether it is time to draw more."""
        return len(self._free) <= 1 and sum(map(len, self._free)) < FEW

    def at_hand(self) -> int | None:
        """One id, if there is one without asking."""
        taken = self._take(1)
        return taken[0] if taken else None

    def _take(self, count: int) -> list[int]:
        taken: list[int] = []
        with self._lock:
            if self._process != os.getpid():  # forked: they are the parent's
                self._process = os.getpid()
                self._free.clear()
            while self._free and len(taken) < count:
                block = self._free[0]
                part = block[: count - len(taken)]
                taken.extend(part)
                if len(part) == len(block):
                    self._free.pop(0)
                else:
                    self._free[0] = block[len(part) :]
        return taken
