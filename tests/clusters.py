"""A cluster's tables and what nodes would do to them, without any process."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from strandline.cluster import lease
from strandline.cluster.beat import Beat, Terms, join, tick
from strandline.cluster.leading import Term
from strandline.cluster.lease import LEADER
from strandline.cluster.membership import channel
from strandline.cluster.node import Identity, NodeState
from strandline.postgres.operations import Answer, Op
from strandline.postgres.pools import Pool
from strandline.settings import Settings
from strandline.telemetry.signals import Notice, Signals

CHANNEL = channel("strandline")


class CountedPool(Pool):
    """Remembers which statements it ran."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.ran: list[str] = []
        self.fails: Exception | None = None

    async def run(self, op: Op[Answer]) -> Answer:
        if self.fails is not None:
            raise self.fails
        return await super().run(self._noted(op))

    def _noted(self, op: Op[Answer]) -> Op[Answer]:
        try:
            call = next(op)
            while True:
                self.ran.append(call.statement.name)
                call = op.send((yield call))
        except StopIteration as stop:
            return stop.value


@dataclass
class Tables:
    """One database with the tables of a cluster."""

    url: str
    settings: Settings
    pool: CountedPool
    signals: Signals = field(default_factory=Signals)
    notices: list[Notice] = field(default_factory=list)
    opened: list[Any] = field(default_factory=list)

    async def run(self, op: Op[Answer]) -> Answer:
        return await self.pool.run(op)

    async def connect(self) -> Any:
        """A connection; cut at the end of the test."""
        connection = await asyncpg.connect(self.url)
        self.opened.append(connection)
        return connection

    async def rows(self, sql: str, *arguments: Any) -> list[Any]:
        async with self.pool.session() as session:
            return [tuple(row) for row in await session.connection.fetch(sql, *arguments)]

    async def one(self, sql: str, *arguments: Any) -> Any:
        async with self.pool.session() as session:
            return await session.connection.fetchval(sql, *arguments)

    # ---- nodes

    async def node(
        self,
        name: str,
        *labels: str,
        state: str = "active",
        ttl: float | None = None,
        silent: float = 0.0,
        **options: Any,
    ) -> Identity:
        """A node that joined, and whose last beat was *silent* seconds ago."""
        identity = Identity(uuid4(), name, labels, **options)
        terms = self.terms(ttl)
        await self.run(join(identity, "loop", terms))
        if state != "joining":
            await self.run(self.tick(identity, terms=terms))
        if silent or state not in ("joining", "active"):
            await self.age(identity.id, silent, state=state)
        return identity

    def terms(self, ttl: float | None = None) -> Terms:
        return Terms(ttl or self.settings.node_ttl, self.settings.leader_ttl, CHANNEL)

    def tick(
        self,
        identity: Identity,
        state: NodeState = NodeState.ACTIVE,
        *,
        terms: Terms | None = None,
        epoch: int | None = None,
    ) -> Op[Beat | None]:
        terms = terms or self.terms()
        return tick(identity, state, terms, loop_lag=0.0, progress=0, epoch=epoch)

    async def age(self, node: UUID, seconds: float, *, state: str | None = None) -> None:
        """Let it be so long since the last beat; all before it was steady."""
        await self.one(
            """UPDATE strandline.nodes
                  SET beat_at = clock_timestamp() - make_interval(secs => $2),
                      expires_at = clock_timestamp() + make_interval(secs => ttl - $2),
                      steady_since = clock_timestamp() - interval '1 day',
                      state = coalesce($3, state)
                WHERE id = $1""",
            node,
            seconds,
            state,
        )

    async def leave(self, node: UUID, *, state: str = "left", seconds: float = 0.0) -> None:
        """It has left, or died, so many seconds ago."""
        await self.one(
            """UPDATE strandline.nodes
                  SET state = $2, left_at = clock_timestamp() - make_interval(secs => $3)
                WHERE id = $1""",
            node,
            state,
            seconds,
        )

    async def state(self, node: UUID) -> str:
        return str(await self.one("SELECT state FROM strandline.nodes WHERE id = $1", node))

    # ---- leading

    async def leads(self, identity: Identity, *, ttl: float = 60.0) -> Term:
        """Let it win the lease, whoever has it; its term."""
        await self.one(
            "UPDATE strandline.leases SET expires_at = '-infinity' WHERE name = 'leader'"
        )
        epoch = await self.run(lease.acquire(LEADER, identity.id, ttl=ttl, channel=CHANNEL))
        assert epoch is not None
        return Term(identity.id, epoch, CHANNEL)

    # ---- work

    async def work(
        self, *names: str, owner: Identity | None = None, owner_name: str = "", **columns: Any
    ) -> None:
        """Work that *owner* runs, as it should."""
        node = owner.id if owner else None
        values = {"needs": [], "together": "", "apart": "", "weight": 1.0} | columns
        async with self.pool.session() as session:
            await session.connection.executemany(
                """INSERT INTO strandline.work (name, needs, together, apart, weight)
                   VALUES ($1, $2, $3, $4, $5)""",
                [
                    (name, *(values[key] for key in ("needs", "together", "apart", "weight")))
                    for name in names
                ],
            )
            await session.connection.executemany(
                """INSERT INTO strandline.assignments
                          (work, target, target_at, owner, owner_name, epoch, owned_at)
                   VALUES ($1, $2::uuid, clock_timestamp(), $2::uuid, $3, $4,
                           CASE WHEN $2::uuid IS NULL THEN NULL ELSE clock_timestamp() END)""",
                [
                    (name, node, owner.name if owner else owner_name, 1 if owner else 0)
                    for name in names
                ],
            )

    async def obey(self) -> None:
        """Every node does at once what the plan says."""
        await self.one(
            """UPDATE strandline.assignments a
                  SET owner = a.target, epoch = a.epoch + 1,
                      owner_name = coalesce((SELECT n.name FROM strandline.nodes n
                                              WHERE n.id = a.target), a.owner_name)
                WHERE a.owner IS DISTINCT FROM a.target"""
        )

    async def targets(self) -> dict[str, str | None]:
        """The name of the node that each work should run on."""
        return dict(
            await self.rows(
                """SELECT a.work, n.name FROM strandline.assignments a
                     LEFT JOIN strandline.nodes n ON n.id = a.target ORDER BY 1"""
            )
        )

    async def version(self) -> int:
        return int(await self.one("SELECT version FROM strandline.cluster"))

    async def logged(self, *kinds: str) -> list[Any]:
        """What the log has of these kinds: (kind, name, work, detail), the oldest first."""
        rows = await self.rows(
            "SELECT kind, name, work, detail::text FROM strandline.node_log"
            " WHERE kind = ANY ($1) ORDER BY id",
            list(kinds),
        )
        return [(kind, name, work, json.loads(detail)) for kind, name, work, detail in rows]

    def told(self, name: str) -> list[dict[str, Any]]:
        """Facts of the notices of that name."""
        return [one.facts for one in self.notices if one.name == name]


@asynccontextmanager
async def tables(url: str, *, connections: int = 3, **settings: Any) -> AsyncIterator[Tables]:
    """The cluster's tables of the database at *url*."""
    quick = {"pulse_interval": 0.2, "node_ttl": 60.0, "leader_ttl": 5.0, "leader_margin": 0.4}
    options = Settings(database_url=url, **{**quick, **settings})
    pool = CountedPool("control", url, connections, options)
    await pool.open()
    found = Tables(url, options, pool)
    found.signals.listen(found.notices.append)
    try:
        yield found
    finally:
        for connection in found.opened:
            if not connection.is_closed():
                connection.terminate()
        await pool.close()


@asynccontextmanager
async def heard(found: Tables) -> AsyncIterator[list[str]]:
    """The payloads of notices on the cluster's channel, inside the block."""
    connection = await found.connect()
    payloads: list[str] = []
    await connection.add_listener(CHANNEL, lambda *about: payloads.append(about[3]))
    yield payloads


def names(rows: Sequence[Any]) -> list[str]:
    return [one.name for one in rows]
