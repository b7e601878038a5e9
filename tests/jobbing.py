"""A node's workers over a real database, with queue settings that tests change as they like."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from strandline.jobs import executing
from strandline.jobs.completer import Completer
from strandline.jobs.enqueue import insert
from strandline.jobs.job import AsyncJob
from strandline.jobs.kinds import Kinds
from strandline.jobs.queues import Queues
from strandline.jobs.row import NewJob
from strandline.jobs.wiring import JobWiring
from strandline.jobs.workers import Workers
from strandline.postgres.listener import Listener, Notifier
from strandline.postgres.pools import Pools
from strandline.settings import Settings
from strandline.telemetry.signals import Notice, Signals


@dataclass(frozen=True)
class Said:
    """What is said about a queue."""

    concurrency: int | None = None
    is_paused: bool = False
    is_limited: bool = False


@dataclass
class SaidOfQueues:
    """Settings of queues, without a database."""

    by_name: dict[str, Said] = field(default_factory=dict)
    calls: list[Callable[[], None]] = field(default_factory=list)

    def settings_of(self, queue: str) -> Said:
        return self.by_name.get(queue, Said())

    def on_changed(self, call: Callable[[], None]) -> Callable[[], None]:
        self.calls.append(call)
        return lambda: self.calls.remove(call)

    def say(self, queue: str, **what: Any) -> None:
        self.by_name[queue] = replace(self.settings_of(queue), **what)
        for call in list(self.calls):
            call()


@dataclass
class Wakes:
    """Tells workers of what was enqueued here."""

    calls: list[Callable[[str], None]] = field(default_factory=list)

    def on(self, wake: Callable[[str], None]) -> Callable[[], None]:
        self.calls.append(wake)
        return lambda: self.calls.remove(wake)

    def tell(self, queue: str) -> None:
        for call in list(self.calls):
            call(queue)


@dataclass
class Shop:
    """The parts of one process that works on jobs."""

    wiring: JobWiring
    completer: Completer
    workers: Workers
    queues: SaidOfQueues
    wakes: Wakes
    notices: list[Notice]
    trusted: list[bool]
    ids: int = 1_000_000

    def job(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """Declare a job; also as a decorator."""
        job: Any = AsyncJob(function, function.__name__, **options)
        self.wiring.kinds.add(job)
        self.wiring.kinds.bind()
        return job

    async def enqueue(
        self, kind: str, args: Sequence[str] = ("{}",), *, wake: bool = True, **what: Any
    ) -> list[int]:
        """Enqueue one job for each of *args*; their ids."""
        jobs = []
        for text in args:
            self.ids += 1
            jobs.append(NewJob(self.ids, kind, text, **what))
        async with self.wiring.pools.work.transaction() as session:
            await session.run(insert(jobs))
        if wake:
            self.wakes.tell(what.get("queue", "default"))
        return [one.id for one in jobs]

    async def fetch(self, sql: str, *args: Any) -> list[Any]:
        """Rows of a query."""
        async with self.wiring.pools.control.session() as session:
            return list(await session.connection.fetch(sql, *args))

    async def states(self) -> list[tuple[int, int]]:
        """State and attempt of all live jobs, by id."""
        rows = await self.fetch("SELECT state, attempt FROM strandline.jobs ORDER BY id")
        return [(row[0], row[1]) for row in rows]

    async def start(self, number: int = 1) -> None:
        """Begin to work."""
        self.completer.start()
        await self.workers.start(number)

    def fetch_ahead(self) -> None:
        """Let the workers take it that jobs are short; so they learn from running some."""
        for worker in self.workers._workers.values():
            worker._demand._mean = 1e-6

    def told(self, name: str) -> list[Notice]:
        """The signals of that name so far."""
        return [one for one in self.notices if one.name == name]


@asynccontextmanager
async def shop(
    url: str, *, connected: bool = False, own_queues: bool = False, **settings: Any
) -> AsyncIterator[Shop]:
    """The parts of a process on the database at *url*.

    Args:
        url: The database, or a pooler before it.
        connected: With LISTEN and NOTIFY.
        own_queues: With the settings of queues that the database holds.
        settings: Of the app.
    """
    chosen = Settings(database_url=url, **{"job_poll_interval": 0.1, **settings})
    signals = Signals()
    pools = Pools.to(url, chosen, signals=signals)
    await pools.open()
    kinds = Kinds(None, chosen)
    wiring = JobWiring(
        pools=pools,
        settings=chosen,
        signals=signals,
        listener=Listener(pools.control_url, chosen),
        notifier=Notifier(pools.control, chosen),
        kinds=kinds,
        begin=lambda session: (session, lambda: None),
    )
    kinds.compile_with(lambda job: executing.compile(job, kinds))
    queues, wakes, trusted = SaidOfQueues(), Wakes(), [True]
    completer = Completer(wiring, on_available=lambda names: _wake_all(wakes, names))
    stored = Queues(pools.control, wiring.listener, interval=0.2) if own_queues else None
    if stored is not None:
        await stored.start()
    workers = Workers(wiring, completer, stored or queues, wakes, lambda: trusted[0])
    notices: list[Notice] = []
    signals.listen(notices.append)
    made = Shop(wiring, completer, workers, queues, wakes, notices, trusted)
    if connected:
        wiring.listener.start()
        wiring.notifier.start()
    try:
        yield made
    finally:
        await workers.stop(drain=0.0, cancel=1.0)
        await completer.stop(2.0)
        if stored is not None:
            await stored.stop()
        if connected:
            await wiring.notifier.stop()
            await wiring.listener.stop()
        await pools.close()


async def holds(condition: Callable[[], Any], timeout: float = 30.0) -> None:
    """Wait until *condition*, a function or a coroutine function, answers what is true.

    Raises:
        TimeoutError: It did not in time.
    """
    async with asyncio.timeout(timeout):
        while True:
            answer = condition()
            if asyncio.iscoroutine(answer):
                answer = await answer
            if answer:
                return
            await asyncio.sleep(0.01)


def _wake_all(wakes: Wakes, names: Iterable[str]) -> None:
    for name in names:
        wakes.tell(name)
