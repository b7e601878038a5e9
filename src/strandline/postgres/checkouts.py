"""Who holds a connection of a pool: since when, in which transaction, from which line of code.

A pool that is empty, or a transaction that never ends, is somebody's code. So every checkout keeps
the places in the code that led to it. That is cheap, because nothing is formatted: the frames'
code objects and instruction numbers are kept, and become file, line and function only in a message.
"""

from __future__ import annotations

import asyncio
import sys
import sysconfig
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import CodeType
from typing import Any

PLACES = 8  # frames kept: the innermost are the ones that tell
FRAMES = 64  # frames walked at the most
QUERY = 120  # characters of a query shown in a message
TOLD = 3  # holders named in a message

_OURS = str(Path(__file__).parents[1])
_POOLING = {
    str(Path(__file__).with_name(one))
    for one in ("checkouts.py", "pool.py", "pools.py", "blocking.py")
}
_STDLIB = sysconfig.get_path("stdlib")
_PLUMBING = tuple(
    str(Path(_STDLIB, one)) for one in ("asyncio", "contextlib", "concurrent", "threading")
)
# Whoever runs the event loop is below every task, and has begun none of them.
_LOOPS = ("asyncio/events.py", "asyncio/base_events.py", "asyncio/runners.py", "uvloop/__init__.py")
_END, _NOTHING, _OWN, _FOREIGN = range(4)
_kinds: dict[str, int] = {}  # by file: whether its frames tell a reader something

Frames = tuple[tuple[CodeType, int], ...]


@dataclass(frozen=True, slots=True)
class Place:
    """A line of code."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        """On one line."""
        return f"{self.file}:{self.line} in {self.function}"


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a connection, for people.

    Attributes:
        pool: The pool's name.
        age: Seconds since the connection was taken.
        transaction_age: Seconds since its transaction began; None outside of one.
        query: The last statement, shortened; empty before the first.
        places: The callers, the innermost first.
        task: Name of the asyncio task, or of the thread.
    """

    pool: str
    age: float
    transaction_age: float | None
    query: str
    places: tuple[Place, ...]
    task: str

    @property
    def place(self) -> str:
        """Where it was taken."""
        return str(self.places[0]) if self.places else "a place unknown"

    def __str__(self) -> str:
        """In words."""
        what = "a connection" if self.transaction_age is None else "a transaction"
        query = f"last query {self.query!r}" if self.query else "no query yet"
        return f"{what} for {self.age:.1f} s, opened at {self.place} ({self.task}), {query}"


@dataclass(slots=True, eq=False)
class Checkout:
    """A connection outside of its pool.

    Attributes:
        began: When its transaction began; None outside of one.
        watched: Whether it counts as leaked when its transaction lasts.
        ending: Its COMMIT or ROLLBACK is on the way: only the server decides now.
        reported: It was reported as leaked.
        cut: Why the connection was closed under its holder; empty as long as it was not.
        query: The last statement, where the connection itself does not know it.
        over: It is back in the pool, and may be somebody else's.
    """

    pool: str
    connection: Any
    frames: Frames
    task: str
    since: float = field(default_factory=time.monotonic)
    began: float | None = None
    watched: bool = True
    ending: bool = False
    reported: bool = False
    cut: str = ""
    query: str = ""
    over: bool = False

    def holder(self) -> Holder:
        """It now."""
        now = time.monotonic()
        return Holder(
            pool=self.pool,
            age=now - self.since,
            transaction_age=None if self.began is None else now - self.began,
            query=shortened(self.query or getattr(self.connection, "last_query", "")),
            places=places(self.frames),
            task=self.task,
        )


def checkout(pool: str, connection: Any) -> Checkout:
    """The checkout of *connection* by whoever calls."""
    return Checkout(pool, connection, callers(), _task())


def told(checkouts: Iterable[Checkout]) -> str:
    """The oldest of *checkouts*, in words, for the end of a message."""
    oldest = sorted(checkouts, key=lambda one: one.since)[:TOLD]
    if not oldest:
        return ""
    return "; held longest: " + "; ".join(str(one.holder()) for one in oldest)


def leak_words(holder: Holder, leak_after: float) -> str:
    """What is logged of a transaction that is open for too long."""
    calls = " < ".join(str(one) for one in holder.places) or "unknown"
    return f"pool {holder.pool}: leak_after is {leak_after} s: {holder}; its callers: {calls}"


def cut_words(holder: Holder, leak_rollback_after: float) -> str:
    """What the holder of a transaction is told that was ended by force."""
    return (
        f"the transaction was open for {holder.transaction_age or 0:.1f} s and leak_rollback_after"
        f" is {leak_rollback_after} s: it was rolled back and its connection closed; opened at"
        f" {holder.place}; end it sooner, or raise leak_rollback_after"
    )


def callers() -> Frames:
    """The code that led here, the innermost first, without the event loop's and our own.

    Where there is no other, as in a background loop, it is ours.
    """
    found: list[tuple[CodeType, int]] = []
    own: list[tuple[CodeType, int]] = []
    frame = sys._getframe(1)
    for _ in range(FRAMES):
        code = frame.f_code
        kind = _kinds.get(code.co_filename)
        if kind is None:
            kind = _kinds[code.co_filename] = _kind(code.co_filename)
        if kind == _FOREIGN:
            found.append((code, frame.f_lasti))
            if len(found) == PLACES:
                break
        elif kind == _OWN and len(own) < PLACES:
            own.append((code, frame.f_lasti))
        if kind == _END or frame.f_back is None:
            break
        frame = frame.f_back
    return tuple(found or own)


def places(frames: Frames) -> tuple[Place, ...]:
    """*frames* with file, line and function."""
    return tuple(Place(code.co_filename, _line(code, at), code.co_qualname) for code, at in frames)


def shortened(query: str) -> str:
    """*query* on one line, cut to what a message can bear."""
    line = " ".join(query[: 4 * QUERY].split())
    return line if len(line) <= QUERY else line[: QUERY - 3] + "..."


def _line(code: CodeType, instruction: int) -> int:
    """The line of an instruction, which f_lasti counts in bytes and co_positions in pairs."""
    found = next(islice(code.co_positions(), max(0, instruction) // 2, None), None)
    return (found[0] if found else None) or code.co_firstlineno


def _kind(file: str) -> int:
    if file.endswith(_LOOPS):
        return _END
    if file in _POOLING or file.startswith((*_PLUMBING, "<frozen")):
        return _NOTHING
    return _OWN if file.startswith(_OURS) else _FOREIGN


def _task() -> str:
    try:
        current = asyncio.current_task()
    except RuntimeError:  # a thread without an event loop
        return f"thread {threading.current_thread().name!r}"
    return f"task {current.get_name()!r}" if current else "no task"
