"""How far jobs are: told as often as they like, written once a second, all of a node together."""

from __future__ import annotations

import asyncio
import threading
from datetime import datetime

import msgspec

from strandline.clock import Clock, SystemClock
from strandline.errors import InvalidInput
from strandline.jobs.row import Claimed
from strandline.loops import Loop, Rhythm
from strandline.postgres.operations import Op, none
from strandline.postgres.pool import Pool
from strandline.postgres.statements import SqlFile

GAP = 1.0  # seconds between two writes of one node
LONGEST_MESSAGE = 1_000  # characters

_sql = SqlFile(__name__)
WRITE = _sql.none("write_progress")


class Told(msgspec.Struct, omit_defaults=True):
    """What column ``progress`` holds."""

    at: datetime
    done: float | None = None
    total: float | None = None
    message: str = ""


def write(told: dict[int, tuple[int, str]]) -> Op[None]:
    """Write what was *told*: by id, the claim and the JSON."""
    ids = sorted(told)
    yield from none(WRITE, ids, [told[one][0] for one in ids], [told[one][1] for one in ids])


class ProgressBoard:
    """Keeps the latest word of each job until it is written, under the job's claim."""

    def __init__(self, pool: Pool, *, gap: float = GAP, clock: Clock | None = None) -> None:
        self._pool = pool
        self._clock = clock or SystemClock()
        self._told: dict[int, tuple[int, str]] = {}
        self._lock = threading.Lock()
        self._events: asyncio.AbstractEventLoop | None = None
        self._loop = Loop("job progress", self._write, Rhythm(interval=60.0, limit=10.0, gap=gap))

    def start(self) -> None:
        """Begin to write."""
        self._events = asyncio.get_running_loop()
        self._loop.start()

    def note(self, job: Claimed, done: float | None, total: float | None, message: str) -> None:
        """Note how far *job* is, from any thread.

        Raises:
            InvalidInput: It is not told in numbers.
        """
        for one in (done, total):
            if one is not None and not isinstance(one, int | float):
                raise InvalidInput(f"progress is told in numbers, not {one!r}")
        words = str(message)[:LONGEST_MESSAGE].replace("\0", "\N{REPLACEMENT CHARACTER}")
        words = words.encode(errors="replace").decode()
        text = msgspec.json.encode(Told(self._clock.now(), done, total, words)).decode()
        with self._lock:
            is_first = not self._told
            self._told[job.id] = (job.claim, text)
        if is_first and self._events is not None:
            try:
                self._events.call_soon_threadsafe(self._loop.wake)
            except RuntimeError:  # the loop is closed: a thread that was left to itself still tells
                return

    async def stop(self, *, timeout: float = 5.0) -> None:
        """Write what is left, and end."""
        await self._loop.stop(timeout=timeout)
        if self._told:
            await self._write()

    async def _write(self) -> None:
        with self._lock:
            told, self._told = self._told, {}
        if not told:
            return
        try:
            await self._pool.run(write(told))
        except BaseException:
            with self._lock:  # for the next time, but for what was told since
                self._told = told | self._told
            raise
