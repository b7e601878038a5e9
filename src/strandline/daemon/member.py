"""One member of a composite: its fold, its documents, what it tells later stages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from strandline.daemon.cache import DocumentCache
from strandline.daemon.effects import Enrichment
from strandline.errors import ApplyFailed, InvalidEvent
from strandline.events.codec import EventTypes
from strandline.postgres.pools import Pool
from strandline.projections.documents import Document, Documents, Key
from strandline.projections.effects import copied
from strandline.projections.fold import PageFold, Piece, Row
from strandline.projections.multi_stream import MultiStream
from strandline.projections.upstream import Deleted, Updated, concrete

Found = dict[Key, Document[Any]]
Notice = Updated[Any] | Deleted[Any]


class Member:
    """Folds and keeps what one member of a composite has.

    Args:
        documents: Where its documents are.
        types: Decodes events.
        pool: Where documents are loaded.
        look: What its ``@sl.enrich`` method looks things up with.
        cached: How many documents are kept in memory.
        full: Whether its side effects need the envelopes of events.
        heard: The classes of notices that any member wants.
    """

    def __init__(
        self,
        documents: Documents[Any],
        types: EventTypes,
        pool: Pool,
        *,
        look: Any,
        cached: int,
        full: bool,
        heard: frozenset[type[Any]],
    ) -> None:
        projection = documents.projection
        self.name = projection.name
        self.documents = documents
        self.projection = projection
        self.by_key = isinstance(projection, MultiStream)
        self.fold = PageFold(projection, types, full=full or projection.enrich_handler is not None)
        self.cache = DocumentCache(cached)
        self._pool = pool
        self._enrichment = Enrichment(self.fold, look)
        state = projection.folder.state
        self._updated, self._deleted = concrete(Updated, state), concrete(Deleted, state)
        self._tells = not heard.isdisjoint((self._updated, self._deleted))

    def parked(self, key: Key) -> Key:
        """What *key* is called among the letters of the composite."""
        return key[0], f"{self.name}/{key[1]}"

    def own(self, only: Iterable[Key]) -> frozenset[Key]:
        """Its keys among those of the composite's letters."""
        prefix = f"{self.name}/"
        return frozenset(
            (tenant, name.removeprefix(prefix)) for tenant, name in only if name.startswith(prefix)
        )

    async def pieces(self, rows: Sequence[Row], notices: Sequence[Notice]) -> list[Piece]:
        """What it does with stored events and with notices of earlier stages, by position.

        Raises:
            EventFailure: It cannot be told.
        """
        stored = self.fold.group(*await self._enrichment.of(rows)) if rows else []
        if not notices:
            return stored
        return sorted([*stored, *self.fold.group_upstream(notices)], key=lambda piece: piece[-1])

    async def loaded(self, pieces: Sequence[Piece]) -> Found:
        """The documents of *pieces*, from memory if they are there."""
        found, missing = self.cache.take(list(dict.fromkeys([piece[0] for piece in pieces])))
        if missing:
            found.update(await self._pool.run(self.documents.load(missing)))
        return found

    def apply(self, pieces: Sequence[Piece], found: Found, *, late: bool = False) -> None:
        """Apply *pieces*; *late* ones leave a document where its last event has put it."""
        before = {key: (one.version, one.position) for key, one in found.items()} if late else {}
        self.fold.apply(pieces, found)
        for key, (version, position) in before.items():
            document = found[key]
            if document.position < position:
                document.version, document.position = version, position

    def changes(self, found: Found) -> tuple[str, str]:
        """What is to be saved.

        Raises:
            ApplyFailed: A state has no JSON form.
        """
        try:
            return self.documents.changes(found)
        except Exception as error:  # msgspec and pydantic raise their own
            reason = f"its state has no JSON form: {error!r}"
            raise ApplyFailed(self.projection.label, reason) from error

    def not_stored(self, error: InvalidEvent, position: int = 0) -> ApplyFailed:
        """*error* as this member's."""
        reason = f"its state cannot be stored: {error}"
        return ApplyFailed(self.projection.label, reason, position=position)

    def notices(self, pieces: Sequence[Piece], found: Found, *, present: bool) -> list[Notice]:
        """What later stages are told of the documents of *pieces*.

        Args:
            pieces: Applied to *found* by now.
            found: The documents; ``stored`` says whether there was one before.
            present: Tell how they are, though *pieces* are not applied now.
        """
        if not self._tells:
            return []
        last = {piece[0]: piece for piece in pieces}
        told: list[Notice] = []
        for (tenant, name), piece in last.items():
            document = found[tenant, name]
            at = {"position": piece[-1], "version": piece[-2], "member": self.name}
            if document.state is not None:
                state = copied(document.state, self.documents.decode)
                told.append(self._updated(tenant, name, state, **at))
            elif document.stored or present:
                told.append(self._deleted(tenant, name, **at))
        return sorted(told, key=lambda one: one.position)
