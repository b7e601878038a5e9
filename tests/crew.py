"""Nodes without a pulse and a leader: their rows and targets are written by hand."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import asyncpg
from tally import holds

from strandline.app import App
from strandline.cluster.node import Identity
from strandline.cluster.reconciler import Reconciler
from strandline.cluster.work import Ended, Grant, Work, Worker
from strandline.daemon.daemon import Daemon
from strandline.daemon.definitions import Wiring
from strandline.daemon.feed import Feed
from strandline.postgres.listener import Listener
from strandline.postgres.pools import Pool
from strandline.settings import Settings
from strandline.telemetry.signals import Notice, Signals

CHANNEL = "strandline.cluster"
QUICK = {"pulse_interval": 0.5, "revoke_timeout": 5.0, "work_stall_after": 0.2}


class Hands(Worker):
    """A worker whose work does as it is told."""

    def __init__(self, *names: str, needs: Sequence[str] = ()) -> None:
        self.works = [Work(name, frozenset(needs)) for name in names]
        self.running: dict[str, Grant] = {}
        self.ended: dict[str, Ended] = {}
        self.history: list[tuple[float, str, str, int]] = []  # when, what, work, epoch
        self.stops: dict[str, float] = {}  # seconds that work takes to end; inf: never does
        self.deaf: set[str] = set()  # swallows being cancelled
        self.broken: dict[str, Exception] = {}  # cannot be started
        self.frozen: set[str] = set()  # gets nowhere

    async def offers(self) -> Sequence[Work]:
        return self.works

    async def run(self, grant: Grant, ended: Ended) -> None:
        self._note("run", grant)
        if grant.work in self.broken:
            raise self.broken[grant.work]
        assert grant.work not in self.running, "twice at once"
        self.running[grant.work] = grant
        self.ended[grant.work] = ended

    async def stop(self, work: str, *, timeout: float) -> bool:
        grant = self.running.get(work)
        if grant is None:
            return True
        seconds = self.stops.get(work, 0.0)
        if seconds > timeout:
            await asyncio.sleep(timeout)
            while work in self.deaf:
                try:
                    await asyncio.sleep(0.02)
                except asyncio.CancelledError:
                    self._note("swallowed", grant)
            self._note("cut off", grant)
            self.running.pop(work, None)
            return False
        await asyncio.sleep(seconds)
        self._note("stop", grant)
        self.running.pop(work, None)
        return True

    def stuck(self) -> Sequence[str]:
        return [name for name in self.running if name in self.frozen]

    def progress(self) -> int:
        return len(self.history)

    def end(self, work: str, error: BaseException | None = None) -> None:
        """It ends by itself."""
        grant = self.running.pop(work)
        self._note("ended", grant)
        self.ended[work](work, error)

    def did(self, work: str) -> list[tuple[str, int]]:
        """What happened to *work* here: what, and under which epoch."""
        return [(what, epoch) for _, what, name, epoch in self.history if name == work]

    def _note(self, what: str, grant: Grant) -> None:
        self.history.append((time.monotonic(), what, grant.work, grant.epoch))


@dataclass
class Member:
    """A node: its row, its worker, its reconciler."""

    me: Identity
    worker: Any
    reconciler: Reconciler
    control: Pool
    signals: Signals
    notices: list[Notice] = field(default_factory=list)

    @property
    def id(self) -> UUID:
        return self.me.id

    def told(self, name: str) -> list[dict[str, Any]]:
        return [one.facts for one in self.notices if one.name == name]


class Crew:
    """Several of them on one database."""

    def __init__(self, url: str, operator: Any, listener: Listener, **settings: Any) -> None:
        self.url = url
        self.operator = operator
        self.settings = Settings(database_url=url, **{**QUICK, **settings})
        self.members: list[Member] = []
        self._listener = listener

    async def join(
        self,
        worker: Any,
        name: str = "a",
        *,
        labels: Sequence[str] = (),
        state: str = "active",
        url: str = "",
        start: bool = True,
        hears: bool = True,
        signals: Signals | None = None,
    ) -> Member:
        """A node of that name, whose connections go to *url*."""
        me = Identity(uuid4(), name, tuple(labels))
        await self.operator.execute(
            """INSERT INTO strandline.nodes (id, name, state, mode, labels, pulse, ttl, expires_at)
               VALUES ($1, $2, $3, 'cluster', $4, 'loop', 60, clock_timestamp() + interval '1 min')""",
            me.id,
            name,
            state,
            list(labels),
        )
        control = Pool("control", url or self.url, 2, self.settings)
        await control.open()
        signals = signals or Signals()
        reconciler = Reconciler(me, worker, control, self.settings, signals, CHANNEL)
        member = Member(me, worker, reconciler, control, signals)
        signals.listen(member.notices.append)
        self.members.append(member)
        if hears:
            self._listener.on("cluster", lambda _: reconciler.wake())
        if start:
            await reconciler.start()
        return member

    async def give(self, target: Member | None, *works: str) -> None:
        """What the leader does: let *works* run on *target*."""
        await self.operator.execute(
            """WITH held AS MATERIALIZED (
                   SELECT work FROM strandline.assignments
                    WHERE work = ANY ($2) ORDER BY work FOR UPDATE
               )
               UPDATE strandline.assignments a
                  SET target = $1, target_at = clock_timestamp() FROM held h WHERE a.work = h.work""",
            target.id if target else None,
            list(works),
        )
        await self.tell("plan")

    async def tell(self, what: str) -> None:
        await self.operator.execute("SELECT pg_notify($1, $2)", CHANNEL, what)

    async def state(self, member: Member, state: str) -> None:
        """The node's row says so from now on."""
        await self.operator.execute(
            "UPDATE strandline.nodes SET state = $2 WHERE id = $1", member.id, state
        )

    async def row(self, work: str) -> Any:
        return await self.operator.fetchrow(
            "SELECT * FROM strandline.assignments WHERE work = $1", work
        )

    async def owner(self, work: str) -> UUID | None:
        return await self.operator.fetchval(
            "SELECT owner FROM strandline.assignments WHERE work = $1", work
        )

    async def epoch(self, work: str) -> int:
        return (await self.row(work))["epoch"]

    async def log(self, kind: str) -> list[dict[str, Any]]:
        """Entries of the node log, oldest first."""
        rows = await self.operator.fetch(
            "SELECT * FROM strandline.node_log WHERE kind = $1 ORDER BY id", kind
        )
        return [{**row, "detail": json.loads(row["detail"])} for row in rows]

    async def runs(self, member: Member, *works: str) -> None:
        """Wait until *member* runs *works* (and perhaps more)."""
        await holds(lambda: set(works) <= running(member.worker))

    async def end(self) -> None:
        for one in self.members:
            if isinstance(one.worker, Hands):
                one.worker.deaf.clear()
            await one.reconciler.stop(timeout=2.0)
        for one in self.members:
            await one.control.close()


def running(worker: Any) -> set[str]:
    if isinstance(worker, Hands):
        return set(worker.running)
    found = {name for name, agent in worker.agents.items() if agent.state == "running"}
    return found | ({"high-water"} if worker.statistics().detects else set())


@asynccontextmanager
async def crew(url: str, **settings: Any) -> AsyncIterator[Crew]:
    """An empty cluster."""
    operator = await asyncpg.connect(url)
    listener = Listener(url, Settings(database_url=url))
    listener.start()
    try:
        await holds(lambda: listener.statistics().connected)
        found = Crew(url, operator, listener, **settings)
        try:
            yield found
        finally:
            await found.end()
    finally:
        await listener.stop()
        await operator.close()


def daemon_of(app: App, name: str = "a") -> Daemon:
    """A daemon of what *app* declares, which nobody has opened."""
    wiring = Wiring(
        pools=app.pools,
        settings=app.settings,
        signals=app.signals,
        notifier=app._notifier,
        listener=app._listener,
        node_name=name,
    )
    return Daemon(
        wiring,
        Feed(app.pools.work, app.registry.types, app.settings),
        app.opened_runtime.definitions(app._begin),
        on_progress=app.waiting.wake,
    )


@asynccontextmanager
async def manned(nodes: Crew, app: App, name: str = "a", **options: Any) -> AsyncIterator[Member]:
    """A node that runs what *app* declares; *app* is opened for it."""
    async with app:
        daemon = daemon_of(app, name)
        await daemon.open()
        try:
            labels = list(daemon._definitions)
            yield await nodes.join(daemon, name, labels=labels, signals=app.signals, **options)
        finally:
            await daemon.close(timeout=2.0)
