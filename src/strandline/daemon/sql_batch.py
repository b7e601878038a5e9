"""Batches of SQL projections: the user's statements, queued by handlers, run behind the fence.

What is put aside has the stream as its key: what a statement touches nobody knows.
"""

from __future__ import annotations

from collections.abc import Sequence

from strandline.daemon.batch import Batch
from strandline.daemon.checkpoint import Checkpoint, move
from strandline.daemon.feed import Appetite, Page
from strandline.daemon.letters import Due, Letter, put_aside, settle
from strandline.daemon.parking import Parking, failing, going_on, of_slice
from strandline.errors import ApplyFailed, EventFailure, StrandlineError, UnknownEventType
from strandline.postgres.pools import Pool
from strandline.projections.documents import Key
from strandline.projections.failure_policy import Decide
from strandline.projections.fold import POSITION, STREAM, TENANT, TYPE, Row
from strandline.projections.slice import WHOLE, Slice
from strandline.projections.sql_projection import OwnTables
from strandline.settings import Settings


class SqlProcessor:
    """Batches of SQL projections: the queued statements run behind the fence, in order.

    Args:
        tables: What the projection does.
        pool: For the batches.
        settings: Sizes.
        part: The slice.
        known: Names of types that are registered, where an event of another one is a failure.
    """

    reads_pages = True
    is_pure = False
    keys_are_streams = True

    def __init__(
        self,
        tables: OwnTables,
        pool: Pool,
        settings: Settings,
        part: Slice = WHOLE,
        *,
        known: frozenset[str] | None = None,
    ) -> None:
        self.label = tables.label
        self.parking = Parking()
        names = tables.names if known is None else None
        self.appetite = Appetite(names, tables.wants_envelope, settings.page_events, part)
        self._wanted = frozenset(tables.names)
        self._known = known
        self._tables = tables
        self._pool = pool
        self._part = part

    async def prepare(
        self, page: Page, *, only: frozenset[Key] | None = None, within: Slice = WHOLE
    ) -> Batch:
        """See ``Processor``."""
        rows: Sequence[Row] = page.rows
        letters: tuple[Letter, ...] = ()
        if only is not None or self.parking:
            rows, letters = going_on(rows, self.parking, only, self._concerns)
        if self._known is not None:
            for row in rows:
                if row[TYPE] not in self._known:
                    raise UnknownEventType(row[TYPE], position=row[POSITION])
        return Batch(page, self._tables.collect(rows), letters)

    async def aside(self, page: Page, error: EventFailure, decide: Decide) -> Batch:
        """See ``Processor``."""
        row = failing(page.rows, error, self._concerns)
        letter = put_aside(row, (row[TENANT], row[STREAM]), error, decide(error))
        return Batch(page, letters=(letter,))

    async def commit(self, batch: Batch, checkpoint: Checkpoint) -> None:
        """See ``Processor``."""
        ceiling = batch.page.ceiling
        if not batch.work and not batch.writes_letters:
            await self._pool.run(move(checkpoint, ceiling))
            return
        try:
            async with self._pool.transaction() as session:
                await session.run(settle(checkpoint, ceiling, batch.letters, batch.closed))
                owner = f"{checkpoint.shard} {checkpoint.epoch}"
                await self._tables.apply_in_runs(session, batch.work or (), owner)
        except StrandlineError:
            raise
        except Exception as error:  # a deferred constraint speaks up at the commit
            raise ApplyFailed(self.label, f"at the commit: {error}") from error
        self.parking.learn(batch.letters)

    async def owned(self, letters: Sequence[Due]) -> Sequence[Due]:
        """See ``Processor``."""
        return of_slice(letters, self._part)

    def forget(self) -> None:
        """See ``Processor``."""

    def _concerns(self, row: Row) -> bool:
        return row[TYPE] in self._wanted or (
            self._known is not None and row[TYPE] not in self._known
        )
