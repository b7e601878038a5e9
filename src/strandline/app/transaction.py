"""One PostgreSQL transaction: appends, reads, your own SQL, all or nothing."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, overload
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
from strandline.events.spanned import appended, appending
from strandline.jobs.bulk import enqueue_many
from strandline.jobs.flow import Flow
from strandline.jobs.flow_ref import FlowRef
from strandline.jobs.intake import Intake, Refs
from strandline.jobs.job import Call, Job, P, R
from strandline.jobs.spanned import enqueued, enqueued_many, enqueueing
from strandline.jobs.waking import Written
from strandline.postgres.operations import AsyncpgSession, Op, Rows, Session
from strandline.postgres.operations import Call as Step
from strandline.postgres.statements import verbatim
from strandline.projections.registry import Reference
from strandline.requests import Requests

if TYPE_CHECKING:
    from strandline.jobs.results import JobRef


class Transaction:
    """Works inside the transaction its connection is in. Whoever opened that ends it.

    Made by ``app.transaction()``, by ``app.join(connection)`` and for subscriptions.
    """

    def __init__(
        self,
        session: Session,
        requests: Requests,
        intake: Intake[JobRef[Any]],
        *,
        on_appended: Callable[[int, int], None],
        written: Written | None = None,
        tell: Callable[[Written], Op[None]] | None = None,
    ) -> None:
        """Made by the app.

        Args:
            session: Inside a transaction.
            requests: For events and read models.
            intake: For jobs.
            on_appended: Is told the position of each append, and how many events were written.
            written: What is told to workers after the commit, by whoever commits.
            tell: Lets the commit itself tell it: nobody else is there who could.
        """
        self._session = session
        self._requests = requests
        self._intake = intake
        self._on_appended = on_appended
        self._written = written
        self._tell_within = tell

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
        with appending(tenant, stream, stream_type) as span:
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
            appended(span, [done])
        self._on_appended(done.position, done.written)
        return done

    async def append_many(
        self, appends: Iterable[tuple[str, Any] | tuple[str, Any, int]], **options: Any
    ) -> list[Appended]:
        """Append to several streams: ``(stream, events)`` or ``(stream, events, expected)`` each."""
        with appending() as span:
            items = self._requests.prepare_many(appends, **options)
            done = await self._session.run(self._requests.append_within(items))
            appended(span, done)
        self._on_appended(max(one.position for one in done), sum(one.written for one in done))
        return done

    @overload
    async def enqueue(self, call: Call[R], /) -> JobRef[R]: ...
    @overload
    async def enqueue(self, call: Flow, /) -> FlowRef: ...
    @overload
    async def enqueue(self, call: Job[P, R], /, *args: P.args, **kwargs: P.kwargs) -> JobRef[R]: ...

    async def enqueue(self, call: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Enqueue a job or flow; see ``App.enqueue``. It runs if the transaction commits, and only then."""
        new = Written()
        with enqueueing() as span:
            ref = await self._session.run(self._intake.enqueue(call, args, kwargs, new))
            enqueued(span, ref, new)
        await self._tell(new)
        return ref

    async def enqueue_many(
        self, calls: Iterable[Call[Any]] | AsyncIterable[Call[Any]]
    ) -> Refs[JobRef[Any]]:
        """Enqueue many calls, all or none; see ``App.enqueue_many``."""
        intake = self._intake
        with enqueueing() as span:
            many = await enqueue_many(
                self._session, calls, kinds=intake.kinds, ids=intake.ids, undo=True
            )
            enqueued_many(span, many.written)
        await self._tell(many.written)
        return intake.refs(many)

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

    async def _tell(self, new: Written) -> None:
        """Let *new* be told once all is committed."""
        if self._written is not None:
            self._written.update(new)
        elif self._tell_within is not None:
            await self._session.run(self._tell_within(new))

    @property
    def connection(self) -> Any:
        """The driver's connection, for what has no method here."""
        if isinstance(self._session, AsyncpgSession):
            self._session.doubtful = True  # its failures are not seen here
        return self._session.connection


def _own(sql: str, arguments: tuple[Any, ...]) -> Op[Rows]:
    return (yield Step(verbatim(sql), arguments))
