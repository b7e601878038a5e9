"""One loader per database and node, shared by all agents there.

An agent asks for the page after its position. Near the mark all agents ask for the same events,
so such a page is fetched once (and decoded once, where objects cannot change) and handed to each;
slices get their parts of it. Far behind, an agent gets pages of its own, filtered by type and slice
inside PostgreSQL. A page never reaches beyond the high-water mark.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from strandline.errors import EventFailure
from strandline.events.codec import EventTypes
from strandline.events.sharing import is_unchangeable
from strandline.postgres.operations import Call, Op, Rows
from strandline.postgres.pools import Pool
from strandline.postgres.statements import SqlFile
from strandline.projections.fold import DATA, METADATA, POSITION, TYPE, Row
from strandline.projections.slice import WHOLE, Slice
from strandline.settings import Settings
from strandline.telemetry import tracing

KEPT_PAGES = 4  # agents at the head are at most a few pages apart
WINDOW = 200_000  # positions a filtered page looks through, so that rare types cannot time out
FIRST_PAGE = 256  # events, until the size of this log's events is known
HASH = METADATA + 1  # column of pages to cut


@dataclass(frozen=True, slots=True)
class Page:
    """Events after *floor*; with them everything up to *ceiling* is seen.

    In a shared page the data of types whose objects cannot change is decoded already.
    """

    floor: int
    ceiling: int
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class Appetite:
    """What an agent wants in its pages.

    Attributes:
        names: Stored names of types; None for all.
        full: Whether with the columns that envelopes need.
        most: Events at the most.
        slice: Of which streams.
        tenant: Only events of this one; None for all.
        streams: Only events of these streams of the tenant; empty for all.
        shares: Whether a page that others have asked for will do.
    """

    names: tuple[str, ...] | None
    full: bool
    most: int
    slice: Slice = WHOLE
    tenant: str | None = None
    streams: tuple[str, ...] = ()
    shares: bool = True


class SharedPage:
    """A page for every agent at the head, and its parts for slices, cut once for each number."""

    __slots__ = ("_cuts", "page")

    def __init__(self, page: Page) -> None:
        self.page = page
        self._cuts: dict[int, list[Page]] = {}

    def of(self, part: Slice) -> Page:
        """What *part* gets of it."""
        if part.parts == 1:
            return self.page
        cuts = self._cuts.get(part.parts)
        if cuts is None:
            cuts = self._cuts[part.parts] = self._cut(part.parts)
        return cuts[part.part - 1]

    def _cut(self, parts: int) -> list[Page]:
        rows: list[list[Row]] = [[] for _ in range(parts)]
        for row in self.page.rows:
            rows[row[HASH] % parts].append(row)
        return [Page(self.page.floor, self.page.ceiling, some) for some in rows]


_sql = SqlFile(__name__)
SHARED = _sql.many("shared_page", tuple)
SHARED_TO_CUT = _sql.many("shared_page_to_cut", tuple)
LEAN = _sql.many("lean_page", tuple)
TRACED = _sql.many("traced_page", tuple)
FULL = _sql.many("full_page", tuple)
SLICED = _sql.many("sliced_page", tuple)
SLICED_LEAN = _sql.many("sliced_lean_page", tuple)
SLICED_TRACED = _sql.many("sliced_traced_page", tuple)
SLICED_FULL = _sql.many("sliced_full_page", tuple)
OF_TENANT = _sql.many("page_of_tenant", tuple)
OF_STREAMS = _sql.many("page_of_streams", tuple)


class Feed:
    """Pages of events up to the mark, and the news that the mark has moved."""

    def __init__(self, pool: Pool, types: EventTypes, settings: Settings) -> None:
        self.mark = 0
        self._pool = pool
        self._types = types
        self._settings = settings
        self._moved = asyncio.Event()
        self._shared: OrderedDict[int, asyncio.Task[SharedPage]] = OrderedDict()
        self._to_cut = False  # whether shared pages must tell slices apart
        self._shareable: dict[str, bool] = {}
        self._event_bytes = 0.0  # mean JSON size seen lately
        self.agents = 0

    def move(self, mark: int) -> None:
        """The mark is at *mark* now; wakes every agent that waits."""
        if mark > self.mark:
            self.mark = mark
            moved, self._moved = self._moved, asyncio.Event()
            moved.set()

    def move_back(self, mark: int) -> None:
        """The database went back to *mark*: what was beyond it is no longer true."""
        self.mark = mark
        self._shared.clear()
        self.wake()

    def forget_pages(self) -> None:
        """Hand out none that was read by now: an event may have turned up late, in a gap behind it."""
        self._shared.clear()

    def wake(self) -> None:
        """Let every waiting agent look again, though the mark has not moved."""
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def beyond(self, position: int) -> None:
        """Wait until the mark is beyond *position*, or ``wake`` is called."""
        if self.mark <= position:
            await self._moved.wait()

    async def page(self, after: int, appetite: Appetite) -> Page:
        """The page after position *after*; empty when the mark is not beyond it.

        Raises:
            Unavailable: The database did not answer; ask again.
        """
        mark = self.mark
        if after >= mark:
            return Page(after, after, ())
        shared = min(self._settings.page_events, appetite.most)  # a subscription may want less
        part = appetite.slice
        if appetite.shares and self.agents > 1 and mark - after <= shared:
            if part.parts > 1 and not self._to_cut:
                self._to_cut = True
                self._shared.clear()
            return (await self._at_the_head(after, mark)).of(part)
        most = self._limit(appetite.most)
        if appetite.names is None and part.parts == 1 and appetite.tenant is None:
            rows = await self._pool.run(_rows(SHARED, after, mark, most))
        else:
            if not appetite.streams:  # an index leads to theirs, however far apart
                mark = min(mark, after + WINDOW)
            rows = await self._pool.run(_filtered(appetite, after, mark, most))
        return self._page(after, mark, most, rows)

    async def _at_the_head(self, after: int, mark: int) -> SharedPage:
        task = self._shared.get(after)
        if task is not None and task.done() and (task.cancelled() or task.exception()):
            task = None
        if task is None or (task.done() and _is_outdated(task.result().page, mark)):
            task = asyncio.create_task(self._fetch_shared(after, mark))
            self._shared[after] = task
            while len(self._shared) > KEPT_PAGES:
                self._shared.popitem(last=False)
        return await asyncio.shield(task)

    async def _fetch_shared(self, after: int, mark: int) -> SharedPage:
        most = self._limit(self._settings.page_events)
        statement = SHARED_TO_CUT if self._to_cut else SHARED
        rows = await self._pool.run(_rows(statement, after, mark, most))
        page = self._page(after, mark, most, rows)
        return SharedPage(Page(page.floor, page.ceiling, [self._decoded(row) for row in rows]))

    def _decoded(self, row: Row) -> Row:
        name = row[TYPE]
        if not self._may_be_shared(name):
            return row
        try:
            event = self._types.decode(name, row[DATA])
        except EventFailure:
            return row  # an agent that wants it will meet the error, and say so
        return (*row[:DATA], event, *row[DATA + 1 :])

    def _may_be_shared(self, name: str) -> bool:
        known = self._shareable.get(name)
        if known is None:
            cls = self._types.classes.get(name)
            known = self._shareable[name] = cls is not None and is_unchangeable(cls)
        return known

    def _page(self, after: int, mark: int, most: int, rows: Rows) -> Page:
        if rows:
            sample = rows[:: max(1, len(rows) // 16)]
            mean = sum(len(row[DATA]) for row in sample) / len(sample)
            self._event_bytes = max(mean, 0.5 * (self._event_bytes + mean))
        return Page(after, mark if len(rows) < most else rows[-1][POSITION], rows)

    def _limit(self, most: int) -> int:
        if not self._event_bytes:
            return min(most, FIRST_PAGE)
        return max(1, min(most, int(self._settings.page_bytes / self._event_bytes)))


def _is_outdated(page: Page, mark: int) -> bool:
    """Whether it found nothing where there may be something by now."""
    return page.ceiling < mark and not page.rows


def _filtered(appetite: Appetite, after: int, mark: int, most: int) -> Op[Rows]:
    part, full = appetite.slice, appetite.full
    if appetite.tenant is not None:
        types = None if appetite.names is None else list(appetite.names)
        of: list[Any] = [part.part, part.parts, types, appetite.tenant]
        if appetite.streams:
            return _rows(OF_STREAMS, after, mark, most, *of, list(appetite.streams))
        return _rows(OF_TENANT, after, mark, most, *of)
    names = [] if appetite.names is None else [list(appetite.names)]
    lean, sliced_lean = (TRACED, SLICED_TRACED) if tracing.is_on() else (LEAN, SLICED_LEAN)
    if part.parts == 1:
        return _rows(FULL if full else lean, after, mark, most, *names)
    statement = (SLICED_FULL if full else sliced_lean) if names else SLICED
    return _rows(statement, after, mark, most, part.part, part.parts, *names)


def _rows(statement: Any, *arguments: Any) -> Op[Rows]:
    return (yield Call(statement, arguments))
