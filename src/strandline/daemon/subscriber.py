"""Batches of subscriptions: the user's function, and the checkpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from strandline.daemon.batch import Batch, blamed
from strandline.daemon.checkpoint import Checkpoint, move
from strandline.daemon.feed import Appetite, Page
from strandline.events.codec import EventTypes
from strandline.events.event import RecordedEvent
from strandline.postgres.operations import AsyncpgSession
from strandline.postgres.pools import Pool
from strandline.projections.fold import DATA, POSITION, TYPE, Row, envelope_of
from strandline.projections.slice import WHOLE, Slice
from strandline.projections.subscription import EventBatch, Subscription
from strandline.settings import Settings

Begin = Callable[[AsyncpgSession], Any]
"""Makes the ``tx`` that the user's function gets from a session inside a transaction."""


class SubscriptionProcessor:
    """Calls a subscription's function.

    With ``(batch, tx)`` what the function does by ``tx`` and the checkpoint are one transaction:
    exactly once. With ``(batch)`` the checkpoint follows the function: at least once.
    """

    reads_pages = True

    def __init__(
        self,
        subscription: Subscription,
        types: EventTypes,
        pool: Pool,
        settings: Settings,
        begin: Begin,
        part: Slice = WHOLE,
    ) -> None:
        self.label = subscription.label
        self.appetite = Appetite(
            subscription.names(types),
            True,
            subscription.batch_events or settings.page_events,
            part,
        )
        self._subscription = subscription
        self._wanted = None if self.appetite.names is None else frozenset(self.appetite.names)
        self._types = types
        self._pool = pool
        self._begin = begin

    async def prepare(self, page: Page) -> Batch:
        """See ``Processor``."""
        wanted = self._wanted
        events = tuple(
            self._event(row) for row in page.rows if wanted is None or row[TYPE] in wanted
        )
        return Batch(page, events)

    async def commit(self, batch: Batch, checkpoint: Checkpoint) -> None:
        """See ``Processor``."""
        ceiling = batch.page.ceiling
        if not batch.work:
            await self._pool.run(move(checkpoint, ceiling))
            return
        floor = batch.page.floor
        given = EventBatch(batch.work, floor, ceiling, checkpoint.epoch, checkpoint.shard)
        if self._subscription.takes_transaction:
            async with self._pool.transaction() as session:
                await session.run(
                    move(checkpoint, ceiling)
                )  # first: whoever lost the shard stops here
                await self._call(given, self._begin(session))
        else:
            await self._call(given)
            await self._pool.run(move(checkpoint, ceiling))

    def forget(self) -> None:
        """See ``Processor``."""

    async def _call(self, batch: EventBatch, *transaction: Any) -> None:
        try:
            await self._subscription.handle(batch, *transaction)
        except asyncio.CancelledError as error:
            current = asyncio.current_task()
            if current is None or current.cancelling():
                raise
            # of a task of the user's own: nobody told this shard to end
            raise blamed(self.label, error, [event.position for event in batch]) from error
        except Exception as error:  # the user's function raises anything
            raise blamed(self.label, error, [event.position for event in batch]) from error

    def _event(self, row: Row) -> RecordedEvent[Any]:
        data = row[DATA]
        if isinstance(data, str):
            data = self._types.decode_or_unknown(row[TYPE], data, position=row[POSITION])
        return envelope_of(row, data)
