"""How a batch of each kind of projection is made and committed, fenced.

States of a batch: *prepared* (folded in memory, nothing written) → *committed*, or thrown away.

Invariant (I1, I3): what a batch writes and the move of its checkpoint are one transaction, and the
move names epoch, owner and the position it starts from. So a batch is applied exactly once or not
at all, and never by somebody who no longer owns the shard, whatever crashes in between.

What can go wrong, and what then:

* The fence answers no row: ``CheckpointMoved``; the transaction rolls back, the agent stops.
* The connection breaks during the commit: nobody knows. The agent re-reads its checkpoint: it is at
  the batch's ceiling (committed), at its floor (not), or another epoch's (stop).
* The fold raises: nothing was written; in-memory documents are half changed and thrown away.

The next batch may be prepared while this one commits; its documents then build on states that are
not committed yet. That is sound because a failed commit throws both away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from strandline.daemon.cache import DocumentCache
from strandline.daemon.checkpoint import COMMIT_DOCUMENTS, Checkpoint, move
from strandline.daemon.feed import Appetite, Page
from strandline.errors import ApplyFailed, StrandlineError
from strandline.events.codec import EventTypes
from strandline.postgres.operations import one
from strandline.postgres.pools import Pool
from strandline.projections.documents import Documents, Key
from strandline.projections.fold import PageFold
from strandline.projections.multi_stream import MultiStream
from strandline.projections.slice import WHOLE, Slice
from strandline.projections.sql_projection import OwnTables
from strandline.projections.table import TableRows
from strandline.settings import Settings


@dataclass(frozen=True, slots=True)
class Batch:
    """A page, ready to be committed."""

    page: Page
    work: Any = None


class Processor(Protocol):
    """Makes and commits the batches of one shard."""

    label: str
    appetite: Appetite
    reads_pages: bool

    async def prepare(self, page: Page) -> Batch:
        """Do everything that can be done before the transaction."""
        ...

    async def commit(self, batch: Batch, checkpoint: Checkpoint) -> None:
        """Write the batch and move the checkpoint to its ceiling, in one transaction.

        Raises:
            CheckpointMoved: Another epoch owns the shard; nothing was written.
        """
        ...

    def forget(self) -> None:
        """Drop what is kept in memory: it may not be what is committed."""
        ...


class DocumentProcessor:
    """Batches of single- and multi-stream projections.

    A slice of a single-stream one gets the events of its streams only. Which documents an event
    belongs to is known for a multi-stream one only after it was decoded here, so each of its slices
    reads every event, and keeps what concerns its own documents.
    """

    reads_pages = True

    def __init__(
        self,
        documents: Documents[Any],
        types: EventTypes,
        pool: Pool,
        settings: Settings,
        part: Slice = WHOLE,
    ) -> None:
        self.label = documents.projection.label
        self.fold = PageFold(documents.projection, types)
        by_key = isinstance(documents.projection, MultiStream)
        self._kept = part if by_key else WHOLE
        self.appetite = Appetite(
            self.fold.names,
            self.fold.wants_envelope,
            settings.page_events,
            WHOLE if by_key else part,
        )
        self._documents = documents
        self._pool = pool
        self._cache = DocumentCache(settings.cached_documents // part.parts)
        self._commit = COMMIT_DOCUMENTS.about(table=documents.table)

    async def prepare(self, page: Page) -> Batch:
        """See ``Processor``."""
        pieces = self.fold.group(page.rows)
        keys: list[Key] = list(dict.fromkeys([piece[0] for piece in pieces]))
        if self._kept.parts > 1:
            keys = [key for key in keys if self._kept.holds(*key)]
            mine = frozenset(keys)
            pieces = [piece for piece in pieces if piece[0] in mine]
        if not pieces:
            return Batch(page)
        found, missing = self._cache.take(keys)
        if missing:
            found.update(await self._pool.run(self._documents.load(missing)))
        self.fold.apply(pieces, found)
        changes = self._documents.changes(found)
        for document in found.values():
            document.stored = document.state is not None
        self._cache.put(found)
        return Batch(page, changes)

    async def commit(self, batch: Batch, checkpoint: Checkpoint) -> None:
        """See ``Processor``."""
        if batch.work is None:
            await self._pool.run(move(checkpoint, batch.page.ceiling))
            return
        saved, gone = batch.work
        c = checkpoint
        ceiling = batch.page.ceiling
        op = one(self._commit, c.shard, c.owner, c.epoch, c.position, ceiling, saved, gone)
        if await self._pool.run(op) is None:
            raise checkpoint.lost()

    def forget(self) -> None:
        """See ``Processor``."""
        self._cache.clear()


class TableProcessor:
    """Batches of table projections: folded inside PostgreSQL, nothing passes through here."""

    reads_pages = False

    def __init__(
        self, rows: TableRows, pool: Pool, settings: Settings, part: Slice = WHOLE
    ) -> None:
        self.label = rows.label
        self.appetite = Appetite(rows.names, False, settings.table_page_events)
        self._rows = rows
        self._pool = pool
        self._part = part

    async def prepare(self, page: Page) -> Batch:
        """See ``Processor``."""
        return Batch(page)

    async def commit(self, batch: Batch, checkpoint: Checkpoint) -> None:
        """See ``Processor``."""
        page = batch.page
        try:
            async with self._pool.transaction() as session:
                await session.run(move(checkpoint, page.ceiling))
                await session.run(self._rows.apply(page.floor, page.ceiling, self._part))
        except ApplyFailed as error:
            fault = await self._pool.run(
                self._rows.find_fault(page.floor, page.ceiling, self._part)
            )
            if fault is None:
                raise
            raise ApplyFailed(
                self.label, f"column {fault.column!r}: {fault.reason}", position=fault.position
            ) from error

    def forget(self) -> None:
        """See ``Processor``."""


class SqlProcessor:
    """Batches of SQL projections: the queued statements run behind the fence, in order."""

    reads_pages = True

    def __init__(
        self, tables: OwnTables, pool: Pool, settings: Settings, part: Slice = WHOLE
    ) -> None:
        self.label = tables.label
        self.appetite = Appetite(tables.names, tables.wants_envelope, settings.page_events, part)
        self._tables = tables
        self._pool = pool

    async def prepare(self, page: Page) -> Batch:
        """See ``Processor``."""
        return Batch(page, self._tables.collect(page.rows))

    async def commit(self, batch: Batch, checkpoint: Checkpoint) -> None:
        """See ``Processor``."""
        if not batch.work:
            await self._pool.run(move(checkpoint, batch.page.ceiling))
            return
        async with self._pool.transaction() as session:
            await session.run(move(checkpoint, batch.page.ceiling))
            await self._tables.apply_in_runs(session, batch.work)

    def forget(self) -> None:
        """See ``Processor``."""


def blamed(label: str, error: BaseException, positions: Sequence[int] = ()) -> Exception:
    """*error* as the projection's fault, unless it is one of ours already."""
    if isinstance(error, StrandlineError):
        return error
    failed = ApplyFailed(label, repr(error), position=positions[0] if positions else 0)
    failed.__cause__ = error
    return failed
