"""Batches of subscriptions: the user's function, and the checkpoint.

What is put aside has the stream as its key: the function sees a stream's events in order, and none of
those behind one that waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from strandline.daemon.batch import Batch
from strandline.daemon.blame import blaming
from strandline.daemon.checkpoint import Checkpoint, move
from strandline.daemon.effects import Begin, check_constraints
from strandline.daemon.feed import Appetite, Page
from strandline.daemon.letters import Due, Letter, put_aside, settle, write
from strandline.daemon.parking import Parking, failing, going_on, of_slice
from strandline.errors import (
    ApplyFailed,
    EventFailure,
    TransactionFailed,
    UnknownEventType,
    shown,
)
from strandline.events.causes import caused_by
from strandline.events.codec import EventTypes
from strandline.events.event import RecordedEvent
from strandline.postgres.pools import Pool
from strandline.projections.documents import Key
from strandline.projections.failure_policy import Decide
from strandline.projections.fold import DATA, POSITION, STREAM, TENANT, TYPE, Row, envelope_of
from strandline.projections.slice import WHOLE, Slice
from strandline.projections.subscription import EventBatch, Subscription
from strandline.settings import Settings


class SubscriptionProcessor:
    """Calls a subscription's function.

    With ``(batch, tx)`` what the function does by ``tx`` and the checkpoint are one transaction:
    exactly once. With ``(batch)`` the checkpoint follows the function: at least once.

    Args:
        subscription: Its function and options.
        types: Decodes events.
        pool: For the batches.
        settings: Sizes.
        begin: Makes the ``tx`` of a session.
        part: The slice.
        known: Names of types that are registered, where an event of another one is a failure.
    """

    reads_pages = True
    is_pure = False
    keys_are_streams = True

    def __init__(
        self,
        subscription: Subscription,
        types: EventTypes,
        pool: Pool,
        settings: Settings,
        begin: Begin,
        part: Slice = WHOLE,
        *,
        known: frozenset[str] | None = None,
    ) -> None:
        self.label = subscription.label
        self.parking = Parking()
        names = subscription.names(types)
        self.appetite = Appetite(
            names if known is None else None,
            True,
            subscription.batch_events or settings.page_events,
            part,
        )
        self._subscription = subscription
        self._wanted = None if names is None else frozenset(names)
        self._known = known
        self._types = types
        self._part = part
        self._pool = pool
        self._begin = begin

    async def prepare(
        self, page: Page, *, only: frozenset[Key] | None = None, within: Slice = WHOLE
    ) -> Batch:
        """See ``Processor``."""
        rows: Sequence[Row] = page.rows
        letters: tuple[Letter, ...] = ()
        if only is not None or self.parking:
            rows, letters = going_on(rows, self.parking, only, self._concerns)
        events = tuple(self._event(row) for row in rows if self._concerns(row))
        return Batch(page, events, letters)

    async def aside(self, page: Page, error: EventFailure, decide: Decide) -> Batch:
        """See ``Processor``."""
        row = failing(page.rows, error, self._concerns)
        letter = put_aside(row, (row[TENANT], row[STREAM]), error, decide(error))
        return Batch(page, letters=(letter,))

    async def commit(self, batch: Batch, checkpoint: Checkpoint) -> None:
        """See ``Processor``."""
        if not batch.work and not batch.writes_letters:
            await self._pool.run(move(checkpoint, batch.page.ceiling))
        elif batch.work and self._subscription.takes_transaction:
            await self._within(batch, checkpoint)
        else:
            if batch.work:
                given = _given(batch, checkpoint)
                with blaming(partial(self._blamed, given)), caused_by(given.last):
                    await self._subscription.handle(given)
            await self._settled(batch, checkpoint)
        self.parking.learn(batch.letters)

    async def owned(self, letters: Sequence[Due]) -> Sequence[Due]:
        """See ``Processor``."""
        return of_slice(letters, self._part)

    def forget(self) -> None:
        """See ``Processor``."""

    async def _within(self, batch: Batch, checkpoint: Checkpoint) -> None:
        """Call the function inside the transaction that moves the checkpoint."""
        given = _given(batch, checkpoint)
        try:
            async with self._pool.transaction() as session:
                # First: whoever lost the shard, or whose letters were discarded, stops here.
                await session.run(settle(checkpoint, batch.page.ceiling, closed=batch.closed))
                tx, committed = self._begin(session)
                with blaming(partial(self._blamed, given)), caused_by(given.last):
                    await self._subscription.handle(given, tx)
                    await check_constraints(session)
                if batch.letters:
                    await session.run(write(checkpoint.shard, batch.letters))
        except TransactionFailed as error:
            raise self._blamed(given, error) from error
        committed()

    async def _settled(self, batch: Batch, checkpoint: Checkpoint) -> None:
        ceiling = batch.page.ceiling
        if not batch.writes_letters:
            await self._pool.run(move(checkpoint, ceiling))
            return
        async with self._pool.transaction() as session:
            await session.run(settle(checkpoint, ceiling, batch.letters, batch.closed))

    def _blamed(self, batch: EventBatch, error: BaseException) -> ApplyFailed:
        """*error* as the function's fault; which of several events it was is not known."""
        position = batch.events[0].position if len(batch) == 1 else 0
        return ApplyFailed(self.label, shown(error), position=position)

    def _event(self, row: Row) -> RecordedEvent[Any]:
        data = row[DATA]
        if self._known is not None and row[TYPE] not in self._known:
            raise UnknownEventType(row[TYPE], position=row[POSITION])
        if isinstance(data, str):
            data = self._types.decode_or_unknown(row[TYPE], data, position=row[POSITION])
        return envelope_of(row, data)

    def _concerns(self, row: Row) -> bool:
        name = row[TYPE]
        if self._wanted is None or name in self._wanted:
            return True
        return self._known is not None and name not in self._known


def _given(batch: Batch, checkpoint: Checkpoint) -> EventBatch:
    """What the function gets."""
    page = batch.page
    return EventBatch(batch.work, page.floor, page.ceiling, checkpoint.epoch, checkpoint.shard)
