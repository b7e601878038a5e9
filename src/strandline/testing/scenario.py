"""Given events, when something happens, then this: a projection tested without a database.

    scenario(Accounts).given(AccountOpened("Ada")).when(MoneyDeposited(5)).then(Account("Ada", 5))
    scenario(Accounts).given(AccountOpened("Ada")).when(withdraw_ten).then_raises(TooLittle)
    scenario(Days).given("trip-1", Started(3)).given("trip-2", Started(3)).then("3", Day(started=2))
    scenario(Accounts).given(AccountOpened("Ada")).when(Overdrawn()).then_appended("letters", Due())

Events and documents go through JSON as they do in production, so what does not survive storage is
found here. A text before events names their stream; without one it is the stream named last, or
``stream-1``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, Self, TypeVar, overload

from strandline.errors import ApplyFailed
from strandline.events.codec import is_event_class
from strandline.projections.composite import Composite
from strandline.projections.documents import Document, Key
from strandline.projections.effects import Changes, changes_of
from strandline.projections.enrichment import by_position
from strandline.projections.fold import PageFold, Piece, Row
from strandline.projections.multi_stream import MultiStream
from strandline.projections.single_stream import SingleStream
from strandline.testing.answers import Answers, RecordingTransaction, Rows, ran
from strandline.testing.composite_scenario import CompositeScenario
from strandline.testing.definitions import bound, survived
from strandline.testing.differences import same, words
from strandline.testing.history import History, split

S = TypeVar("S")

STREAM = "stream-1"
Definition = type[SingleStream[S]] | type[MultiStream[S]]


@overload
def scenario(
    projection: type[Composite], *, app: Any = None, tenant: str = "default"
) -> CompositeScenario: ...
@overload
def scenario(
    projection: Definition[S], *, app: Any = None, tenant: str = "default"
) -> Scenario[S]: ...
def scenario(projection: Any, *, app: Any = None, tenant: str = "default") -> Any:
    """Begin a scenario for *projection*.

    Args:
        projection: The class of a single- or multi-stream projection, or of a composite.
        app: The app it is registered on; needed only where a handler is annotated with something
            that covers events which the annotations of its handlers do not name.
        tenant: Whose streams these are.
    """
    names = sys._getframe(1).f_locals  # events may be local to the test that declares them
    made = CompositeScenario if issubclass(projection, Composite) else Scenario
    return made(projection, app=app, tenant=tenant, names=names)


class Scenario(Generic[S]):
    """A history, what happened then, and what must hold. Every method answers the scenario."""

    def __init__(
        self,
        projection: Definition[S],
        *,
        app: Any = None,
        tenant: str = "default",
        names: Mapping[str, Any] | None = None,
    ) -> None:
        self._projection = projection
        self._app = app
        self._names = names or {}
        self._history = History(tenant)
        self._stream = STREAM
        self._before = 0  # position of the last event that was given
        self._answers = Answers()
        self._decided: list[Any] | None = None
        self._raised: Exception | None = None

    # ---- given and when

    def given(self, *events: Any) -> Self:
        """These events were stored; a text before them names their stream."""
        self._stream, given = split(events, self._stream)
        self._history.add(self._stream, given)
        self._before = len(self._history)
        return self

    def looking_up(
        self,
        *,
        documents: Mapping[Any, Mapping[str, Any]] | None = None,
        rows: Rows | None = None,
    ) -> Self:
        """What ``@sl.enrich`` and ``@sl.effects`` methods are answered when they ask.

        Args:
            documents: Of other projections, by class or name, then by id.
            rows: ``(sql, *arguments)`` -> rows.
        """
        self._answers = Answers(documents, rows)
        return self

    def when(self, *happening: Any) -> Self:
        """More events, or a decision: a function from the state (None: there is none) to events.

        The function may answer one event, several, or None; what it raises, ``then_raises`` tells.
        A text before it names the stream.
        """
        self._stream, given = split(happening, self._stream)
        if len(given) == 1 and callable(given[0]) and not is_event_class(type(given[0])):
            self._decide(self._stream, given[0])
        else:
            self._history.add(self._stream, given)
        return self

    # ---- then

    def then(self, *expected: Any) -> Self:
        """The only document is as expected: ``then(state)``; or one of several: ``then(id, state)``.

        Raises:
            AssertionError: It is not, or there is none; the message shows the difference.
        """
        __tracebackhide__ = True
        if len(expected) not in (1, 2):
            raise TypeError("then(state), or then(id, state)")
        found = self._documents()
        there = ", ".join(sorted(found)) or "none"
        if len(expected) == 1 and len(found) > 1:
            raise AssertionError(f"which document? then(id, state); there are: {there}")
        name = expected[0] if len(expected) == 2 else next(iter(found), self._stream)
        if name not in found:
            raise AssertionError(f"there is no document {name!r} (there are: {there})")
        same(found[name], expected[-1], f"document {name!r}")
        return self

    def then_no_document(self, name: str | None = None) -> Self:
        """There is no document of that id, or none at all: it never began, or was deleted."""
        __tracebackhide__ = True
        found = self._documents()
        for one in found if name is None else [name]:
            if one in found:
                raise AssertionError(f"there is a document {one!r}:\n{words(found[one])}")
        return self

    def then_documents(self, expected: Mapping[str, S]) -> Self:
        """These documents are there, as expected, and no others."""
        __tracebackhide__ = True
        same(self._documents(), dict(expected), "documents")
        return self

    def then_events(self, *expected: Any) -> Self:
        """The decision answered exactly these events."""
        __tracebackhide__ = True
        self._raise_unexpected()
        if self._decided is None:
            raise AssertionError("nothing was decided: give `when` a function from state to events")
        same(self._decided, list(expected), "decided events")
        return self

    def then_appended(self, stream: str, *expected: Any) -> Self:
        """The side effects of what happened have appended exactly these events to *stream*."""
        __tracebackhide__ = True
        found = self._effects().appended.get(stream, [])
        same(found, list(expected), f"events appended to {stream!r} by side effects")
        return self

    def then_executed(self, sql: str, *arguments: Any) -> Self:
        """The side effects of what happened have executed this, among others."""
        __tracebackhide__ = True
        found = self._effects().executed
        if (sql, *arguments) not in found:
            raise AssertionError(f"{(sql, *arguments)!r} was not executed, but {found!r}")
        return self

    def then_no_effects(self) -> Self:
        """The side effects of what happened have appended and executed nothing."""
        __tracebackhide__ = True
        tx = self._effects()
        same([tx.appended, tx.executed], [{}, []], "side effects")
        return self

    def then_raises(self, error: type[Exception], match: str = "") -> Self:
        """The decision, or a handler of the projection, raised *error* with *match* in its text."""
        __tracebackhide__ = True
        raised = self._raised
        if raised is None:
            try:
                self._effects()
            except Exception as caught:  # whatever the user's code raises is looked at
                raised = caught.__cause__ if isinstance(caught, ApplyFailed) else caught  # type: ignore[assignment]  # a handler's error is an Exception
        self._raised = None
        if raised is None:
            raise AssertionError(f"{error.__name__} was not raised")
        if not isinstance(raised, error):
            raise AssertionError(  # noqa: TRY004 - a failed expectation, not a wrong argument
                f"not {error.__name__} was raised, but {raised!r}"
            ) from raised
        if match not in str(raised):
            raise AssertionError(f"{match!r} is not in {str(raised)!r}") from raised
        return self

    # ---- how

    def _decide(self, stream: str, decision: Callable[[Any], Any]) -> None:
        state = self._documents().get(stream)
        try:
            answer = decision(state)
        except Exception as error:  # whatever the user's code raises is told by then_raises
            self._raised = error
            return
        self._decided = _listed(answer)
        self._history.add(stream, self._decided)

    def _documents(self) -> dict[str, S]:
        """Every document after the whole history."""
        fold, _, found = self._folded()
        return {
            key[1]: survived(fold.projection, key[1], document.state)
            for key, document in found.items()
            if document.state is not None
        }

    def _folded(self) -> tuple[PageFold, list[Piece], dict[Key, Document[Any]]]:
        self._raise_unexpected()
        definition, types = bound(
            self._projection, self._history.classes(), app=self._app, names=self._names
        )
        fold = PageFold(definition, types, full=True)
        rows: Sequence[Row] = self._history.rows(types)
        looked_up = None
        enrich = definition.enrich_handler
        if enrich is not None:
            rows, events = fold.decoded(rows)
            answer = ran(enrich.call(tuple(events), self._answers), enrich.name)
            looked_up = by_position(events, answer, enrich.name)
        pieces = fold.group(rows, looked_up)
        found: dict[Key, Document[Any]] = {
            piece[0]: Document(None, 0, 0, stored=False) for piece in pieces
        }
        fold.apply(pieces, found)
        return fold, pieces, found

    def _effects(self) -> RecordingTransaction:
        """What the side effects do in a batch of what happened."""
        fold, pieces, found = self._folded()
        tx = RecordingTransaction(self._answers)
        handler = fold.projection.effects_handler
        changes = changes_of(pieces, found, fold.projection.folder.decode, after=self._before)
        if handler is not None and changes:
            ran(handler.call(Changes(changes, len(self._history)), tx), handler.name)
        return tx

    def _raise_unexpected(self) -> None:
        if self._raised is not None:
            raised, self._raised = self._raised, None
            raise raised


def _listed(answer: Any) -> list[Any]:
    if answer is None:
        return []
    if is_event_class(type(answer)) or not isinstance(answer, Iterable):
        return [answer]
    return list(answer)
