"""The blocking twin of ``strandline.Transaction``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, overload
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
from strandline.jobs.blocking import JobRef
from strandline.jobs.flow import Flow
from strandline.jobs.flow_ref import FlowRef
from strandline.jobs.intake import Intake, Refs
from strandline.jobs.job import Call, Job, P, R
from strandline.jobs.spanned import enqueued, enqueued_many, enqueueing
from strandline.jobs.waking import Written
from strandline.postgres.operations import BlockingSession, Op, Rows
from strandline.postgres.operations import Call as Step
from strandline.postgres.statements import verbatim
from strandline.projections.registry import Reference
from strandline.requests import Requests


class Transaction:
    """Works inside the transaction its connection is in. Whoever opened that ends it."""

    def __init__(
        self,
        session: BlockingSession,
        requests: Requests,
        intake: Intake[JobRef[Any]],
        *,
        on_appended: Callable[[int], None],
        written: Written | None = None,
        tell: Callable[[Written], Op[None]] | None = None,
    ) -> None:
        """Made by the app; see ``strandline.Transaction``."""
        self._session = session
        self._requests = requests
        self._intake = intake
        self._on_appended = on_appended
        self._written = written
        self._tell_within = tell

    def append(
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
        """Append to one stream; see ``strandline.App.append``."""
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
            (done,) = self._session.run(self._requests.append_within([item]))
            appended(span, [done])
        self._on_appended(done.written)
        return done

    def append_many(
        self, appends: Iterable[tuple[str, Any] | tuple[str, Any, int]], **options: Any
    ) -> list[Appended]:
        """Append to several streams, all or none; see ``strandline.App.append_many``."""
        with appending() as span:
            items = self._requests.prepare_many(appends, **options)
            done = self._session.run(self._requests.append_within(items))
            appended(span, done)
        self._on_appended(sum(one.written for one in done))
        return done

    @overload
    def enqueue(self, call: Call[R], /) -> JobRef[R]: ...
    @overload
    def enqueue(self, call: Flow, /) -> FlowRef: ...
    @overload
    def enqueue(self, call: Job[P, R], /, *args: P.args, **kwargs: P.kwargs) -> JobRef[R]: ...

    def enqueue(self, call: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Enqueue a job or flow; see ``strandline.Transaction.enqueue``."""
        new = Written()
        with enqueueing() as span:
            ref = self._session.run(self._intake.enqueue(call, args, kwargs, new))
            enqueued(span, ref, new)
        self._tell(new)
        return ref

    def enqueue_many(self, calls: Iterable[Call[Any]]) -> Refs[JobRef[Any]]:
        """Enqueue many calls, all or none; see ``strandline.App.enqueue_many``."""
        new = Written()
        with enqueueing() as span:
            refs = self._session.run(self._intake.many(calls, new))
            enqueued_many(span, new)
        self._tell(new)
        return refs

    def read_stream(self, stream: str, **options: Any) -> list[RecordedEvent[Any]]:
        """The events of one stream; see ``strandline.App.read_stream``."""
        types = self._requests.registry.types
        return self._session.run(reading.read_stream(stream, types=types, **options))

    def stream_state(self, stream: str, *, tenant: str = DEFAULT_TENANT) -> StreamState | None:
        """A stream without its events; None when it does not exist."""
        return self._session.run(reading.stream_state(stream, tenant=tenant))

    def get(self, projection: Reference, name: str, *, tenant: str = DEFAULT_TENANT) -> Any:
        """The document *name*; see ``strandline.App.get``."""
        return self._session.run(self._requests.get(projection, name, tenant=tenant))

    def find(self, projection: Reference, name: str, *, tenant: str = DEFAULT_TENANT) -> Any:
        """The document *name*, or None."""
        return self._session.run(self._requests.find(projection, [name], tenant=tenant)).get(name)

    def live(
        self,
        projection: Reference,
        stream: str,
        *,
        tenant: str = DEFAULT_TENANT,
        version: int | None = None,
        at: datetime | None = None,
    ) -> Any:
        """A single-stream projection folded now; see ``strandline.App.live``."""
        op = self._requests.live(projection, stream, tenant=tenant, version=version, at=at)
        return self._session.run(op)[0]

    def execute(self, sql: str, *arguments: Any) -> None:
        """Run your own SQL (parameters ``$1, $2 ...``) in the transaction."""
        self._session.run(_own(sql, arguments))

    def fetch(self, sql: str, *arguments: Any) -> list[Any]:
        """Run your own query in the transaction; its rows."""
        return list(self._session.run(_own(sql, arguments)))

    def _tell(self, new: Written) -> None:
        if self._written is not None:
            self._written.update(new)
        elif self._tell_within is not None:
            self._session.run(self._tell_within(new))

    @property
    def connection(self) -> Any:
        """The psycopg connection."""
        return self._session.connection


def _own(sql: str, arguments: tuple[Any, ...]) -> Op[Rows]:
    return (yield Step(verbatim(sql), arguments))
