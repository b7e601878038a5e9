"""Pages of one shard, one after the other: while a batch commits, the next is fetched and folded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from strandline.daemon.batch import Batch, Processor
from strandline.daemon.failures import Ledger, Phase
from strandline.daemon.feed import Feed, Page
from strandline.daemon.spanned import BatchSpans, failing, told
from strandline.projections.fold import POSITION
from strandline.telemetry import tracing


class Pipeline:
    """The way from pages to committed batches of one shard.

    Args:
        processor: Makes the batches.
        feed: Gives the pages.
        ledger: Notes where errors are raised.
        limit: Nothing beyond this position may be processed yet.
        commit: Commits a batch and moves the checkpoint.
        is_over: Whether the agent was told to stop.
        spans: Of the batches.
    """

    def __init__(
        self,
        processor: Processor,
        feed: Feed,
        ledger: Ledger,
        *,
        limit: Callable[[], int],
        commit: Callable[[Batch], Coroutine[Any, Any, None]],
        is_over: Callable[[], bool],
        spans: BatchSpans,
    ) -> None:
        self._processor = processor
        self._feed = feed
        self._ledger = ledger
        self._limit = limit
        self._commit = commit
        self._is_over = is_over
        self.spans = spans

    async def run(self, after: int) -> None:
        """Process everything after position *after*, up to the limit."""
        committing: asyncio.Task[None] | None = None
        fetching = self._fetch(after)
        try:
            while not self._is_over():
                page, asked, had = await fetching
                if page.ceiling == page.floor:
                    break
                fetching = self._fetch(page.ceiling)
                span = self.spans.begun(page, asked, had)
                with failing(span):
                    await asyncio.sleep(0)  # lets the fetch go out before the fold is begun
                    with self.spans.apply(), self._ledger.during(Phase.APPLY, page.rows):
                        began = time.monotonic()
                        batch = replace(await self._processor.prepare(page), began=began)
                    if committing is not None:
                        await committing
                committing = asyncio.create_task(self._committed(batch, span))
            if committing is not None:
                await committing
                committing = None
        except asyncio.CancelledError:
            if committing is not None:
                committing.cancel()  # the user's code may be in it, and never return
            raise
        finally:
            fetching.cancel()
            await _ended(fetching)
            if committing is not None:
                await _ended(committing)

    async def page(self, after: int) -> Page:
        """The page after position *after*; empty if there is nothing below the limit."""
        with self._ledger.during(Phase.FETCH):
            return await self._page(after)

    def _fetch(self, after: int) -> asyncio.Task[tuple[Page, float, float]]:
        return asyncio.create_task(self._loaded(after))

    async def _loaded(self, after: int) -> tuple[Page, float, float]:
        """The page after position *after*; when it was asked for, and when it was there."""
        asked = time.time()
        page = await self.page(after)
        return page, asked, time.time()

    async def _committed(self, batch: Batch, span: tracing.AnySpan) -> None:
        told(span, batch)
        with span:
            await self._commit(batch)

    async def _page(self, after: int) -> Page:
        processor, limit = self._processor, self._limit()
        if after >= limit:
            return Page(after, after, ())
        if not processor.reads_pages:
            return Page(after, min(limit, after + processor.appetite.most), ())
        page = await self._feed.page(after, processor.appetite)
        if page.ceiling <= limit:
            return page
        return replace(
            page, ceiling=limit, rows=[row for row in page.rows if row[POSITION] <= limit]
        )


async def _ended(task: asyncio.Task[Any]) -> None:
    """Wait for a task under way: what a commit does must be known before anything else is done."""
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # told already by what is being raised
