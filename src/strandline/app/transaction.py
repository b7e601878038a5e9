"""One PostgreSQL transaction: appends, reads, your own SQL, all or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from strandline.events import read as reading
from strandline.events.event import (
    ANY,
    DEFAULT_TENANT,
    Appended,
    Metadata,
    RecordedEvent,
    StreamState,
)
from strandline.postgres.operations import AsyncpgSession, Call, Op, Rows, Session
from strandline.postgres.statements import verbatim
from strandline.projections.registry import Reference
from strandline.requests import Requests


class Transaction:
    """Works inside the transaction its connection is in. Whoever opened that ends it.

    Made by ``app.transaction()``, by ``app.join(connection)`` and for subscriptions.
    """

    def __init__(
        self, session: Session, requests: Requests, *, on_appended: Callable[[int], None]
    ) -> None:
        self._session = session
        self._requests = requests
        self._on_appended = on_appended

    async def append(
        self,
        stream: str,
        events: Any,
        *,
        expected: int = ANY,
        tenant: str = DEFAULT_TENANT,
        stream_type: str | None = None,
        metadata: Metadata | Mapping[str, Any] | None = None,
        ids: Sequence[UUID | str] | None = None,
    ) -> Appended:
        """Append to one stream; see ``App.append``. Takes effect when the transaction commits."""
        item = self._requests.prepare(
            stream,
            events,
            expected=expected,
            tenant=tenant,
            stream_type=stream_type,
            metadata=metadata,
            ids=ids,
        )
        (done,) = await self._session.run(self._requests.append_within([item]))
        self._on_appended(done.position)
        return done

    async def append_many(
        self, appends: Iterable[tuple[str, Any] | tuple[str, Any, int]], **options: Any
    ) -> list[Appended]:
        """Append to several streams: ``(stream, events)`` or ``(stream, events, expected)`` each."""
        items = self._requests.prepare_many(appends, **options)
        done = await self._session.run(self._requests.append_within(items))
        self._on_appended(max(one.position for one in done))
        return done

    async def read_stream(self, stream: str, **options: Any) -> list[RecordedEvent[Any]]:
        """The events of one stream; see ``App.read_stream``."""
        types = self._requests.registry.types
        return await self._session.run(reading.read_stream(stream, types=types, **options))

    async def stream_state(
        self, stream: str, *, tenant: str = DEFAULT_TENANT
    ) -> StreamState | None:
        """A stream without its events; None when it does not exist."""
        return await self._session.run(reading.stream_state(stream, tenant=tenant))

    async def get(self, projection: Reference, name: str, *, tenant: str = DEFAULT_TENANT) -> Any:
        """The document *name*; see ``App.get``."""
        return await self._session.run(self._requests.get(projection, name, tenant=tenant))

    async def find(self, projection: Reference, name: str, *, tenant: str = DEFAULT_TENANT) -> Any:
        """The document *name*, or None."""
        found = await self._session.run(self._requests.find(projection, [name], tenant=tenant))
        return found.get(name)

    async def live(
        self,
        projection: Reference,
        stream: str,
        *,
        tenant: str = DEFAULT_TENANT,
        version: int | None = None,
        at: datetime | None = None,
    ) -> Any:
        """A single-stream projection folded now; see ``App.live``."""
        op = self._requests.live(projection, stream, tenant=tenant, version=version, at=at)
        return (await self._session.run(op))[0]

    async def execute(self, sql: str, *arguments: Any) -> None:
        """Run your own SQL (parameters ``$1, $2 ...``, whatever the driver) in the transaction."""
        await self._session.run(_own(sql, arguments))

    async def fetch(self, sql: str, *arguments: Any) -> list[Any]:
        """Run your own query in the transaction; its rows."""
        return list(await self._session.run(_own(sql, arguments)))

    @property
    def connection(self) -> Any:
        """The driver's connection, for what has no method here."""
        if isinstance(self._session, AsyncpgSession):
            self._session.doubtful = True  # its failures are not seen here
        return self._session.connection


def _own(sql: str, arguments: tuple[Any, ...]) -> Op[Rows]:
    return (yield Call(verbatim(sql), arguments))
