"""Batches of table projections: folded inside PostgreSQL, behind the fence.

An event touches a row by each of its rules. When one cannot be stored, that row's line alone is put
aside, found by folding row by row on trial; the others are applied. A parked row is spared from then
on, and its events become letters, until they are folded in their order.

An event whose key cannot be read has letters with an empty key: nobody knows what it should have
done, so it cannot be done later either, and a rebuild is the cure.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from strandline.daemon.batch import Batch
from strandline.daemon.checkpoint import Checkpoint
from strandline.daemon.feed import Appetite, Page
from strandline.daemon.letters import Due, Letter, behind, put_aside, settle, write
from strandline.daemon.parking import Parking
from strandline.errors import ApplyFailed, EventFailure, UnknownEventType
from strandline.postgres.pools import Pool
from strandline.projections.documents import Key
from strandline.projections.failure_policy import Action, Decide
from strandline.projections.fold import POSITION, TENANT, Row
from strandline.projections.slice import WHOLE, Slice
from strandline.projections.table import TableRows
from strandline.projections.table_faults import Fault, ParkedLine
from strandline.settings import Settings


@dataclass(frozen=True, slots=True)
class Folding:
    """A page that is folded into all rows but some.

    Attributes:
        failing: Rows for which its only event fails; None: it fails for all of them.
        parked: Rows that wait; its events of them are in the batch's letters.
    """

    failing: frozenset[Key] | None
    parked: frozenset[Key]

    @property
    def spared(self) -> frozenset[Key]:
        """Rows that are left as they are."""
        return self.parked | (self.failing or frozenset())


@dataclass(frozen=True, slots=True)
class Again:
    """Events that rows had been kept from."""

    positions: tuple[int, ...]
    only: frozenset[Key]


class TableProcessor:
    """Batches of table projections: folded inside PostgreSQL, nothing passes through here.

    Args:
        rows: The table.
        pool: The work pool.
        settings: Of the app.
        part: Whose rows.
        known: Stored names of all types that are registered, if an event of another type is a
            failure; None if it is passed over.
    """

    reads_pages = False
    is_pure = True
    keys_are_streams = False

    def __init__(
        self,
        rows: TableRows,
        pool: Pool,
        settings: Settings,
        part: Slice = WHOLE,
        *,
        known: Collection[str] | None = None,
    ) -> None:
        self.label = rows.label
        self.parking = Parking()
        self.appetite = Appetite(rows.names, False, settings.table_page_events)
        self._rows = rows
        self._pool = pool
        self._part = part
        self._known = known

    # ---- making batches

    async def prepare(
        self, page: Page, *, only: frozenset[Key] | None = None, within: Slice = WHOLE
    ) -> Batch:
        """See ``Processor``.

        Raises:
            UnknownEventType: An event's type is not registered, and that counts as a failure.
            ApplyFailed: What is replayed cannot be: its rows are not known, or others by now.
        """
        if only is not None:
            positions = tuple(row[POSITION] for row in page.rows)
            await self._refuse_lost(positions, only)
            return Batch(page, Again(positions, only))
        if self._known is not None:
            found = await self._pool.run(
                self._rows.faults.first_unknown(page.floor, page.ceiling, self._known)
            )
            if found is not None:
                raise UnknownEventType(found.type, position=found.position)
        return await self._folding(page, frozenset())

    async def aside(self, page: Page, error: EventFailure, decide: Decide) -> Batch:
        """See ``Processor``. The page is of one position.

        Raises:
            EventFailure: *error*: the page is wider, or none of its rows fails by itself.
        """
        row = await self._row(page.ceiling) if page.ceiling - page.floor == 1 else None
        if row is None:
            raise error
        nobodys = (row[TENANT], "")
        if not isinstance(error, ApplyFailed):  # its type is unknown, so it touches no row
            return await self._folding(page, None, put_aside(row, nobodys, error, Action.SKIP))
        faults, spared = self._rows.faults, self.parking.keys
        try:
            async with self._pool.transaction(watched=False) as session:
                failing = await session.run(
                    faults.failing_rows(page.ceiling, self._part, spared=spared)
                )
        except ApplyFailed:
            return await self._folding(page, None, put_aside(row, nobodys, error, Action.SKIP))
        if not failing:
            raise error
        action = decide(error)
        letters = [
            put_aside(row, (one.tenant, one.key), error, action)
            if one.keyed
            else put_aside(row, nobodys, error, Action.SKIP)
            for one in failing
        ]
        keys = frozenset((one.tenant, one.key) for one in failing)
        return await self._folding(page, keys, *letters)

    async def _folding(self, page: Page, failing: frozenset[Key] | None, *letters: Letter) -> Batch:
        """A batch of *page*, with letters for its events of parked rows."""
        parked = self.parking.keys
        if parked and failing is not None:
            try:
                letters += await self._waiting(page, parked)
            except ApplyFailed as error:
                raise await self._located(page, parked, error) from error
        return Batch(page, Folding(failing, parked), letters)

    async def _row(self, position: int) -> Row | None:
        found = await self._pool.run(self._rows.faults.event(position))
        if found is None:
            return None
        return (found.position, found.tenant, found.stream, found.version, found.type)

    async def _refuse_lost(self, positions: Sequence[int], only: frozenset[Key]) -> None:
        """Refuse events that are about other rows now than they were put aside for: too late."""
        touched = await self._pool.run(self._rows.faults.touched(positions))
        rows: dict[int, set[Key]] = {}
        for one in touched:
            if one.keyed:
                rows.setdefault(one.position, set()).add((one.tenant, one.key))
        for position, keys in rows.items():
            if not keys & only:
                known = all(name for _, name in only)
                then = "another row than it was parked for" if known else "rows that were not known"
                reason = f"it is about {then} when later events went on: rebuild the table"
                raise ApplyFailed(self.label, reason, position=position)

    # ---- committing them

    async def commit(self, batch: Batch, checkpoint: Checkpoint) -> None:
        """See ``Processor``."""
        page, work = batch.page, batch.work
        if isinstance(work, Again):
            await self._commit_again(batch, work, checkpoint)
            return
        folding: Folding = work or Folding(frozenset(), frozenset())
        if folding.parked != self.parking.keys:  # it was made before the last one was committed
            own = [one for one in batch.letters if one.category is not None]
            made = await self._folding(page, folding.failing, *own)
            batch, folding = replace(made, closed=batch.closed), made.work
        try:
            async with self._pool.transaction() as session:
                await session.run(settle(checkpoint, page.ceiling, closed=batch.closed))
                if folding.failing is not None:
                    within = (page.floor, page.ceiling, self._part)
                    await session.run(self._rows.apply(*within, spared=folding.spared))
                if batch.letters:
                    await session.run(write(checkpoint.shard, batch.letters))
        except ApplyFailed as error:
            raise await self._located(page, folding.spared, error) from error
        self.parking.learn(batch.letters)

    async def _commit_again(self, batch: Batch, work: Again, checkpoint: Checkpoint) -> None:
        try:
            async with self._pool.transaction() as session:
                await session.run(settle(checkpoint, batch.page.ceiling, closed=batch.closed))
                await session.run(self._rows.apply_again(work.positions, work.only, self._part))
                if batch.letters:
                    await session.run(write(checkpoint.shard, batch.letters))
        except ApplyFailed as error:
            if len(work.positions) == 1:
                error.position = work.positions[0]
            raise
        self.parking.learn(batch.letters)

    async def _waiting(self, page: Page, parked: frozenset[Key]) -> tuple[Letter, ...]:
        """Letters for the page's events of parked rows."""
        faults = self._rows.faults
        lines = await self._pool.run(faults.parked(page.floor, page.ceiling, self._part, parked))
        return tuple(_behind(line) for line in lines)

    async def _located(self, page: Page, spared: frozenset[Key], error: ApplyFailed) -> ApplyFailed:
        """*error* with the first event that fails."""
        within = (page.floor, page.ceiling, self._part)
        found = await self._pool.run(self._rows.find_fault(*within, spared=spared))
        if found is None and page.ceiling - page.floor > 1:
            async with self._pool.transaction(watched=False) as session:
                found = await session.run(self._rows.faults.find_by_trial(*within, spared=spared))
        if found is None:
            if page.ceiling - page.floor > 1:
                return error  # it does not fail any more
            found = Fault(page.ceiling, "", error.reason)
        column = f"column {found.column!r}: " if found.column else ""
        return ApplyFailed(self.label, column + found.reason, position=found.position)

    async def owned(self, letters: Sequence[Due]) -> Sequence[Due]:
        """See ``Processor``."""
        part = self._part
        if part.parts == 1:
            return letters
        named = [one.id for one in letters if one.key]
        mine = await self._pool.run(self._rows.faults.owned(named, part)) if named else set()
        return [one for one in letters if (one.id in mine if one.key else part.part == 1)]

    def forget(self) -> None:
        """See ``Processor``."""


def _behind(line: ParkedLine) -> Letter:
    row = (line.position, line.tenant, line.stream, line.version, line.type)
    return behind(row, (line.tenant, line.key))
