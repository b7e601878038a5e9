"""The blocking twin of ``strandline.App``."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, overload
from uuid import UUID

from strandline.daemon.progress import POLL, are_beyond, behind, positions_of
from strandline.errors import AnswerTimedOut, DatabaseUnavailable, InvalidDefinition, NotOpen
from strandline.events import read as reading
from strandline.events.event import (
    ANY,
    DEFAULT_TENANT,
    Appended,
    Metadata,
    RecordedEvent,
    StreamState,
)
from strandline.jobs.blocking import JobRef, enqueue_once, tell
from strandline.jobs.flow import Flow
from strandline.jobs.flow_ref import FlowRef
from strandline.jobs.ids import Ids
from strandline.jobs.intake import Intake, Refs
from strandline.jobs.job import Call, Job, P, R
from strandline.jobs.kinds import Kinds, as_call
from strandline.jobs.registration import JobRegistration
from strandline.jobs.results import Answers
from strandline.jobs.row import Kept
from strandline.jobs.spanned import enqueued, enqueueing
from strandline.jobs.waking import Written, channel, notify_within
from strandline.postgres import migrations
from strandline.postgres.blocking import BlockingPool
from strandline.postgres.operations import BlockingSession
from strandline.projections.lifecycles import is_locked
from strandline.projections.registry import Reference, Registry
from strandline.registration import Registration
from strandline.requests import SETTLED_WITHIN, Requests, rest_between_tries
from strandline.settings import load
from strandline.sync.counting import Counting
from strandline.sync.transaction import Transaction
from strandline.telemetry.journal import Journal

log = Journal("strandline.sync")


class App(Registration, JobRegistration):
    """The blocking twin of ``strandline.App``: the same declarations, the same requests.

    Args:
        name: Names the app.
        database_url: PostgreSQL to use; ``STRANDLINE_DATABASE_URL`` when None, else an embedded server.
        registry: Declarations of another app to share: ``sync.App("shop", registry=app.registry)``.
        toml: A file with settings.
        settings: Any option of ``strandline.settings.Settings``.
    """

    def __init__(
        self,
        name: str = "app",
        database_url: str | None = None,
        *,
        registry: Registry | None = None,
        toml: Path | str | None = None,
        **settings: Any,
    ) -> None:
        given = {"database_url": database_url, **settings}
        self.name = name
        self.settings = load(given, toml=Path(toml) if toml else None)
        self.registry = registry or Registry()
        self.kinds = Kinds(self.registry.jobs, self.settings)
        self._ids = Ids()
        self._answers = Answers(self.kinds)
        self._counting = Counting(
            name, self.settings, lambda: self._pool.statistics() if self._pool else None
        )
        self._server: Any = None
        self._pool: BlockingPool | None = None
        self._requests: Requests | None = None

    def open(self) -> None:
        """Start the embedded server if there is no other, migrate, open the pool."""
        if self._pool is not None:
            return
        url = self.settings.database_url or self._embedded()
        pool = BlockingPool(url, self.settings, self._counting.signals)
        pool.open()
        try:
            self.registry.bind()
            self.kinds.bind()
            self._ids.forget()
            self._requests = Requests(self.registry, self.settings)
            schema = self.settings.schema
            if self.settings.migrate_at_start:
                with pool.transaction() as session:
                    session.run(migrations.apply(schema))
                    session.run(self._requests.learn_retired())
                    session.run(self._requests.create_read_models())
            else:
                pool.run(migrations.check(schema))
                pool.run(self._requests.learn_retired())
            _settle(pool, self._requests)
        except BaseException:
            pool.close()
            raise
        self._pool = pool
        self._counting.metrics.start()

    def close(self) -> None:
        """Close the pool, and the embedded server if nobody else uses it."""
        self._counting.metrics.stop()
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()
        server, self._server = self._server, None
        if server is not None:
            server.stop()

    def __enter__(self) -> Self:
        """Open."""
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """One PostgreSQL transaction: commits at the end of the block, or rolls back."""
        written = Written()
        appended: list[int] = []
        with self._opened.transaction() as session:
            yield Transaction(
                session, self.requests, self._intake, on_appended=appended.append, written=written
            )
        self._counting.appended(sum(appended))
        self._counting.enqueued(written)
        tell(self._opened, channel(self.settings), written)

    def join(self, connection: Any) -> Transaction:
        """Take part in the transaction of your own psycopg connection.

        Also takes what has such a connection behind ``connection`` (Django) or
        ``driver_connection`` (SQLAlchemy).
        """
        for step in ("driver_connection", "connection"):
            inner = getattr(connection, step, None)
            if inner is not None and not hasattr(connection, "info"):
                connection = inner
        if type(connection).__module__.partition(".")[0] != "psycopg":
            raise InvalidDefinition(
                f"cannot join a {type(connection).__module__}.{type(connection).__qualname__}:"
                " pass a blocking psycopg connection"
            )
        session = BlockingSession(connection, self.settings.schema)
        told = partial(notify_within, self.settings)
        return Transaction(
            session, self.requests, self._intake, on_appended=self._counting.appended, tell=told
        )

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
        """Append one event, or several in order; see ``strandline.App.append``."""
        with self.transaction() as tx:
            return tx.append(
                stream,
                events,
                expected=expected,
                tenant=tenant,
                stream_type=stream_type,
                metadata=metadata,
                ids=ids,
            )

    def append_many(
        self, appends: Iterable[tuple[str, Any] | tuple[str, Any, int]], **options: Any
    ) -> list[Appended]:
        """Append to several streams, all or none; see ``strandline.App.append_many``."""
        with self.transaction() as tx:
            return tx.append_many(appends, **options)

    @overload
    def enqueue(self, call: Call[R], /) -> JobRef[R]: ...
    @overload
    def enqueue(self, call: Flow, /) -> FlowRef: ...
    @overload
    def enqueue(self, call: Job[P, R], /, *args: P.args, **kwargs: P.kwargs) -> JobRef[R]: ...

    def enqueue(self, call: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Enqueue one job, or a flow; see ``strandline.App.enqueue``."""
        given = as_call(call, args, kwargs)
        if isinstance(given, Flow):
            with self.transaction() as tx:
                return tx.enqueue(given)
        pool, intake = self._opened, self._intake
        written = Written()
        with enqueueing() as span:
            job = pool.run(intake.prepared(given))
            with intake.ids.watched():
                done = enqueue_once(pool, job)
            written.add([job])
            ref = intake.told(job, done)
            enqueued(span, ref, written)
        self._counting.enqueued(written)
        tell(pool, channel(self.settings), written)
        return ref

    def enqueue_many(self, calls: Iterable[Call[Any]]) -> Refs[JobRef[Any]]:
        """Enqueue any number of calls, all or none; see ``strandline.App.enqueue_many``."""
        with self.transaction() as tx:
            return tx.enqueue_many(calls)

    def read_stream(self, stream: str, **options: Any) -> list[RecordedEvent[Any]]:
        """The events of one stream; see ``strandline.App.read_stream``."""
        types = self.registry.types
        return self._opened.run(reading.read_stream(stream, types=types, **options))

    def stream_state(self, stream: str, *, tenant: str = DEFAULT_TENANT) -> StreamState | None:
        """A stream without its events; None when it does not exist."""
        return self._opened.run(reading.stream_state(stream, tenant=tenant))

    def get(self, projection: Reference, name: str, *, tenant: str = DEFAULT_TENANT) -> Any:
        """The document *name*; see ``strandline.App.get``."""
        return self._opened.run(self.requests.get(projection, name, tenant=tenant))

    def find(self, projection: Reference, name: str, *, tenant: str = DEFAULT_TENANT) -> Any:
        """The document *name*, or None."""
        return self._opened.run(self.requests.find(projection, [name], tenant=tenant)).get(name)

    def query(
        self,
        projection: Reference,
        where: Mapping[str, Any] | str | None = None,
        *arguments: Any,
        tenant: str = DEFAULT_TENANT,
        order_by: str | None = None,
        limit: int | None = None,
    ) -> list[tuple[str, Any]]:
        """Ids and documents that fit *where*; see ``strandline.App.query``."""
        op = self.requests.query(
            projection, where, arguments, tenant=tenant, order_by=order_by, limit=limit
        )
        return self._opened.run(op)

    def rows(
        self,
        projection: Reference,
        where: Mapping[str, Any] | str | None = None,
        *arguments: Any,
        tenant: str = DEFAULT_TENANT,
        order_by: str | None = None,
        limit: int | None = None,
    ) -> list[Any]:
        """The rows of a table projection that fit *where*; see ``strandline.App.rows``."""
        op = self.requests.table(projection).query(
            where, arguments, tenant=tenant, order_by=order_by, limit=limit
        )
        return self._opened.run(op)

    def row(self, projection: Reference, key: Any, *, tenant: str = DEFAULT_TENANT) -> Any:
        """The row under *key* (a tuple of several key columns), or None."""
        return self._opened.run(self.requests.table(projection).find(key, tenant=tenant))

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
        op = self.requests.live(projection, stream, tenant=tenant, version=version, at=at)
        return self._opened.run(op)[0]

    def wait_for(
        self, position: int, *projections: Reference, timeout: float | None = None
    ) -> None:
        """Wait until *projections* include *position*; see ``strandline.App.wait_for``."""
        labels = self.registry.labels_of(projections)
        seconds = self.settings.wait_timeout if timeout is None else timeout
        deadline = time.monotonic() + seconds
        while True:
            known = self._opened.run(positions_of(labels))
            if are_beyond(position, labels, known):
                return
            if time.monotonic() >= deadline:
                raise AnswerTimedOut(behind(position, labels, known, seconds))
            time.sleep(POLL)

    def metrics_page(self, accept: str = "") -> tuple[bytes, str]:
        """What this process has counted; see ``strandline.App.metrics_page``."""
        return self._counting.metrics.exposition(accept)

    @property
    def is_open(self) -> bool:
        """Whether it can be used."""
        return self._pool is not None

    @property
    def requests(self) -> Requests:
        """The operations of this app."""
        if self._requests is None:
            raise NotOpen(f"app {self.name!r} is not open: use `with app:` or app.open()")
        return self._requests

    @property
    def _intake(self) -> Intake[JobRef[Any]]:
        return Intake(self.kinds, self._ids, self._job_ref)

    def _job_ref(
        self,
        id: int,  # noqa: A002 - it is one
        kind: str,
        is_new: bool,
        kept: Kept,
    ) -> JobRef[Any]:
        return JobRef(id, kind, self._opened, self._answers, is_new=is_new, kept=kept)

    @property
    def _opened(self) -> BlockingPool:
        if self._pool is None:
            raise NotOpen(f"app {self.name!r} is not open: use `with app:` or app.open()")
        return self._pool

    def _embedded(self) -> str:
        from strandline.postgres.embedded import Embedded

        self._server = Embedded(self.settings.embedded_folder(self.name), app=self.name)
        url: str = self._server.start().url
        return url


def _settle(pool: BlockingPool, requests: Requests) -> None:
    """The twin of ``strandline.app.versions.settle``."""
    deadline = time.monotonic() + SETTLED_WITHIN
    while pool.run(requests.unsettled()):
        try:
            with pool.transaction() as session:
                session.run(requests.settle())
        except DatabaseUnavailable as error:
            if not is_locked(error):
                raise
            if time.monotonic() >= deadline:
                raise AnswerTimedOut(
                    f"a change of lifecycle was not made within {SETTLED_WITHIN:g} s: {error}"
                ) from error
            time.sleep(rest_between_tries(random.random()))  # noqa: S311 - spreading, not secrecy
    for text in pool.run(requests.left_to_nodes()):
        log.tell("lifecycle_differs", advice=text)
