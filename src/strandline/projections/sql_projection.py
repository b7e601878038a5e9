"""SQL projections: a method per event queues statements on tables of your own.

    @app.projection("orders", version=1)
    class Orders(sl.Sql):
        tables = ("orders",)
        setup = "CREATE TABLE IF NOT EXISTS orders (id text PRIMARY KEY, total bigint NOT NULL)"
        reset = "TRUNCATE orders"
        teardown = "DROP TABLE IF EXISTS orders"

        @sl.execute
        def placed(self, event: OrderPlaced, sql: sl.Statements) -> None:
            sql("INSERT INTO orders VALUES ($1, $2) ON CONFLICT DO NOTHING", event.id, event.total)

Handlers are told apart by the annotation of the event, as everywhere: a class, a union, a base class,
or ``RecordedEvent[X]``. They only queue; what is queued runs in order, in the transaction that moves
the checkpoint. Keep tenants apart yourself: ``RecordedEvent`` has the tenant.

With ``tables`` it can be rebuilt while it serves: ``setup`` and the handlers run in another schema, of
the same tables, which then take the place of those that served. So neither may name a schema.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

from strandline.errors import (
    ApplyFailed,
    InvalidDefinition,
    InvalidInput,
    OwnershipLost,
    StrandlineError,
    Unavailable,
    UndecodableEvent,
)
from strandline.events.codec import Decode, EventTypes
from strandline.postgres.faults import driver_errors, translated
from strandline.postgres.operations import AsyncpgSession, Op, none
from strandline.postgres.statements import Verbatim, quoted
from strandline.projections.fold import DATA, POSITION, TYPE, Row, envelope_of
from strandline.projections.handlers import Handler, _marked, event_classes, handlers_of
from strandline.projections.projection import Lifecycle, Projection
from strandline.projections.shadow import LIVE, Pair
from strandline.projections.sql_shadow import (
    entered,
    left,
    refuse_other_things,
    refuse_writes_elsewhere,
)

F = TypeVar("F", bound=Callable[..., Any])

Text = str | Sequence[str]
"""One or more SQL statements."""


class Queued(NamedTuple):
    """A statement waiting to be run."""

    text: str
    arguments: tuple[Any, ...]
    position: int
    handler: str


class Statements:
    """Takes a handler's statements: ``sql("INSERT ... VALUES ($1)", value)``."""

    __slots__ = ("handler", "position", "queued")

    def __init__(self) -> None:
        self.queued: list[Queued] = []
        self.position = 0
        self.handler = ""

    def __call__(self, text: str, /, *arguments: Any) -> None:
        """Queue *text*, one statement with parameters ``$1, $2 ...``."""
        if not isinstance(text, str) or not text.strip():
            raise InvalidInput(f"{text!r} is not an SQL statement")
        self.queued.append(Queued(text, arguments, self.position, self.handler))


@dataclass(frozen=True, slots=True)
class _Step:
    handler: str
    call: Callable[[Any, Statements], Any]
    envelope: bool


def execute(function: F) -> F:
    """The method queues SQL for an event: ``(self, event: X, sql: sl.Statements)``."""
    return _marked(function, "execute")


class Sql(Projection):
    """SQL of your own for each event; see the module's example.

    Attributes:
        setup: Runs before the first event, and again at each start: write IF NOT EXISTS.
        reset: Empties the tables for a rebuild; without it, ``teardown`` and ``setup`` do.
        teardown: Drops the tables.
        tables: The names of the tables that ``setup`` makes and handlers write to, all of them, as
            the database has them: without a schema or quotes. Empty: they are rebuilt in place only.
    """

    kind: ClassVar[str] = "sql"
    setup: ClassVar[Text] = ()
    reset: ClassVar[Text] = ()
    teardown: ClassVar[Text] = ()
    tables: ClassVar[Sequence[str]] = ()

    steps: dict[type[Any], tuple[_Step, ...]]

    @property
    def event_classes(self) -> tuple[type[Any], ...]:
        """The event classes it handles."""
        return tuple(self.steps)

    def bind(self, types: EventTypes, names: Mapping[str, Any] | None) -> None:
        """See ``Projection``.

        Raises:
            InvalidDefinition: A handler cannot work; the message says which and why.
        """
        if self.lifecycle is Lifecycle.LIVE:
            raise InvalidDefinition(
                f"projection {self.name!r}: SQL writes to tables; it is inline or async, not live"
            )
        self._check_tables()
        steps: dict[type[Any], tuple[_Step, ...]] = {}
        for handler in handlers_of(self, names):
            classes, envelope = event_classes(_event_annotation(handler), types)
            for cls in classes:
                step = _Step(handler.name, handler.call, envelope)
                steps[cls] = (*steps.get(cls, ()), step)
        if not steps:
            raise InvalidDefinition(
                f"projection {self.name!r} handles no event: write @sl.execute methods"
            )
        self.steps = steps

    def _check_tables(self) -> None:
        if isinstance(self.tables, str):
            raise InvalidDefinition(
                f"projection {self.name!r}: tables is a tuple, as in tables = ({self.tables!r},)"
            )
        for one in self.tables:
            if not isinstance(one, str) or not one or "." in one or '"' in one:
                raise InvalidDefinition(
                    f"projection {self.name!r}: {one!r} in tables is no name of a table: it stands"
                    " without schema and quotes, since a rebuild makes it in another schema"
                )
        if self.tables and not self.setup:
            raise InvalidDefinition(
                f"projection {self.name!r}: tables are made by setup, which is empty"
            )


class OwnTables:
    """What an SQL projection does to the tables. Methods answer operations, unless they say so.

    Attributes:
        takes_turns: Inline, appends to it take turns: rows may gather from many streams.
        names: The stored names of the events it handles.
        wants_envelope: Whether rows must have all nine columns.
        place: ``LIVE``: tables are found by the ``search_path``; else the schema they are built in.
    """

    takes_turns = True

    def __init__(self, projection: Sql, types: EventTypes, place: str = LIVE) -> None:
        self.projection = projection
        self.place = place
        self.label = projection.label
        self._wanted: dict[str, tuple[Decode, tuple[_Step, ...]]] = {
            name: (types.decoders[name], steps)
            for cls, steps in projection.steps.items()
            for name in types.stored_names(cls)
        }
        self.names = tuple(self._wanted)
        self.wants_envelope = any(
            step.envelope for steps in projection.steps.values() for step in steps
        )

    def wants(self, types: Iterable[str]) -> bool:
        """Whether events of any of these stored names concern it. No operation."""
        return any(name in self._wanted for name in types)

    def collect(self, rows: Iterable[Row]) -> list[Queued]:
        """Call the handlers for *rows* in order; what they queued. No operation.

        Raises:
            UndecodableEvent: An event's JSON does not fit its class.
            ApplyFailed: A handler raised.
        """
        sql = Statements()
        for row in rows:
            found = self._wanted.get(row[TYPE])
            if found is None:
                continue
            decode, steps = found
            sql.position = row[POSITION]
            data = row[DATA]  # a shared page is decoded already
            try:
                event = decode(data) if type(data) is str else data
            except Exception as error:  # msgspec, pydantic and upcasters raise their own
                raise UndecodableEvent(row[TYPE], str(error), position=sql.position) from error
            for step in steps:
                sql.handler = step.handler
                try:
                    step.call(envelope_of(row, event) if step.envelope else event, sql)
                except Exception as error:  # the user's handlers raise anything
                    reason = f"{step.handler}: {error!r}"
                    raise ApplyFailed(self.label, reason, position=sql.position) from error
        return sql.queued

    def apply(self, queued: Iterable[Queued], owner: str = "") -> Op[None]:
        """Run what was queued, in order, one at a time: on any session.

        Args:
            queued: By handlers.
            owner: See ``apply_in_runs``.

        Raises:
            ApplyFailed: A statement failed; the transaction cannot go on.
        """
        for one in queued:
            try:
                yield from none(_statement(_of(owner, one.text)), *one.arguments)
            except (Unavailable, OwnershipLost):
                raise
            except Exception as error:  # the driver's too
                raise self._blamed(error, one) from error

    async def apply_in_runs(
        self, session: AsyncpgSession, queued: Iterable[Queued], owner: str = ""
    ) -> None:
        """Run what was queued, in order; neighbours of the same text go to the server together.

        Args:
            session: In a transaction.
            queued: By handlers.
            owner: Shard and epoch. Connections keep statements with the types their parameters had
                when they were first run, and a build, or the swap, may have changed those of the
                columns: so no statement is kept longer than a claim.

        Raises:
            ApplyFailed: A statement failed; the transaction cannot go on. Its position is told
                when it ran alone.
            InvalidDefinition: In a build, they wrote to other tables than its own.
        """
        if self.place != LIVE:
            await session.run(entered(self.place))
        await self._in_runs(session, queued, owner)
        if self.place != LIVE:
            await session.run(refuse_writes_elsewhere(self.label, self.place))
            await session.run(refuse_other_things(self.label, self.place, self.projection.tables))

    async def _in_runs(self, session: AsyncpgSession, queued: Iterable[Queued], owner: str) -> None:
        for text, run in itertools.groupby(queued, key=lambda one: one.text):
            together = list(run)
            if len(together) == 1:
                await session.run(self.apply(together, owner))
                continue
            try:
                arguments = [one.arguments for one in together]
                await session.connection.executemany(_of(owner, text), arguments)
            except driver_errors() as error:
                failed = self._blamed(
                    translated(error, "your SQL"), together[0]._replace(position=0)
                )
                raise failed from error

    def follow(self, rows: Sequence[Row]) -> Op[None]:
        """Bring the tables up to date with *rows*, just appended in the same transaction.

        Raises:
            EventFailure: A handler or statement failed, so the append fails with it.
        """
        yield from self.apply(self.collect(rows))

    def create(self) -> Op[None]:
        """Run ``setup``; in a build inside a transaction.

        Raises:
            InvalidDefinition: It failed, or has not made in the build's place what it should.
        """
        if self.place == LIVE:
            yield from self._run("setup", self.projection.setup)
            return
        before = yield from entered(self.place)
        yield from self._run("setup", self.projection.setup)
        yield from left(before)
        yield from refuse_other_things(self.label, self.place, self.projection.tables)

    def tables(self) -> Sequence[Pair]:
        """See ``Swappable``. No operation. ``with_keys`` finds their keys."""
        return tuple(
            Pair(quoted(name), f"{self.place}.{quoted(name)}", ())
            for name in self.projection.tables
        )

    def empty(self) -> Op[None]:
        """Run ``reset``, or ``teardown`` and ``setup``.

        Raises:
            InvalidDefinition: None of them is declared, or one failed.
        """
        projection = self.projection
        if projection.reset:
            yield from self._run("reset", projection.reset)
        elif projection.teardown:
            yield from self._run("teardown", projection.teardown)
            yield from self._run("setup", projection.setup)
        else:
            raise InvalidDefinition(
                f'{self.label}: say how its tables are emptied, as reset = "TRUNCATE orders"'
            )

    def drop(self) -> Op[None]:
        """Run ``teardown``.

        Raises:
            InvalidDefinition: It failed.
        """
        yield from self._run("teardown", self.projection.teardown)

    def _run(self, what: str, text: Text) -> Op[None]:
        for one in (text,) if isinstance(text, str) else text:
            try:
                yield from none(_statement(one))
            except (Unavailable, OwnershipLost):
                raise
            except Exception as error:  # the driver's too
                raise InvalidDefinition(f"{self.label}: {what} failed: {_told(error)}") from error

    def _blamed(self, error: Exception, one: Queued) -> Exception:
        """*error* as the projection's fault, unless trying again is the cure."""
        if isinstance(error, Unavailable | OwnershipLost):
            return error
        reason = f"{one.handler}: {_told(error)} ({' '.join(one.text.split())[:80]})"
        return ApplyFailed(self.label, reason, position=one.position)


def _of(owner: str, text: str) -> str:
    return f"{text}\n-- {owner}" if owner else text


def _statement(text: str) -> Verbatim:
    return Verbatim("your SQL", text, tuple, "none", (), None)


def _told(error: BaseException) -> str:
    """What the server said: our own words for it are about our own tables."""
    said = error.__cause__ or error if isinstance(error, StrandlineError) else error
    return " ".join(str(said).split()) or type(said).__name__


def _event_annotation(handler: Handler) -> Any:
    if handler.role != "execute":
        raise InvalidDefinition(f"{handler.name}: methods of an sl.Sql projection are @sl.execute")
    if len(handler.parameters) != 2:
        raise InvalidDefinition(f"{handler.name}: an execute handler is (self, event, sql)")
    event = handler.parameters[0]
    if event not in handler.annotations:
        raise InvalidDefinition(f"{handler.name}: annotate {event}")
    return handler.annotations[event]
