"""``app.letters``: the dead letters of an app's projections and subscriptions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from strandline.daemon import letter_desk, letters
from strandline.daemon.letter_desk import OPEN, STATUSES, DeadLetter, LetterGroup, Which
from strandline.daemon.letters import SKIPPED, OpenCount
from strandline.errors import (
    ApplyFailed,
    EventFailure,
    InvalidInput,
    UnknownEventType,
    UnknownProjection,
)
from strandline.events.codec import encoded
from strandline.postgres.pools import Pool
from strandline.projections.composite import Composite
from strandline.projections.fold import PageFold
from strandline.projections.multi_stream import MultiStream
from strandline.projections.projection import Projection
from strandline.projections.registry import Registry
from strandline.projections.single_stream import SingleStream
from strandline.projections.sql_projection import Sql
from strandline.projections.table_declaration import Table
from strandline.telemetry.journal import Journal

if TYPE_CHECKING:
    from strandline.postgres.pools import Pools
    from strandline.settings import Settings

log = Journal("strandline.letters")

PAGE = 1_000  # letters looked at together


class LetterFace:
    """Dead letters of an app."""

    if TYPE_CHECKING:
        registry: Registry
        settings: Settings

        @property
        def pools(self) -> Pools: ...

    @property
    def letters(self) -> Letters:
        """Events that could not be processed: look, try again, correct, discard."""
        return Letters(self.pools.work, self.settings.schema, self.registry, self)


class Letters:
    """The dead letters of one database. Asked for here, done by the nodes.

    Args:
        pool: Of the database.
        schema: Of the tables.
        registry: What is declared; where there is none, only what needs no declaration works.
        app: Rebuilds documents.

    Attributes:
        app: The same.
    """

    def __init__(self, pool: Pool, schema: str, registry: Registry, app: Any = None) -> None:
        self._run = pool.run
        self._transaction = pool.transaction
        self._schema = schema
        self._registry = registry
        self.app = app

    async def list(
        self,
        projection: Any = None,
        *,
        status: Sequence[str] = OPEN,
        stream: str | None = None,
        fingerprint: str | None = None,
        after: int | None = None,
        limit: int = 100,
    ) -> list[DeadLetter]:
        """Letters by id.

        Args:
            projection: Class, function, name (of all versions) or label; None for all.
            status: ``parked``, ``skipped``, ``resolved``, ``discarded``, ``superseded``.
            stream: Only of events of this stream.
            fingerprint: Only those that failed like this.
            after: Only ids after this one: the last of the page before.
            limit: At the most.

        Raises:
            InvalidInput: There is no such status, or *limit* is below 1.
        """
        statuses = [status] if isinstance(status, str) else [str(one) for one in status]
        if wrong := [one for one in statuses if one not in STATUSES]:
            raise InvalidInput(f"status {wrong[0]!r} is not one of {', '.join(STATUSES)}")
        if limit < 1:
            raise InvalidInput(f"limit={limit!r} is below 1")
        which = self._which(projection, stream, fingerprint)
        op = letter_desk.listed(which, statuses=statuses, after=after or 0, limit=limit)
        return await self._run(op)

    async def groups(self, projection: Any = None) -> Sequence[LetterGroup]:
        """Open letters that failed, counted by what they failed of; the most frequent first."""
        label = self._which(projection, None, None).label
        return await self._run(letter_desk.groups(label))

    async def get(self, number: int, /) -> DeadLetter:
        """One letter, whatever its status.

        Raises:
            NotFound: There is none of this id.
        """
        return await self._run(letter_desk.letter(number))

    async def counts(self) -> Sequence[OpenCount]:
        """How many letters are open, by label and status."""
        return await self._run(letters.count_open())

    async def retry(
        self,
        ids: int | Iterable[int] | None = None,
        *,
        projection: Any = None,
        stream: str | None = None,
        fingerprint: str | None = None,
        all: bool = False,  # noqa: A002 - what one would type
    ) -> int:
        """Have letters tried again, by the nodes that run their projections.

        A parked letter stands for its key, which is tried from its first letter on, in order. A
        skipped one is handed to its subscription or SQL projection alone. A skipped one of documents
        cannot be applied late, as later events were applied before it: its document is rebuilt, and
        this waits for that.

        Args:
            ids: Of letters; None for those that the rest chooses.
            projection: Class, function, name (of all versions) or label.
            stream: Only of events of this stream.
            fingerprint: Only those that failed like this.
            all: Nothing is chosen: every letter.

        Returns:
            How many keys and skipped letters will be tried, or were rebuilt.

        Raises:
            InvalidInput: Nothing is chosen; or a letter of *ids* comes back by a rebuild of the whole
                projection only.
            EventFailure: An event whose document is to be rebuilt cannot be decoded still, or was put
                aside once more: it has another letter then.
        """
        which = self._which(projection, stream, fingerprint, ids)
        if which.is_everything and not all:
            raise InvalidInput("which letters? Give ids, a projection, a stream, or all=True")
        run = self._run
        alone, late = await self._skipped(which)
        asked = await run(letter_desk.ask_for_parked(which))
        if alone:
            asked += await run(letter_desk.ask_for_skipped(alone))
        if asked:
            await run(letter_desk.tell(self._schema))
        return asked + await self._rebuilt(late)

    async def edit(self, number: int, data: Any, /, *, reason: str, retry: bool = True) -> None:
        """Put *data* in the place of what the event holds, for this projection alone.

        The log stays as it is; a rebuild reads the log. Where nobody knows the key of an event, each
        slice has a letter of it: all of them get the data.

        Args:
            number: The letter's id.
            data: An event object, or JSON as a text, bytes or dict.
            reason: Why; kept with the letter.
            retry: Whether to have it tried at once.

        Raises:
            NotFound: There is no such letter.
            InvalidInput: *data* does not fit the event's class, or there is no *reason*; or it is a
                skipped letter of documents, which come back by a rebuild from the log; or a table's.
            ConflictError: The letter is closed.
        """
        letter = await self.get(number)
        if isinstance(_projection(self._registry, letter.label), Table):
            raise InvalidInput(
                f"letter {number} is of a table, {letter.label}: PostgreSQL folds what the log holds,"
                " and would not see other data; change its rules, or append an event that corrects it"
            )
        if letter.status == SKIPPED and letter.key and not self._goes_alone(letter):
            raise InvalidInput(
                f"letter {number} was skipped: its document comes back by a rebuild from the log, where"
                " other data would not be seen; append an event that corrects it"
            )
        text = self._checked(letter, data)
        edited = await self._run(letter_desk.edit(number, text, _reason(reason)))
        if retry:
            await self.retry(edited)

    async def discard(self, ids: int | Iterable[int], *, reason: str) -> int:
        """Give open letters up for good; what waits behind one of them is tried.

        Args:
            ids: Of letters.
            reason: Why; kept with them.

        Returns:
            How many were open.

        Raises:
            InvalidInput: There is no *reason*.
        """
        words, chosen = _reason(reason), _ids(ids)
        async with self._transaction() as session:
            count = await session.run(letter_desk.discard(chosen, words))
            await session.run(letter_desk.tell(self._schema))
        return count

    # ---- inside

    def _which(
        self,
        projection: Any,
        stream: str | None,
        fingerprint: str | None,
        ids: int | Iterable[int] | None = None,
    ) -> Which:
        label = projection
        if projection is not None and not isinstance(projection, str):
            label = self._registry.label(projection)
        return Which(label, stream, fingerprint, None if ids is None else tuple(_ids(ids)))

    async def _skipped(self, which: Which) -> tuple[Sequence[int], Sequence[DeadLetter]]:
        """The skipped letters of *which*: those to be tried alone, and those to be rebuilt."""
        alone: Sequence[int] = []
        late: Sequence[DeadLetter] = []
        after = 0
        while True:
            op = letter_desk.listed(which, statuses=[SKIPPED], after=after, limit=PAGE)
            page = await self._run(op)
            for letter in page:
                if self._goes_alone(letter):
                    alone = [*alone, letter.id]
                elif self._can_be_rebuilt(letter):
                    late = [*late, letter]
                else:
                    why = (
                        f"dead letter {letter.id} was skipped: it comes back by a rebuild, of all of"
                        f" {letter.label} where its documents cannot be told apart"
                    )
                    if which.ids is not None:
                        raise InvalidInput(why)
                    log.tell("letter_left_out", reason=why, letter=letter.id)
            if len(page) < PAGE:
                return alone, late
            after = page[-1].id

    def _goes_alone(self, letter: DeadLetter) -> bool:
        """Whether a skipped letter can be tried though later events have been processed."""
        if ":" not in letter.label:  # a subscription
            return True
        definition = _projection(self._registry, letter.label)
        if isinstance(definition, Sql):
            return True
        if isinstance(definition, Composite):  # members cannot be rebuilt document by document
            return letter.key.partition("/")[1:] == ("/", "")
        # Only here is what the operator has put in; whatever comes of it comes late
        is_keyless = isinstance(definition, MultiStream) and not letter.key
        return is_keyless and letter.data is not None

    def _can_be_rebuilt(self, letter: DeadLetter) -> bool:
        definition = _projection(self._registry, letter.label)
        if isinstance(definition, Table):
            return bool(letter.key)  # else nobody knows which rows
        if isinstance(definition, MultiStream) and definition.enrich_handler is not None:
            return bool(letter.key)  # keys may depend on what is looked up, by nodes only
        return isinstance(definition, SingleStream | MultiStream)

    async def _rebuilt(self, late: Sequence[DeadLetter]) -> int:
        """Rebuild the documents of *late*, and close the letters."""
        parts: dict[tuple[str, str], dict[str, None]] = {}
        for letter in late:
            names = parts.setdefault((letter.label, letter.tenant), {})
            names |= dict.fromkeys([letter.key] if letter.key else await self._keys_of(letter))
        for (label, tenant), names in parts.items():
            if names:
                await _rebuild_keys(self.app, label, tenant, list(names))
            ids = [one.id for one in late if (one.label, one.tenant) == (label, tenant)]
            await self._run(letter_desk.resolve(ids, "rebuilt"))
        await self._refuse_failed_again(late)
        return len(late)

    async def _refuse_failed_again(self, late: Sequence[DeadLetter]) -> None:
        """Tell whoever asked that a rebuild has put an event aside once more.

        Raises:
            ApplyFailed: It has; the event's new letter is open.
        """
        asked = {(one.label, one.tenant, one.position) for one in late}
        for label, stream in {(one.label, one.stream): None for one in late}:
            for one in await self.list(label, stream=stream, limit=PAGE):
                if (one.label, one.tenant, one.position) in asked:
                    said = msgspec.json.decode(one.error)["message"] if one.error else "put aside"
                    again = f"it failed again, and is dead letter {one.id} now ({said})"
                    raise ApplyFailed(label, again, position=one.position)

    async def _keys_of(self, letter: DeadLetter) -> Sequence[str]:
        """The documents that an event belongs to which could not be told when it came.

        Raises:
            EventFailure: It cannot be told now either.
            InvalidInput: It belongs to the document with the empty id, too.
        """
        registry = self._registry
        rows = await self._run(letter_desk.rows_of([letter.id]))
        definition = registry.projection(letter.label)
        assert isinstance(definition, MultiStream)
        if letter.id not in rows:
            return ()
        if letter.type not in registry.types.decoders:
            raise UnknownEventType(letter.type, position=letter.position)
        pieces = PageFold(definition, registry.types).group([rows[letter.id]])
        keys = tuple(dict.fromkeys(piece[0][1] for piece in pieces))
        if "" in keys:
            raise InvalidInput(
                f"dead letter {letter.id}: its event belongs to the document '', which is rebuilt with"
                f" all of {letter.label} only"
            )
        return keys

    def _checked(self, letter: DeadLetter, data: Any) -> str:
        """*data* as JSON that the event's class can be made of.

        Raises:
            InvalidInput: It cannot.
        """
        types = self._registry.types
        try:
            if isinstance(data, bytes):
                data = data.decode()
            if type(data) in types.names:
                text = encoded(data, letter.type).decode()
            elif isinstance(data, str):
                text = encoded(msgspec.json.decode(data), letter.type).decode()
            else:
                text = encoded(data, letter.type).decode()
            types.decode(letter.type, text, position=letter.position)
        except (EventFailure, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidInput(f"letter {letter.id}: {error}") from error
        return text


async def _rebuild_keys(app: Any, label: str, tenant: str, keys: Sequence[str]) -> None:
    """Build some documents of a projection anew, and wait until they have taken their place."""
    action = app.usual_action(label)
    try:
        await app.rebuild(label, tenant=tenant, keys=keys, on_error=action)
    except EventFailure as error:
        await app.cancel_rebuild(label, reason=str(error))
        raise


def _projection(registry: Registry, label: str) -> Projection | None:
    try:
        return registry.projection(label)
    except UnknownProjection:
        return None


def _ids(ids: int | Iterable[int]) -> Sequence[int]:
    chosen = [ids] if isinstance(ids, int) else list(ids)
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in chosen):
        raise InvalidInput(f"ids are numbers, not {chosen!r}")
    return chosen


def _reason(reason: str) -> str:
    if not isinstance(reason, str) or not reason.strip():
        raise InvalidInput("say why, as reason='...': it is kept with the letter")
    return reason.replace("\0", "").strip()
