"""What `strandline top` shows of a picture: which pane, in which order, from which line; and rates."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from strandline.cli.keys import QUIT
from strandline.survey.facts import DOWN, ShardFacts, Survey

PANES = {"1": "shards", "2": "nodes", "3": "queues", "4": "attention"}
SORTS = ("lag", "state", "rate", "name")
SCROLLS = {"up": -1, "k": -1, "down": 1, "j": 1, "page up": -10, "page down": 10, " ": 10}
WORST_FIRST = ("paused", *DOWN, "claiming", "held", "rebuilding", "running")
OVER = 10.0  # seconds that rates are taken over


@dataclass(frozen=True, slots=True)
class View:
    """What one has asked for.

    Attributes:
        pane: The only one shown; empty: all of them.
        sort: Of shards, one of ``SORTS``.
        first: Rows of the pane that are scrolled away.
        is_paused: Nothing new is looked at.
        is_over: The key that quits was pressed.
    """

    pane: str = ""
    sort: str = "lag"
    first: int = 0
    is_paused: bool = False
    is_over: bool = False

    def pressed(self, key: str) -> View:
        """The view after *key*; the same if it means nothing."""
        change: dict[str, Any] = {}
        if key == QUIT:
            change = {"is_over": True}
        elif key == "p":
            change = {"is_paused": not self.is_paused}
        elif key == "s":
            change = {"sort": SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)], "first": 0}
        elif key in PANES or key == "0":
            pane = PANES.get(key, "")
            change = {"pane": "" if pane == self.pane else pane, "first": 0}
        elif key in SCROLLS:
            change = {"first": max(0, self.first + SCROLLS[key])}
        return replace(self, **change)


def ordered(shards: Sequence[ShardFacts], sort: str) -> list[ShardFacts]:
    """*shards* with what matters most first."""
    if sort == "name":
        return list(shards)
    if sort == "rate":
        return sorted(shards, key=lambda one: -one.rate)
    if sort == "state":
        return sorted(shards, key=lambda one: (WORST_FIRST.index(one.state), -one.lag_events))
    return sorted(
        shards, key=lambda one: (-one.lag_events, WORST_FIRST.index(one.state), -one.lag_seconds)
    )


def shares(room: int, wanted: Sequence[int]) -> list[int]:
    """So many of *room* lines for each: none gets more than it wants, and none that wants less gives way."""
    found = [0] * len(wanted)
    open_ones = [place for place, number in enumerate(wanted) if number]
    left = max(0, room)
    while open_ones and left:
        each = max(1, left // len(open_ones))
        for place in list(open_ones):
            given = min(each, wanted[place] - found[place], left)
            found[place] += given
            left -= given
            if found[place] == wanted[place]:
                open_ones.remove(place)
    return found


@dataclass(frozen=True, slots=True)
class _Count:
    at: datetime
    events: int
    jobs: int | None


@dataclass(slots=True)
class Rates:
    """How much there is a second, from surveys one after another; None before that can be told."""

    events: float | None = None
    jobs: float | None = None
    _counts: deque[_Count] = field(default_factory=deque)

    def add(self, survey: Survey) -> None:
        """Take in the newest survey."""
        jobs = None if survey.server is None else survey.server.jobs_ended
        now = _Count(survey.taken_at, survey.mark.highest, jobs)
        while len(self._counts) > 1 and (now.at - self._counts[1].at).total_seconds() >= OVER:
            self._counts.popleft()
        if self._counts and self._counts[-1].events > now.events:  # another database, restored
            self._counts.clear()
        self._counts.append(now)
        first = self._counts[0]
        seconds = (now.at - first.at).total_seconds()
        if seconds <= 0:
            self.events = self.jobs = None
            return
        self.events = (now.events - first.events) / seconds
        if now.jobs is not None and first.jobs is not None:
            self.jobs = max(0.0, (now.jobs - first.jobs) / seconds)
