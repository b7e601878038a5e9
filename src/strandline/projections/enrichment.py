"""Looks up what a page of events needs, at once: an ``@sl.enrich`` method, and its ``look``.

    @sl.enrich
    async def owners(self, events: Sequence[sl.RecordedEvent], look: sl.Lookup) -> list[Any]:
        found = await look.documents(Accounts, {event.data.account for event in events})
        return [found.get(event.data.account) for event in events]

    @sl.apply
    def paid(self, day: Day, event: sl.RecordedEvent[Paid]) -> None:
        account = event.found

It is called once per page, before the events are grouped, while nodes run the projection and while
it is rebuilt. It sees what is committed by then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from strandline.errors import InvalidDefinition
from strandline.events.event import DEFAULT_TENANT, RecordedEvent
from strandline.postgres.operations import Call, Op, Rows
from strandline.postgres.statements import verbatim
from strandline.projections.projection import Projection

Find = Callable[..., Op[dict[str, Any]]]
"""``(reference, ids, tenant=...)`` -> the documents that exist."""


class Runs(Protocol):
    """What runs operations: a pool."""

    async def run(self, op: Op[Any]) -> Any:
        """Run *op*."""
        ...


class Lookup:
    """Reads what is committed, for an ``@sl.enrich`` method.

    Args:
        pool: Where it reads.
        find: Finds documents.
        known: What a reference means.
        forbidden: Labels of what is being brought up to date itself: events of the same page are
            not in it yet, and nobody would notice.
    """

    def __init__(
        self,
        pool: Runs,
        find: Find,
        known: Callable[[Any], Projection],
        forbidden: frozenset[str] = frozenset(),
    ) -> None:
        self._pool = pool
        self._find = find
        self._known = known
        self._forbidden = forbidden

    async def fetch(self, sql: str, *arguments: Any) -> list[Any]:
        """Run your own query (parameters ``$1, $2 ...``); its rows."""
        return list(await self._pool.run(_own(sql, arguments)))

    async def documents(
        self, projection: Any, ids: Iterable[str], *, tenant: str = DEFAULT_TENANT
    ) -> dict[str, Any]:
        """The documents of another projection that exist among *ids*, by id.

        Raises:
            InvalidDefinition: They are of the projection itself, or of its composite: what earlier
                events of the page do to them cannot be seen.
        """
        label = self._known(projection).run_label
        if label in self._forbidden:
            raise InvalidDefinition(
                f"{label} cannot look up its own documents: they lack the events of this page;"
                " fold what is needed into the document, or use a later stage of a composite"
            )
        found: dict[str, Any] = await self._pool.run(
            self._find(projection, list(ids), tenant=tenant)
        )
        return found


def by_position(events: Sequence[RecordedEvent[Any]], answer: Any, name: str) -> Mapping[int, Any]:
    """What an ``@sl.enrich`` method answered, by position.

    Raises:
        TypeError: It is no sequence or mapping.
        ValueError: It does not fit *events*.
    """
    if isinstance(answer, Mapping):
        strange = set(answer) - {event.position for event in events}
        if strange:
            raise ValueError(
                f"{name} answered for {sorted(strange, key=str)[:3]}, which are no positions of its"
                " events"
            )
        return answer
    if not isinstance(answer, Sequence) or isinstance(answer, str | bytes):
        raise TypeError(
            f"{name} answers a list with one entry for each event, or a dict by position, not"
            f" {type(answer).__name__}"
        )
    if len(answer) != len(events):
        raise ValueError(f"{name} answered {len(answer)} for {len(events)} events")
    return {event.position: one for event, one in zip(events, answer, strict=True)}


def _own(sql: str, arguments: tuple[Any, ...]) -> Op[Rows]:
    return (yield Call(verbatim(sql), arguments))
