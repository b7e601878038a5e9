"""Given events, when something happens, then this: a composite tested without a database.

    scenario(Bank).given("a", Opened("Ada")).when(Deposited(5)).then(Owners, "Ada", Summary({"a": 5}))

Every event is a page of its own, so later stages hear of every change. Nodes take many events at
once, and then later stages hear less: ``then_whatever_the_pages`` checks that this changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Self

from strandline.daemon.composite_batch import CompositeProcessor
from strandline.daemon.feed import Page
from strandline.errors import ApplyFailed
from strandline.postgres.operations import Op
from strandline.projections.composite import Composite, CompositeDocuments
from strandline.projections.fold import POSITION, Row
from strandline.settings import Settings
from strandline.testing.answers import Answers, Rows, ran
from strandline.testing.definitions import bound, survived
from strandline.testing.differences import same, words
from strandline.testing.history import History, split

Found = dict[str, dict[str, Any]]
"""Documents by member and id."""

EVERYTHING = 2**40  # documents kept in memory


class CompositeScenario:
    """A history, and what must hold. Every method answers the scenario."""

    def __init__(
        self,
        composite: type[Composite],
        *,
        app: Any = None,
        tenant: str = "default",
        names: Mapping[str, Any] | None = None,
    ) -> None:
        self._composite = composite
        self._app = app
        self._names = names or {}
        self._history = History(tenant)
        self._stream = "stream-1"
        self._answers = Answers()

    def given(self, *events: Any) -> Self:
        """These events were stored; a text before them names their stream."""
        self._stream, given = split(events, self._stream)
        self._history.add(self._stream, given)
        return self

    def when(self, *events: Any) -> Self:
        """More events."""
        return self.given(*events)

    def looking_up(
        self,
        *,
        documents: Mapping[Any, Mapping[str, Any]] | None = None,
        rows: Rows | None = None,
    ) -> Self:
        """What ``@sl.enrich`` methods are answered; see ``Scenario.looking_up``."""
        self._answers = Answers(documents, rows)
        return self

    def then(self, member: Any, name: str, expected: Any) -> Self:
        """The member (class or name) has this document.

        Raises:
            AssertionError: It has not; the message shows the difference.
        """
        __tracebackhide__ = True
        found = self._of(member)
        if name not in found:
            there = ", ".join(sorted(found)) or "none"
            raise AssertionError(f"{_title(member)} has no document {name!r} (there are: {there})")
        same(found[name], expected, f"document {name!r} of {_title(member)}")
        return self

    def then_no_document(self, member: Any, name: str | None = None) -> Self:
        """The member has no document of that id, or none at all."""
        __tracebackhide__ = True
        found = self._of(member)
        for one in found if name is None else [name]:
            if one in found:
                raise AssertionError(
                    f"{_title(member)} has a document {one!r}:\n{words(found[one])}"
                )
        return self

    def then_documents(self, member: Any, expected: Mapping[str, Any]) -> Self:
        """The member has these documents and no others."""
        __tracebackhide__ = True
        same(self._of(member), dict(expected), f"documents of {_title(member)}")
        return self

    def then_whatever_the_pages(self) -> Self:
        """One page of all events makes the same documents as a page for each event."""
        __tracebackhide__ = True
        same(self._folded(one_page=True), self._folded(), "documents after one page of all events")
        return self

    def then_raises(self, error: type[Exception], match: str = "") -> Self:
        """A handler of a member raised *error* with *match* in its text."""
        __tracebackhide__ = True
        try:
            self._folded()
        except Exception as caught:  # whatever the user's code raises is looked at
            raised = caught.__cause__ if isinstance(caught, ApplyFailed) else caught
            if not isinstance(raised, error):
                raise AssertionError(  # noqa: TRY004 - a failed expectation, not a wrong argument
                    f"not {error.__name__} was raised, but {raised!r}"
                ) from caught
            if match not in str(raised):
                raise AssertionError(f"{match!r} is not in {str(raised)!r}") from caught
            return self
        raise AssertionError(f"{error.__name__} was not raised")

    def _of(self, member: Any) -> dict[str, Any]:
        found = self._folded()
        definition = self._bound()[0]
        for one in definition.members:
            if member in (one.name, type(one)):
                return found[one.name]
        raise AssertionError(f"{_title(member)} is no member ({', '.join(found)})")

    def _bound(self) -> tuple[Any, Any]:
        happened = self._history.classes()
        return bound(self._composite, happened, app=self._app, names=self._names)

    def _folded(self, *, one_page: bool = False) -> Found:
        definition, types = self._bound()
        pool: Any = _Empty()
        processor = CompositeProcessor(
            CompositeDocuments(definition),
            types,
            pool,
            Settings(cached_documents=EVERYTHING),
            look=self._answers,
        )
        found: Found = {one.name: {} for one in definition.members}
        rows: list[Row] = list(self._history.rows(types))
        pages = [rows] if one_page else [[row] for row in rows]
        for some in pages:
            page = Page(some[0][POSITION] - 1, some[-1][POSITION], some)
            batch = ran(processor.prepare(page), "a member")
            for member, saved, gone in batch.work or ():
                for one in json.loads(gone):
                    found[member.name].pop(one["i"], None)
                for one in json.loads(saved):
                    kept, _ = member.cache.take([(one["t"], one["i"])])
                    (document,) = kept.values()
                    survived(member.projection, one["i"], document.state)
                    state = member.documents.decode(json.dumps(one["d"]))
                    found[member.name][one["i"]] = state
        return found


class _Empty:
    """A database without documents: all there are is in memory."""

    async def run(self, op: Op[Any]) -> Any:
        answer: Sequence[Any] = ()
        try:
            next(op)
            while True:
                op.send(answer)
        except StopIteration as stop:
            return stop.value


def _title(member: Any) -> str:
    return member if isinstance(member, str) else getattr(member, "__name__", "it")
