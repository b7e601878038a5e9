"""Batches of single- and multi-stream projections: folded here, saved in one statement.

What is put aside has the key of what it blocks: for a single-stream projection the stream; for a
multi-stream one the document, so that an event that fails for one of its documents is applied to the
others. Where it fails before its documents are known (undecodable, a key method that raises) the key
is empty and blocks nothing. Every slice that fails so keeps a letter of its own, as another may have
applied the event by then; its replay turns it into one letter for each of the event's documents in
that slice, which their shards apply.

A document may have the empty id, which no letter can name. So an event that fails for that one is put
aside without a key, for all documents of the slice; the replay applies it to that one at once, on the
shard that has it: whoever has the document '' has the letters without a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any

from strandline.daemon.batch import Batch
from strandline.daemon.cache import DocumentCache
from strandline.daemon.checkpoint import COMMIT_DOCUMENTS, Checkpoint, move
from strandline.daemon.effects import Begin, Effects, EffectsFailed, Enrichment
from strandline.daemon.feed import Appetite, Page
from strandline.daemon.letters import Due, Letter, behind, put_aside, settle, write
from strandline.daemon.parking import Parking, failing, going_on, of_slice, refuse_lost
from strandline.daemon.scope import EVERYTHING, Kept, Scope
from strandline.errors import ApplyFailed, EventFailure, InvalidEvent, UnknownEventType
from strandline.events.codec import EventTypes
from strandline.postgres.operations import AsyncpgSession, one
from strandline.postgres.pools import Pool
from strandline.projections.documents import Document, Documents, Key
from strandline.projections.effects import Change
from strandline.projections.failure_policy import Action, Decide
from strandline.projections.fold import POSITION, STREAM, TENANT, TYPE, PageFold, Piece, Row
from strandline.projections.multi_stream import MultiStream
from strandline.projections.projection import Projection
from strandline.projections.slice import WHOLE, Slice
from strandline.settings import Settings

Found = dict[Key, Document[Any]]


class DocumentProcessor:
    """Batches of single- and multi-stream projections.

    A slice of a single-stream one gets the events of its streams only. Which documents an event
    belongs to is known for a multi-stream one only after it was decoded here, so each of its slices
    reads every event, and keeps what concerns its own documents.

    Args:
        documents: Where they are.
        types: Decodes events.
        pool: For the batches.
        settings: Sizes.
        part: The slice.
        known: Names of types that are registered, where an event of another one is a failure.
        begin: Makes the ``tx`` of side effects. None: they are not raised, as in a build.
        look: What its ``@sl.enrich`` method looks things up with.
    """

    reads_pages = True

    def __init__(
        self,
        documents: Documents[Any],
        types: EventTypes,
        pool: Pool,
        settings: Settings,
        part: Slice = WHOLE,
        *,
        known: frozenset[str] | None = None,
        begin: Begin | None = None,
        look: Any = None,
    ) -> None:
        projection = documents.projection
        self.label = projection.label
        self.parking = Parking()
        self._effects = Effects(self.label, [projection], pool, begin)
        self.is_pure = not self._effects and projection.enrich_handler is None
        self.fold = PageFold(projection, types, full=not self.is_pure)
        self._enrichment = Enrichment(self.fold, look)
        self._by_key = isinstance(documents.projection, MultiStream)
        self.keys_are_streams = not self._by_key
        self._part = part
        self._kept: Slice | Kept = part if self._by_key else WHOLE
        self._scope = EVERYTHING
        self.appetite = Appetite(
            self.fold.names if known is None else None,
            self.fold.wants_envelope,
            settings.page_events,
            WHOLE if self._by_key else part,
        )
        self._known = known
        self._documents = documents
        self._pool = pool
        self._cache = DocumentCache(settings.cached_documents // part.parts)
        self._commit = COMMIT_DOCUMENTS.about(table=documents.table)

    def narrow(self, scope: Scope) -> None:
        """Build *scope* only."""
        if self._by_key:
            self._kept = Kept(self._part, scope)
            self._scope = scope

    # ---- making batches

    async def prepare(
        self, page: Page, *, only: frozenset[Key] | None = None, within: Slice = WHOLE
    ) -> Batch:
        """See ``Processor``."""
        rows: Sequence[Row] = page.rows
        letters: tuple[Letter, ...] = ()
        if (only is not None or self.parking) and not self._by_key:
            rows, letters = going_on(rows, self.parking, only, self._concerns)
        if self._known is not None:
            self._refuse_unknown(rows)
        pieces = self.fold.group(*await self._enrichment.of(rows))
        if self._by_key and only is not None:
            pieces, letters = self._late_pieces(page, pieces, only, within)
        elif self._by_key and self.parking:
            pieces, letters = self._pieces_going_on(page, pieces)
        keys: list[Key] = list(dict.fromkeys([piece[0] for piece in pieces]))
        if self._kept.parts > 1:
            keys = [key for key in keys if self._kept.holds(*key)]
            mine = frozenset(keys)
            pieces = [piece for piece in pieces if piece[0] in mine]
        if not pieces:
            return Batch(page, letters=letters)
        found, missing = self._cache.take(keys)
        if missing:
            found.update(await self._pool.run(self._documents.load(missing)))
        if only is None:
            self.fold.apply(pieces, found)
        else:
            self._apply_late(pieces, found)
        changes = self._changes(found)
        told = await self._effects.changes(self._documents, pieces, found)
        for document in found.values():
            document.stored = document.state is not None
        self._cache.put(found)
        return Batch(page, changes, letters, told=told)

    async def aside(self, page: Page, error: EventFailure, decide: Decide) -> Batch:
        """See ``Processor``."""
        row = failing(page.rows, error, self._concerns)
        self._cache.clear()  # the failed try has left documents half changed
        if not self._by_key:
            letter = put_aside(row, (row[TENANT], row[STREAM]), error, decide(error))
            return Batch(page, letters=(letter,))
        try:
            if self._known is not None:
                self._refuse_unknown([row])
            pieces = self.fold.group(*await self._enrichment.of([row]))
        except EventFailure as failure:
            return Batch(page, letters=(_put_aside(row, (row[TENANT], ""), failure, decide),))
        return await self._each_key(page, row, pieces, error, decide)

    async def _each_key(
        self, page: Page, row: Row, pieces: list[Piece], error: EventFailure, decide: Decide
    ) -> Batch:
        """Apply the event of *row* to the documents where that works."""
        pieces = [piece for piece in pieces if self._kept.holds(*piece[0])]
        letters: list[Letter] = []
        found: Found = {}
        going: list[Piece] = []
        for key, group in groupby(sorted(pieces, key=itemgetter(0)), key=itemgetter(0)):
            some = list(group)
            if key in self.parking:
                letters.append(behind(row, key))
                continue
            try:
                found |= await self._tried(key, some)
                going += some
            except EventFailure as failure:
                letters.append(_put_aside(row, key, failure, decide))
        if any(not letter.key for letter in letters):
            return _without_work(page, letters)
        if all(letter.category is None for letter in letters):
            if not isinstance(error, EffectsFailed):
                raise error  # it works for each document: the failure was of another kind
            in_vain: EffectsFailed | None = error
        else:
            rest = Batch(page, self._changes(found) if found else None, tuple(letters))
            rest = replace(rest, told=await self._effects.changes(self._documents, going, found))
            save = partial(self._save, rest)
            in_vain = await self._effects.tried(self._told(rest), save, page.ceiling)
        if in_vain is None:
            return rest
        letters += [_put_aside(row, key, in_vain, decide) for key in found]
        return _without_work(page, letters)

    def _told(self, batch: Batch) -> Sequence[tuple[Projection, tuple[Change[Any], ...]]]:
        return [(self._documents.projection, batch.told)] if batch.told else []

    async def _save(self, batch: Batch, session: AsyncpgSession) -> None:
        if batch.work is not None:
            try:
                await session.run(self._documents.save_changes(*batch.work))
            except InvalidEvent as error:
                raise self._not_stored(error) from error

    async def _tried(self, key: Key, pieces: list[Piece]) -> Found:
        """The document of *key* with *pieces* applied, once it is sure that it can be saved."""
        found = await self._pool.run(self._documents.load([key]))
        self.fold.apply(pieces, found)
        saved, gone = self._changes(found)
        try:
            async with self._pool.transaction() as session:
                await session.run(self._documents.save_changes(saved, gone))
                raise _Tried
        except _Tried:
            return found
        except InvalidEvent as error:
            raise self._not_stored(error, pieces[0][-1]) from error

    def _apply_late(self, pieces: Sequence[Piece], found: Found) -> None:
        """Apply what is replayed: a document stands where its last event put it."""
        before = {key: (one.version, one.position) for key, one in found.items()}
        self.fold.apply(pieces, found)
        for key, document in found.items():
            version, position = before[key]
            if document.position < position:
                document.version, document.position = version, position

    def _pieces_going_on(
        self, page: Page, pieces: list[Piece]
    ) -> tuple[list[Piece], tuple[Letter, ...]]:
        """Those of a multi-stream projection's *pieces* to apply, and letters for what waits."""
        rows = {row[POSITION]: row for row in page.rows}
        going: list[Piece] = []
        waiting: dict[tuple[Key, int], Letter] = {}
        for piece in pieces:
            key, position = piece[0], piece[-1]
            if key not in self.parking:
                going.append(piece)
            elif self._kept.holds(*key):
                waiting[key, position] = behind(rows[position], key)
        return going, tuple(waiting.values())

    def _late_pieces(
        self, page: Page, pieces: list[Piece], only: frozenset[Key], within: Slice
    ) -> tuple[list[Piece], tuple[Letter, ...]]:
        """Those of *pieces* that are replayed, and letters for documents that get theirs now.

        Raises:
            ApplyFailed: An event belongs to none of the keys that it was put aside for.
        """
        if any(name for _, name in only):
            going = [piece for piece in pieces if piece[0] in only]
            refuse_lost(self.label, [row for row in page.rows if self._wants(row)], going)
            return going, ()
        rows = {row[POSITION]: row for row in page.rows}
        mine = [piece for piece in pieces if within.holds(*piece[0])]
        waiting = {
            (key, position): behind(rows[position], key)
            for key, *_, position in mine
            if key[1] and self._scope.holds(*key)
        }
        return [piece for piece in mine if not piece[0][1]], tuple(waiting.values())

    def _wants(self, row: Row) -> bool:
        return row[TYPE] in self.fold.wanted

    def _concerns(self, row: Row) -> bool:
        name = row[TYPE]
        return name in self.fold.wanted or (self._known is not None and name not in self._known)

    def _refuse_unknown(self, rows: Sequence[Row]) -> None:
        known = self._known
        assert known is not None
        for row in rows:
            if row[TYPE] not in known:
                raise UnknownEventType(row[TYPE], position=row[POSITION])

    def _changes(self, found: Found) -> tuple[str, str]:
        try:
            return self._documents.changes(found)
        except Exception as error:  # msgspec and pydantic raise their own
            reason = f"its state has no JSON form: {error!r}"
            raise ApplyFailed(self.label, reason) from error

    def _not_stored(self, error: InvalidEvent, position: int = 0) -> ApplyFailed:
        return ApplyFailed(self.label, f"its state cannot be stored: {error}", position=position)

    # ---- committing them

    async def commit(self, batch: Batch, checkpoint: Checkpoint) -> None:
        """See ``Processor``."""
        if batch.writes_letters or batch.told:
            await self._commit_in_steps(batch, checkpoint)
            return
        if batch.work is None:
            await self._pool.run(move(checkpoint, batch.page.ceiling))
            return
        saved, gone = batch.work
        c = checkpoint
        ceiling = batch.page.ceiling
        op = one(self._commit, c.shard, c.owner, c.epoch, c.position, ceiling, saved, gone)
        try:
            moved = await self._pool.run(op)
        except InvalidEvent as error:
            raise self._not_stored(error) from error
        if moved is None:
            raise checkpoint.lost()

    async def _commit_in_steps(self, batch: Batch, checkpoint: Checkpoint) -> None:
        ceiling = batch.page.ceiling
        async with self._pool.transaction() as session:
            await session.run(settle(checkpoint, ceiling, closed=batch.closed))
            await self._save(batch, session)
            if batch.letters:
                await session.run(write(checkpoint.shard, batch.letters))
            committed = await self._effects.call(self._told(batch), session, ceiling)
        committed()
        self.parking.learn(batch.letters)

    async def owned(self, letters: Sequence[Due]) -> Sequence[Due]:
        """See ``Processor``."""
        if not self._by_key:
            return of_slice(letters, self._part)
        return [one for one in letters if self._part.holds(one.tenant, one.key)]

    def forget(self) -> None:
        """See ``Processor``."""
        self._cache.clear()
        self._effects.forget()


def _put_aside(row: Row, key: Key, error: EventFailure, decide: Decide) -> Letter:
    action = decide(error)
    return put_aside(row, key, error, action if key[1] else Action.SKIP)


def _without_work(page: Page, letters: Sequence[Letter]) -> Batch:
    """Nothing is done but *letters*; one without a key is of all the event's documents."""
    unnamed = [letter for letter in letters if not letter.key]
    return Batch(page, letters=tuple(unnamed or letters))


class _Tried(Exception):  # noqa: N818 - no error: it rolls a trial back
    """The trial went well."""
