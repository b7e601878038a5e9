"""App: the composition root and its life: open, be a node, close."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import uuid4

from strandline.app.enqueueing import EnqueueFace
from strandline.app.events import EventFace
from strandline.app.healing import HealFace
from strandline.app.health import HealthFace, OpsPort
from strandline.app.job_desk import JobFace
from strandline.app.job_ties import declare_schedules, job_ties
from strandline.app.letters import LetterFace
from strandline.app.models import ModelFace
from strandline.app.node import Node, NodeWiring
from strandline.app.nodes import NodeFace, Running
from strandline.app.queue_desk import QueueFace
from strandline.app.runtime import Runtime
from strandline.app.schedule_desk import ScheduleFace
from strandline.app.transaction import Transaction
from strandline.app.verifying import VerifyFace
from strandline.app.versions import VersionFace, settle
from strandline.daemon.daemon import APPENDED_CHANNEL
from strandline.daemon.progress import Waiting
from strandline.errors import NodeEvicted, NotOpen
from strandline.events.store import EventStore
from strandline.jobs.cron_registration import CronRegistration, Schedules
from strandline.jobs.enqueuer import Enqueuer
from strandline.jobs.hooks import Hooks
from strandline.jobs.ids import Ids
from strandline.jobs.kinds import Kinds
from strandline.jobs.middleware import Middleware
from strandline.jobs.part import JobShare, JobTies
from strandline.jobs.queues import QueueSettings
from strandline.jobs.registration import JobRegistration
from strandline.jobs.results import Results
from strandline.jobs.surroundings import JobSurroundings
from strandline.jobs.waking import TURNS, Wakes, Written, notify_within
from strandline.jobs.wiring import JobWiring
from strandline.loops import Loops
from strandline.postgres import migrations
from strandline.postgres.listener import Listener, Notifier
from strandline.postgres.pools import Pools
from strandline.projections.registry import Registry
from strandline.registration import Registration
from strandline.requests import Requests
from strandline.settings import Settings, load
from strandline.telemetry.journal import Journal
from strandline.telemetry.metrics import Metrics
from strandline.telemetry.signals import Signals
from strandline.telemetry.span_notices import Tracing

log = Journal("strandline")

T = TypeVar("T")


class App(
    Registration,
    EnqueueFace,
    JobRegistration,
    JobSurroundings,
    CronRegistration,
    EventFace,
    ModelFace,
    NodeFace,
    HealthFace,
    VerifyFace,
    HealFace,
    VersionFace,
    LetterFace,
    JobFace,
    QueueFace,
    ScheduleFace,
):
    """An event store with its projections, on one PostgreSQL database.

    Declare events and projections on it, then use it with ``async with app:``. Without a
    ``database_url`` (argument, or ``STRANDLINE_DATABASE_URL``) it starts an embedded server.

    Args:
        name: Names the app: the embedded server's folder and the node's log lines.
        database_url: PostgreSQL to use, e.g. ``postgresql://user@host/shop``.
        toml: A file whose ``[tool.strandline]`` table holds settings.
        settings: Any option of ``strandline.settings.Settings``.
    """

    def __init__(
        self,
        name: str = "app",
        database_url: str | None = None,
        *,
        toml: Path | str | None = None,
        **settings: Any,
    ) -> None:
        given: Mapping[str, Any] = {"database_url": database_url, **settings}
        self.name = name
        self.settings: Settings = load(given, toml=Path(toml) if toml else None)
        self.registry = Registry()
        self.signals = Signals()
        self.kinds = Kinds(self.registry.jobs, self.settings)
        self.job_ids = Ids()
        self.job_hooks = Hooks(self.signals)
        self.job_middlewares: list[Middleware] = []
        self.declared_schedules = Schedules()
        self.declared_queues: dict[str, QueueSettings] = {}
        self.url = ""
        self._server: Any = None
        self._opening = asyncio.Lock()
        self._pools: Pools | None = None
        self._store: EventStore | None = None
        self._runtime: Runtime | None = None
        self._listener: Listener | None = None
        self._notifier: Notifier | None = None
        self._waiting: Waiting | None = None
        self._wakes: Wakes | None = None
        self._enqueuer: Enqueuer | None = None
        self._results: Results | None = None
        self._node: Node | None = None
        self._running = Running()
        self.loops = Loops(self.signals)
        self._events_appended = 0
        self.tracing = Tracing(self.signals, node=lambda: self.node_name)
        self._metrics = Metrics(self.signals, sources=self._readings, settings=self.settings)
        self.ops = OpsPort(self._now, self._metrics)

    # ---- life

    async def open(self) -> None:
        """Start the embedded server if there is no other, migrate, open the pools.

        Raises:
            DatabaseUnavailable: The server cannot be reached.
            ServerNotStarted: The embedded server did not start; the message says why.
            SchemaOutOfDate: Tables are missing and ``migrate_at_start`` is off, or are too new.
        """
        async with self._opening:
            if self._pools is None:
                with self._seen_to_open():
                    await self._open()

    async def _open(self) -> None:
        pools = None
        try:
            self.url = self.settings.database_url or await self._embedded()
            mark = uuid4().hex[:8]  # which connections belong together, in pg_stat_activity
            jobs = bool(self.kinds.names)
            pools = Pools.to(
                self.url, self.settings, signals=self.signals, application=mark, jobs=jobs
            )
            await pools.open()
            self.registry.bind()
            self.kinds.bind()
            self._runtime = Runtime(self.registry, self.settings, pools.work)
            await self._migrate(pools)
            await self._declare_queues(pools.control)
            await declare_schedules(self.declared_schedules, self.kinds, pools.control)
        except BaseException:
            if pools is not None:
                await pools.close()
            await self._stop_server()
            raise
        self._pools = pools
        self._metrics.start()
        self._listener = Listener(pools.control_url, self.settings, application=mark)
        self._listener.start()
        self._notifier = Notifier(pools.control, self.settings)
        self._notifier.start()
        self._waiting = Waiting(pools.control, self._listener)
        self._wakes = Wakes(pools.control, self.settings, self.signals)
        self._wakes.start()
        self._listener.on(TURNS, self._wakes.turn)
        self.job_ids.forget()  # they may be another database's
        self._enqueuer = Enqueuer(pools.work, self.settings, on_enqueued=self._enqueued)
        self._results = self._make_results(pools, self._listener, self._notifier)
        self._store = EventStore(
            pools, self.registry.types, self.settings, on_appended=self._appended
        )

    async def close(self) -> None:
        """Stop the node if it runs, finish what is under way, close everything."""
        try:
            await self.stop()
            await self._close_rest()
        finally:
            self._end_being_seen()

    async def _close_rest(self) -> None:
        """Close everything but the node, which has been stopped."""
        if self._pools is None:
            return
        self._metrics.stop()
        store, pools = self._opened(self._store), self._pools
        await store.close()
        await self._end_enqueueing()
        self._opened(self._waiting).close()
        await self.results.stop()
        await self.wakes.stop()
        await self._opened(self._notifier).stop()
        await self._opened(self._listener).stop()
        self._pools = self._store = self._runtime = None
        await pools.close()
        await self._stop_server()

    async def __aenter__(self) -> Self:
        """Open."""
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        await self.close()

    @property
    def is_open(self) -> bool:
        """Whether the app is open."""
        return self._pools is not None

    # ---- transactions

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """One PostgreSQL transaction: commits at the end of the block, rolls back on an error.

        Positions are drawn by the first append and others wait behind them, so append last.
        """
        async with self.pools.work.transaction() as session:
            tx, committed = self._begin(session)
            yield tx
        committed()

    def join(self, connection: Any) -> Transaction:
        """Take part in the transaction of your own asyncpg or psycopg ``AsyncConnection``.

        Also takes what has such a connection behind ``connection`` or ``driver_connection``.
        You commit; projections see the events then, at the latest ``poll_interval`` later. Workers
        are told of jobs by the commit itself.
        """
        session = self.opened_runtime.session_on(connection)
        self.pools.joined(session.connection)
        told = partial(notify_within, self.settings, mark=self.wakes.mark)
        return Transaction(
            session, self.requests, self.intake, on_appended=self._appended, tell=told
        )

    # ---- what the faces are built on

    def _make_node(
        self, labels: set[str], on_out: Callable[[NodeEvicted], None], jobs: JobShare
    ) -> Node:
        """A node of this process for the definitions of *labels*; for all if there are none."""
        runtime = self._opened(self._runtime)
        wiring = NodeWiring(
            app=self.name,
            pools=self._opened(self._pools),
            settings=self.settings,
            signals=self.signals,
            notifier=self._opened(self._notifier),
            listener=self._opened(self._listener),
            types=self.registry.types,
            on_progress=self._opened(self._waiting).wake,
            on_out=on_out,
            jobs=self._job_ties(),
        )
        definitions = runtime.definitions(self._begin)
        chosen = [one for one in definitions if not labels or one.label in labels]
        return Node(wiring, chosen, self._running.hooks, jobs)

    def _job_ties(self) -> JobTies:
        wiring = JobWiring(
            pools=self.pools,
            settings=self.settings,
            signals=self.signals,
            listener=self._opened(self._listener),
            notifier=self._opened(self._notifier),
            kinds=self.kinds,
            begin=self._begin,
            queues=frozenset(self.declared_queues),
        )
        return job_ties(wiring, self.wakes, self.job_ids, self.job_hooks, self.job_middlewares)

    @property
    def wakes(self) -> Wakes:
        """Tells workers of new jobs."""
        return self._opened(self._wakes)

    @property
    def enqueuer(self) -> Enqueuer:
        """Sends single jobs together."""
        return self._opened(self._enqueuer)

    @property
    def results(self) -> Results:
        """Waits for jobs."""
        return self._opened(self._results)

    @property
    def pools(self) -> Pools:
        """The open pools.

        Raises:
            NotOpen: The app is not open.
        """
        return self._opened(self._pools)

    @property
    def store(self) -> EventStore:
        """The open event store."""
        return self._opened(self._store)

    @property
    def requests(self) -> Requests:
        """The operations of this app."""
        return self._opened(self._runtime).requests

    @property
    def opened_runtime(self) -> Runtime:
        """What the registry's declarations become on a database."""
        return self._opened(self._runtime)

    @property
    def waiting(self) -> Waiting:
        """Waits for shards."""
        return self._opened(self._waiting)

    def _opened(self, part: T | None) -> T:
        if part is None:
            raise NotOpen(f"app {self.name!r} is not open: use `async with app:` or app.open()")
        return part

    def _begin(self, session: Any) -> tuple[Transaction, Callable[[], None]]:
        """A transaction on *session*, and what is to be called when it is committed."""
        last = written_events = 0

        def appended(position: int, events: int) -> None:
            nonlocal last, written_events
            last = max(last, position)
            written_events += events

        def committed() -> None:
            if last:
                self._appended(last, written_events)
            if written:
                self.wakes.written(written)

        written = Written()
        tx = Transaction(session, self.requests, self.intake, on_appended=appended, written=written)
        return tx, committed

    def _appended(self, position: int, events: int) -> None:
        """Events were committed by this process."""
        self._events_appended += events
        if self._node is not None:
            self._node.daemon.appended()
        if self._notifier is not None:
            self._notifier.notify(APPENDED_CHANNEL, str(position))

    async def _migrate(self, pools: Pools) -> None:
        schema = self.settings.schema
        if not self.settings.migrate_at_start:
            await pools.control.run(migrations.check(schema))
            await pools.control.run(self.requests.learn_retired())
            await settle(pools.control, self.requests)
            return
        async with pools.control.transaction(watched=False) as session:  # it may be long
            done = await session.run(migrations.apply(schema))
            await session.run(self.requests.learn_retired())
            await session.run(self.requests.create_read_models())
        await settle(pools.control, self.requests)
        for one in done:
            log.tell("migration_applied", number=one.number, migration=one.name)

    async def _embedded(self) -> str:
        from strandline.postgres.embedded import Embedded

        self._server = Embedded(self.settings.embedded_folder(self.name), app=self.name)
        server = await asyncio.to_thread(self._server.start)
        url: str = server.url
        return url

    async def _stop_server(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await asyncio.to_thread(server.stop)
