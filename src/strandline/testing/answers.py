"""What asynchronous methods of projections get in a scenario instead of a database."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from strandline.errors import DocumentNotFound
from strandline.events.event import DEFAULT_TENANT, Appended

T = TypeVar("T")

Rows = Callable[..., Sequence[Any]]
"""``(sql, *arguments)`` -> rows"""


def ran(waiting: Coroutine[Any, Any, T], name: str) -> T:
    """What *waiting* answers; it may wait for nothing but the answers of this module.

    Raises:
        AssertionError: It waits for something else.
    """
    __tracebackhide__ = True
    try:
        waiting.send(None)
    except StopIteration as stop:
        answer: T = stop.value
        return answer
    waiting.close()
    raise AssertionError(f"{name} waits for what a scenario does not have: use app_scenario")


class Answers:
    """Documents and rows that are there, whoever asks: a ``Lookup`` for scenarios.

    Args:
        documents: By projection, class or name, and id.
        rows: Answers queries.
    """

    def __init__(
        self, documents: Mapping[Any, Mapping[str, Any]] | None = None, rows: Rows | None = None
    ) -> None:
        self._documents = dict(documents or {})
        self._rows = rows

    async def fetch(self, sql: str, *arguments: Any) -> list[Any]:
        """See ``Lookup``."""
        if self._rows is None:
            raise AssertionError(f"no rows: tell the scenario .looking_up(rows=...) for {sql!r}")
        return list(self._rows(sql, *arguments))

    async def documents(
        self, projection: Any, ids: Iterable[str], *, tenant: str = DEFAULT_TENANT
    ) -> dict[str, Any]:
        """See ``Lookup``."""
        known = self.of(projection)
        return {one: known[one] for one in dict.fromkeys(ids) if one in known}

    def of(self, projection: Any) -> Mapping[str, Any]:
        """The documents of *projection*.

        Raises:
            AssertionError: The scenario was not told any.
        """
        name = getattr(projection, "__name__", projection)
        found: Mapping[str, Any]
        for key, found in self._documents.items():
            if projection in (key, getattr(key, "__name__", key)) or name == key:
                return found
        raise AssertionError(
            f"no documents of {name}: tell the scenario .looking_up(documents={{{name}: ...}})"
        )


class RecordingTransaction:
    """Notes what side effects do, and does nothing: a ``Transaction`` for scenarios."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self.appended: dict[str, list[Any]] = {}
        self.executed: list[tuple[Any, ...]] = []

    async def append(self, stream: str, events: Any, **options: Any) -> Appended:
        """See ``Transaction``."""
        known = self.appended.setdefault(stream, [])
        known += events if isinstance(events, list | tuple) else [events]
        return Appended(stream, len(known), 0)

    async def append_many(self, appends: Iterable[Any], **options: Any) -> list[Appended]:
        """See ``Transaction``."""
        return [await self.append(one[0], one[1]) for one in appends]

    async def execute(self, sql: str, *arguments: Any) -> None:
        """See ``Transaction``."""
        self.executed.append((sql, *arguments))

    async def fetch(self, sql: str, *arguments: Any) -> list[Any]:
        """See ``Transaction``."""
        return await self._answers.fetch(sql, *arguments)

    async def find(self, projection: Any, name: str, *, tenant: str = DEFAULT_TENANT) -> Any:
        """See ``Transaction``."""
        return self._answers.of(projection).get(name)

    async def get(self, projection: Any, name: str, *, tenant: str = DEFAULT_TENANT) -> Any:
        """See ``Transaction``."""
        found = await self.find(projection, name)
        if found is None:
            raise DocumentNotFound(f"{projection} has no document {name!r}")
        return found

    def __getattr__(self, name: str) -> NoReturn:
        """Whatever else a ``Transaction`` has."""
        raise AssertionError(f"tx.{name} does nothing in a scenario: use app_scenario")
