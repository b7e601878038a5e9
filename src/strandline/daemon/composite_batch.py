"""Batches of composites: one page for all members, stage after stage, in one transaction.

Invariant: a batch writes the documents of all members and moves the one checkpoint in the same
transaction, so members never show different positions.

A later stage hears of documents of earlier ones at the end of their part of the page. What is put
aside has a key ``member/KEY``, so an event that fails in one member stops no other one. A key that
waits gets a letter for the event that a notice came from; its replay tells how the document is by
then, and a document that was healed is told of like any other. ``member/`` alone is the key of what a
multi-stream member could not even group, and as in ``document_batch`` nothing waits behind it: its
replay makes one letter for each of the event's keys in the slice that wrote it.

Slices: every slice reads whole pages and keeps, of every member, the keys that ``Slice.holds``. So a
single-stream member hears of documents of its own slice only, which are all that have its keys; a
multi-stream one would not, and ``Composite`` refuses to be cut then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from strandline.daemon.batch import Batch
from strandline.daemon.checkpoint import Checkpoint, move
from strandline.daemon.composite_draft import Draft, saved
from strandline.daemon.effects import Begin, Effects, EffectsFailed
from strandline.daemon.feed import Appetite, Page
from strandline.daemon.letters import Due, settle, write
from strandline.daemon.member import Found, Member, Notice
from strandline.daemon.parking import Parking, failing, refuse_lost
from strandline.errors import EventFailure, UnknownEventType
from strandline.events.codec import EventTypes
from strandline.postgres.pools import Pool
from strandline.projections.composite import CompositeDocuments
from strandline.projections.documents import Key
from strandline.projections.failure_policy import Decide
from strandline.projections.fold import POSITION, STREAM, TENANT, TYPE, Piece, Row
from strandline.projections.slice import WHOLE, Slice
from strandline.settings import Settings


class CompositeProcessor:
    """Batches of one composite, or of a slice of it.

    Args:
        documents: Of its members.
        types: Decodes events.
        pool: For the batches.
        settings: Sizes.
        part: The slice.
        known: Names of types that are registered, where an event of another one is a failure.
        begin: Makes the ``tx`` of side effects. None: they are not raised, as in a build.
        look: What ``@sl.enrich`` methods look things up with.
    """

    reads_pages = True
    keys_are_streams = False

    def __init__(
        self,
        documents: CompositeDocuments,
        types: EventTypes,
        pool: Pool,
        settings: Settings,
        part: Slice = WHOLE,
        *,
        known: frozenset[str] | None = None,
        begin: Begin | None = None,
        look: Any = None,
    ) -> None:
        composite = documents.projection
        self.label = composite.label
        self.parking = Parking()
        self._effects = Effects(self.label, composite.members, pool, begin)
        self.is_pure = not self._effects and not any(
            one.enrich_handler for one in composite.members
        )
        members = iter(documents.members)
        cached = settings.cached_documents // (part.parts * len(documents.members))
        self._stages = [
            [
                Member(
                    next(members),
                    types,
                    pool,
                    look=look,
                    cached=cached,
                    full=bool(self._effects),
                    heard=composite.heard,
                )
                for _ in stage
            ]
            for stage in composite.stages
        ]
        self._members = [one for stage in self._stages for one in stage]
        names = tuple(dict.fromkeys(name for one in self._members for name in one.fold.names))
        self.appetite = Appetite(
            names if known is None else None,
            any(one.fold.wants_envelope for one in self._members),
            settings.page_events,
        )
        self._known = known
        self._part = part
        self._pool = pool

    # ---- making batches

    async def prepare(
        self, page: Page, *, only: frozenset[Key] | None = None, within: Slice = WHOLE
    ) -> Batch:
        """See ``Processor``."""
        draft = Draft(page, late=only is not None, within=within)
        notices: list[Notice] = []
        for number, stage in enumerate(self._stages):
            fresh: list[Notice] = []
            for member in stage:
                if only is None:
                    rows = self._rows_going_on(draft, member)
                    pieces = await member.pieces(rows, notices)
                    pieces = self._pieces_going_on(draft, member, pieces, frozenset())
                else:
                    pieces = await self._late_pieces(draft, number, member, notices, only)
                fresh += await self._applied(draft, member, pieces)
            notices += fresh
        return draft.batch()

    async def _applied(self, draft: Draft, member: Member, pieces: Sequence[Piece]) -> list[Notice]:
        """Apply *pieces* to the member's documents; what later stages hear of it."""
        if not pieces:
            return []
        found = await member.loaded(pieces)
        member.apply(pieces, found, late=draft.late)
        return await self._done(draft, member, pieces, found)

    async def _done(
        self, draft: Draft, member: Member, pieces: Sequence[Piece], found: Found
    ) -> list[Notice]:
        draft.work.append((member, *member.changes(found)))
        changes = await self._effects.changes(member.documents, pieces, found)
        if changes:
            draft.told.append((member.projection, changes))
        told = member.notices(pieces, found, present=False)
        for document in found.values():
            document.stored = document.state is not None
        member.cache.put(found)
        return told

    def _rows_going_on(self, draft: Draft, member: Member) -> Sequence[Row]:
        """The page's rows without those whose stream waits, which need not be decodable."""
        rows = draft.page.rows
        if self.parking and not member.by_key:
            rows = [row for row in rows if not self._row_waits(draft, member, row)]
        self._refuse_unknown(rows)
        return rows

    def _row_waits(self, draft: Draft, member: Member, row: Row) -> bool:
        key = (row[TENANT], row[STREAM])
        if member.by_key or member.parked(key) not in self.parking:
            return False
        if self._concerns(member, row) and self._part.holds(*key):
            draft.wait(row, member.parked(key))
        return True

    def _pieces_going_on(
        self, draft: Draft, member: Member, pieces: list[Piece], own: frozenset[Key]
    ) -> list[Piece]:
        """Those of *pieces* that are this slice's and do not wait, or are of *own* keys."""
        if self._part.parts > 1:
            pieces = [piece for piece in pieces if self._part.holds(*piece[0])]
        if not self.parking:
            return pieces
        rows = {row[POSITION]: row for row in draft.page.rows}
        going: list[Piece] = []
        for piece in pieces:
            key = member.parked(piece[0])
            if key in self.parking and piece[0] not in own:
                draft.wait(rows[piece[-1]], key)
            else:
                going.append(piece)
        return going

    # ---- replaying what was put aside

    async def _late_pieces(
        self,
        draft: Draft,
        number: int,
        member: Member,
        healed: Sequence[Notice],
        only: frozenset[Key],
    ) -> list[Piece]:
        """What is replayed for the member's own keys, and what it hears of healed documents."""
        own, rows = member.own(only), draft.page.rows
        pieces: list[Piece] = []
        stored: list[Piece] = []
        if own:
            if not member.by_key:
                rows = [row for row in rows if (row[TENANT], row[STREAM]) in own]
            self._refuse_unknown(rows)
            anew = {(one.member, one.tenant, one.id) for one in healed}
            present = [
                one
                for one in await self._present(number, draft.page.rows)
                if (one.member, one.tenant, one.id) not in anew
            ]
            stored, told = await member.pieces(rows, ()), await member.pieces((), present)
            if not any(name for _, name in own):
                draft.wait_each(member, [*stored, *told])
                own = frozenset(key for key in own if draft.within.holds(*key))
            stored = [piece for piece in stored if piece[0] in own]
            pieces = stored + [piece for piece in told if piece[0] in own]
        pieces += await member.pieces((), healed)
        if any(name for _, name in own) and not any(one[0] in own for one in pieces[len(stored) :]):
            wanted = [row for row in rows if row[TYPE] in member.fold.wanted]
            refuse_lost(member.projection.label, wanted, stored)
        pieces.sort(key=lambda piece: piece[-1])
        return self._pieces_going_on(draft, member, pieces, own)

    async def _present(self, number: int, rows: Sequence[Row]) -> list[Notice]:
        """How the documents of earlier stages are to which the events of *rows* belong."""
        notices: list[Notice] = []
        for stage in self._stages[:number]:
            told: list[Notice] = []
            for member in stage:
                try:
                    pieces = await member.pieces(rows, notices)
                except EventFailure:
                    continue  # it has a letter of its own there, and was not changed
                pieces = [piece for piece in pieces if self._part.holds(*piece[0])]
                told += member.notices(pieces, await member.loaded(pieces), present=True)
            notices += told
        return notices

    # ---- putting events aside

    async def aside(self, page: Page, error: EventFailure, decide: Decide) -> Batch:
        """See ``Processor``."""
        row = failing(
            page.rows, error, lambda row: any(self._concerns(one, row) for one in self._members)
        )
        vain = {error.projection: error} if isinstance(error, EffectsFailed) else {}
        while True:
            self._clear()  # the failed try has left documents half changed
            draft = await self._without_failing(page, row, vain, decide)
            failure = await self._effects.tried(draft.told, draft.save, page.ceiling)
            if failure is None:
                break
            vain[failure.projection] = failure
        if all(letter.category is None for letter in draft.letters.values()):
            raise error  # it works for every member: the failure was of another kind
        return draft.batch()

    async def _without_failing(
        self, page: Page, row: Row, vain: Mapping[str, EffectsFailed], decide: Decide
    ) -> Draft:
        """What the event of *row* does where that works; *vain*: members whose effects fail."""
        draft = Draft(page)
        notices: list[Notice] = []
        for stage in self._stages:
            fresh: list[Notice] = []
            for member in stage:
                pieces = await self._groupable(draft, member, row, notices, decide)
                failure = vain.get(member.projection.label)
                fresh += await self._each_key(draft, member, row, pieces, failure, decide)
            notices += fresh
        return draft

    async def _groupable(
        self, draft: Draft, member: Member, row: Row, notices: list[Notice], decide: Decide
    ) -> list[Piece]:
        """The pieces of one event, unless that is what fails."""
        rows = [] if self._row_waits(draft, member, row) else [row]
        try:
            if self._concerns(member, row):
                self._refuse_unknown(rows)
            return await member.pieces(rows, notices)
        except EventFailure as failure:
            if member.by_key:
                draft.fail_whole(row, member, failure, decide)
                return []
            key = (row[TENANT], row[STREAM])
            if self._part.holds(*key):
                draft.fail(row, member.parked(key), failure, decide)
            return await member.pieces((), notices)

    async def _each_key(
        self,
        draft: Draft,
        member: Member,
        row: Row,
        pieces: list[Piece],
        in_vain: EventFailure | None,
        decide: Decide,
    ) -> list[Notice]:
        """Apply the event to the documents where that works; what later stages hear of it."""
        going: list[Piece] = []
        found: Found = {}
        by_key = sorted(self._pieces_going_on(draft, member, pieces, frozenset()), key=_key)
        for key, group in groupby(by_key, key=_key):
            some = list(group)
            if (member.parked(key), row[POSITION]) in draft.letters:
                continue  # the event itself failed for it; what it hears then waits as well
            try:
                if in_vain is not None:
                    raise in_vain
                found |= await self._tried(member, some)
                going += some
            except EventFailure as failure:
                if not key[1]:
                    draft.fail_whole(row, member, failure, decide)
                    return []
                draft.fail(row, member.parked(key), failure, decide)
        return await self._done(draft, member, going, found) if found else []

    async def _tried(self, member: Member, pieces: Sequence[Piece]) -> Found:
        """The document of *pieces* with them applied, once it is sure that it can be saved."""
        found = await member.loaded(pieces)
        member.apply(pieces, found)
        work = [(member, *member.changes(found))]
        try:
            async with self._pool.transaction() as session:
                await saved(session, work)
                raise _Tried
        except _Tried:
            return found

    def _concerns(self, member: Member, row: Row) -> bool:
        name = row[TYPE]
        return name in member.fold.wanted or (self._known is not None and name not in self._known)

    def _refuse_unknown(self, rows: Sequence[Row]) -> None:
        if self._known is not None:
            for row in rows:
                if row[TYPE] not in self._known:
                    raise UnknownEventType(row[TYPE], position=row[POSITION])

    # ---- committing them

    async def commit(self, batch: Batch, checkpoint: Checkpoint) -> None:
        """See ``Processor``."""
        ceiling = batch.page.ceiling
        if not batch.work and not batch.writes_letters:
            await self._pool.run(move(checkpoint, ceiling))
            return
        async with self._pool.transaction() as session:
            await session.run(settle(checkpoint, ceiling, closed=batch.closed))
            await saved(session, batch.work or ())
            if batch.letters:
                await session.run(write(checkpoint.shard, batch.letters))
            committed = await self._effects.call(batch.told, session, ceiling)
        committed()
        self.parking.learn(batch.letters)

    async def owned(self, letters: Sequence[Due]) -> Sequence[Due]:
        """See ``Processor``."""
        holds = self._part.holds
        return [one for one in letters if holds(one.tenant, one.key.partition("/")[2])]

    def forget(self) -> None:
        """See ``Processor``."""
        self._clear()
        self._effects.forget()

    def _clear(self) -> None:
        for one in self._members:
            one.cache.clear()


def _key(piece: Piece) -> Key:
    return piece[0]


class _Tried(Exception):  # noqa: N818 - no error: it rolls a trial back
    """The trial went well."""
