"""What the completer sends in one piece."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from strandline.jobs import completion
from strandline.jobs.completion import Held
from strandline.jobs.row import LINKED, Ended
from strandline.jobs.telling import told
from strandline.telemetry.signals import Signals

MOST_PLAIN = 5_000  # completions in one statement
MOST_OTHERS = 1_000
MOST_BYTES = 16_777_216  # of results in one statement


@contextmanager
def timed(signals: Signals, flush: Flush) -> Iterator[None]:
    """Tell how long *flush* took, unless it failed."""
    begun, size = time.monotonic(), flush.size
    yield
    told(signals, "jobs_flushed", count=size, seconds=time.monotonic() - begun)


@dataclass(slots=True)
class Flush:
    """What goes in one statement, or one transaction.

    Attributes:
        groups: Ids by claim of completed jobs of which nothing is kept.
        items: Others; all of them completed and unlinked where *is_kept*.
        is_doubtful: An answer was lost: some of it may be written.
        is_stripped: Without anything that could be bad data.
        was_aside: It could not be written before, and waited while others were.
        delays: How often it had no answer in time, or was in conflict with somebody else.
        due: When it is tried again, while it waits aside.
    """

    groups: dict[int, list[int]] | None = None
    items: Sequence[Ended] = ()
    is_kept: bool = False
    is_linked: bool = False
    is_doubtful: bool = False
    is_stripped: bool = False
    was_aside: bool = False
    delays: int = 0
    due: float = 0.0

    @property
    def size(self) -> int:
        """How many attempts."""
        return len(self.items) if self.groups is None else sum(map(len, self.groups.values()))

    @property
    def bytes(self) -> int:
        """Of results, about."""
        return sum(len(one.result) for one in self.items if one.result is not None)

    def held(self) -> list[Held]:
        """Under which claims its jobs were run."""
        if self.groups is None:
            return [
                Held(one.job.id, one.job.claim, one.job.attempt, one.ending) for one in self.items
            ]
        groups = self.groups.items()
        return [Held(one, claim, 0, "completed") for claim, ids in groups for one in ids]

    def halves(self) -> list[Flush]:
        """The same in two; itself, if it is one alone."""
        if self.size < 2:
            return [self]
        return [self._of(cut) for cut in self._halves()]

    def stripped(self) -> Flush | None:
        """One alone without its data; None if there is none."""
        if self.groups is not None or self.is_stripped:
            return None
        stripped = self._of([completion.stripped(one) for one in self.items])
        stripped.is_stripped = True
        return stripped

    def parted(self, ids: Collection[int]) -> tuple[Flush, Flush]:
        """The same in two: those of *ids*, and the others."""
        if self.groups is None:
            inside = [one for one in self.items if one.job.id in ids]
            return self._of(inside), self._of([one for one in self.items if one.job.id not in ids])
        those, others = {}, {}
        for claim, group in self.groups.items():
            those[claim] = [one for one in group if one in ids]
            others[claim] = [one for one in group if one not in ids]
        return self._of(those), self._of(others)

    def _halves(self) -> list[Sequence[Ended] | dict[int, list[int]]]:
        if self.groups is None:
            middle = len(self.items) // 2
            return [self.items[:middle], self.items[middle:]]
        pairs = [(claim, one) for claim, ids in self.groups.items() for one in ids]
        middle = len(pairs) // 2
        cuts: list[dict[int, list[int]]] = [{}, {}]
        for number, (claim, one) in enumerate(pairs):
            cuts[number >= middle].setdefault(claim, []).append(one)
        return list(cuts)

    def _of(self, cut: Sequence[Ended] | dict[int, list[int]]) -> Flush:
        flush = replace(self, groups=None, items=())
        if isinstance(cut, dict):
            flush.groups = cut
        else:
            flush.items = cut
        return flush


def grouped(groups: dict[int, list[int]]) -> Flush:
    """Takes from *groups* what goes next: the claims that came first."""
    taken: dict[int, list[int]] = {}
    count = 0
    while groups and count < MOST_PLAIN:
        claim = next(iter(groups))
        taken[claim] = groups.pop(claim)
        count += len(taken[claim])
    return Flush(taken)


def gathered(others: deque[Ended]) -> list[Flush]:
    """Takes from *others* what goes next."""
    kept: list[Ended] = []
    linked: list[Ended] = []
    rest: list[Ended] = []
    count = size = 0
    while others and count < MOST_OTHERS and size < MOST_BYTES:
        one = others.popleft()
        count += 1
        size += 0 if one.result is None else len(one.result)
        if one.job.flags & LINKED:
            linked.append(one)
        elif one.ending == "completed" and not one.reason:
            kept.append(one)
        else:
            rest.append(one)
    flushes = [
        Flush(items=kept, is_kept=True),
        Flush(items=linked, is_linked=True),
        Flush(items=rest),
    ]
    return [one for one in flushes if one.items]
