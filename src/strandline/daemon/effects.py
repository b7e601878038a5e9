"""Calls ``@sl.effects`` and ``@sl.enrich`` methods for the batches of one shard.

Effects run in the transaction of the batch, behind the fence and after its documents are written.
Whether they count is the label's to say: an older version of a projection speaks until it is
retired, and a build never does. What is read of that is read after the claim, and whoever changes it
raises the epochs; so no batch commits under what is no longer true.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from strandline.daemon.blame import blaming
from strandline.errors import ApplyFailed, InvalidDefinition, TransactionFailed, shown
from strandline.events.causes import caused_by
from strandline.events.event import RecordedEvent
from strandline.postgres.faults import sqlstate
from strandline.postgres.operations import AsyncpgSession, Op, none, one
from strandline.postgres.pools import FAILED_INSIDE, Pool
from strandline.postgres.statements import SqlFile
from strandline.projections.documents import Document, Documents, Key
from strandline.projections.effects import Change, Changes, changes_of
from strandline.projections.enrichment import by_position
from strandline.projections.fold import PageFold, Piece, Row
from strandline.projections.projection import Projection

Begin = Callable[[AsyncpgSession], tuple[Any, Callable[[], None]]]
"""Makes the ``tx`` that the user's function gets from a session inside a transaction, and what is to
be called when that is committed."""

NO_EVENT = 2**63 - 1  # no position is beyond it


@dataclass(frozen=True, slots=True)
class EffectsAfter:
    """Beyond which position a label raises side effects; None: not at all yet."""

    after: int | None


class EffectsFailed(ApplyFailed):
    """A method for side effects raised: which of the batch's documents it is about is not known."""


_sql = SqlFile(__name__)
READ_AFTER = _sql.one("read_effects_after", EffectsAfter)
CHECK = _sql.none("check_constraints")
ABORTED = "25P02"  # SQLSTATE: a statement has failed before


async def check_constraints(session: AsyncpgSession) -> None:
    """Check now what constraints have deferred to the commit, where nobody could be blamed for it.

    Raises:
        TransactionFailed: A statement failed before, and its error was caught.
        Exception: The driver's; a constraint is broken.
    """
    try:
        await session.run(none(CHECK))
    except Exception as error:  # of the driver
        if sqlstate(error) != ABORTED:
            raise
        raise TransactionFailed(FAILED_INSIDE) from error


class Effects:
    """The side effects of what one shard brings up to date.

    Args:
        label: Of the projection or composite.
        projections: Whose methods are called, in this order.
        pool: Where is read whether they count.
        begin: Makes their ``tx``. None: they are not raised, as in a build.
    """

    def __init__(
        self, label: str, projections: Sequence[Projection], pool: Pool, begin: Begin | None
    ) -> None:
        self._label = label
        self._pool = pool
        self._begin = begin
        self._handlers = {
            one.name: one.effects_handler for one in projections if one.effects_handler is not None
        }
        if begin is None:
            self._handlers = {}
        self._after: int | None = None

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._handlers)

    async def changes(
        self,
        documents: Documents[Any],
        pieces: Sequence[Piece],
        found: Mapping[Key, Document[Any]],
    ) -> tuple[Change[Any], ...]:
        """What is to be told of *pieces*, applied to *found* by now; nothing without a method."""
        if documents.projection.name not in self._handlers or not pieces:
            return ()
        after = await self._counting_after()
        if after >= max(piece[5] for piece in pieces):
            return ()
        return changes_of(pieces, found, documents.decode, after=after)

    async def call(
        self,
        told: Sequence[tuple[Projection, tuple[Change[Any], ...]]],
        session: AsyncpgSession,
        ceiling: int,
    ) -> Callable[[], None]:
        """Call the methods inside the batch's transaction; what to call when that is committed.

        Raises:
            EffectsFailed: One raised.
            Unavailable: The database did not answer one.
        """
        if self._begin is None or not told:
            return _nothing
        tx, committed = self._begin(session)
        for projection, changes in told:
            handler = self._handlers[projection.name]
            positions = {event.position for change in changes for event in change.events}
            last = max(positions, default=0)
            position = last if len(positions) == 1 else 0
            with (
                blaming(partial(_effects_failed, projection.label, position)),
                caused_by(last),
            ):
                await handler.call(Changes(changes, ceiling), tx)
                await check_constraints(session)
        return committed

    async def tried(
        self,
        told: Sequence[tuple[Projection, tuple[Change[Any], ...]]],
        save: Callable[[AsyncpgSession], Awaitable[None]],
        ceiling: int,
    ) -> EffectsFailed | None:
        """How the methods fail after *save*, in a transaction that is rolled back; None if they do not."""
        if not told:
            return None
        try:
            async with self._pool.transaction() as session:
                await save(session)
                await self.call(told, session, ceiling)
                raise _RolledBack
        except _RolledBack:
            return None
        except EffectsFailed as failure:
            return failure

    def forget(self) -> None:
        """Whether they count must be read again."""
        self._after = None

    async def _counting_after(self) -> int:
        if self._after is None:
            after = await self._pool.run(_effects_after(self._label))
            self._after = NO_EVENT if after is None else after
        return self._after


def _effects_failed(label: str, position: int, error: BaseException) -> EffectsFailed:
    return EffectsFailed(label, shown(error), position=position)


class _RolledBack(Exception):  # noqa: N818 - no error: it ends a trial
    """The trial went well."""


def _effects_after(label: str) -> Op[int | None]:
    found = yield from one(READ_AFTER, label)
    return None if found is None else found.after


def _nothing() -> None:
    pass


class Enrichment:
    """The ``@sl.enrich`` method of one projection, for its pages.

    Args:
        fold: Of the projection.
        look: What the method looks things up with.
    """

    def __init__(self, fold: PageFold, look: Any) -> None:
        self._fold = fold
        self._look = look

    async def of(self, rows: Sequence[Row]) -> tuple[Sequence[Row], Mapping[int, Any] | None]:
        """*rows*, decoded, and what was found for them by position; None without such a method.

        Raises:
            UndecodableEvent: An event's JSON does not fit its class.
            ApplyFailed: The method raised, or its answer does not fit.
        """
        handler = self._fold.projection.enrich_handler
        if handler is None:
            return rows, None
        kept, events = self._fold.decoded(rows)
        if not events:
            return kept, {}
        # an InvalidDefinition tells that the program is to be changed: no event's fault
        with blaming(partial(self._fault, events), but=(InvalidDefinition,)):
            answer = await handler.call(tuple(events), self._look)
            return kept, by_position(events, answer, handler.name)

    def _fault(self, events: Sequence[RecordedEvent[Any]], error: BaseException) -> ApplyFailed:
        position = events[0].position if len(events) == 1 else 0
        return ApplyFailed(self._fold.projection.label, shown(error), position=position)
