"""Jobs without nodes: rows, claims and ends by the operations themselves, on plain connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import asyncpg

from strandline.jobs import enqueue, fetch, flows, order
from strandline.jobs.completion import settle_linked
from strandline.jobs.flow import Flow
from strandline.jobs.job import Call, Job
from strandline.jobs.kinds import Kinds
from strandline.jobs.row import Claimed, Ended, Ending, Flag, NewJob
from strandline.postgres.operations import Answer, AsyncpgSession, Op

QUEUE = "default"


async def work(name: str = "") -> str:
    """What all jobs here would run."""
    return name


def kinds_of(*names: str) -> tuple[Kinds, dict[str, Job[..., Any]]]:
    """Kinds with a job of each name."""
    jobs: dict[str, Job[..., Any]] = {name: Job(work, name) for name in names}
    return Kinds(dict(jobs)), jobs


KINDS, JOBS = kinds_of("work", "other")


def call(name: str = "", **options: Any) -> Call[Any]:
    """A call of the job that they all are."""
    made = JOBS["work"].call(name)
    return made.with_(**options) if options else made


@dataclass
class Desk:
    """One connection, which enqueues, claims and ends jobs."""

    session: AsyncpgSession
    number: int = 1
    ids: Any = field(default_factory=lambda: count(1))
    claims: Any = field(default_factory=lambda: count(1))

    @property
    def connection(self) -> Any:
        """For plain SQL."""
        return self.session.connection

    async def run(self, op: Op[Answer]) -> Answer:
        """Run one operation."""
        return await self.session.run(op)

    async def value(self, sql: str, *arguments: Any) -> Any:
        """One value; tables stand in the search path."""
        return await self.connection.fetchval(sql, *arguments)

    async def column(self, sql: str, *arguments: Any) -> list[Any]:
        """The first column."""
        return [row[0] for row in await self.connection.fetch(sql, *arguments)]

    async def insert(self, *jobs: NewJob, promoted: bool = True) -> None:
        """Enqueue these, and promote their keys."""
        async with self.connection.transaction():
            await self.run(enqueue.insert(jobs))
        if promoted:
            await self.run(order.promote(enqueue.keys_of(jobs)))

    def ordered(self, key: str, **options: Any) -> NewJob:
        """A job that is ordered by *key*."""
        made = NewJob(next(self.ids), "work", "{}", key=key, flags=int(Flag.ORDERED))
        for name, value in options.items():
            setattr(made, name, value)
        return made

    def plain(self, key: str | None = None, queue: str = QUEUE, kind: str = "work") -> NewJob:
        """A job that stands for itself."""
        return NewJob(next(self.ids), kind, "{}", queue, key=key)

    def plan(self, flow: Flow) -> flows.Plan:
        """The rows of *flow*."""
        return flows.prepare(flow, KINDS, [next(self.ids) for _ in range(flows.needed(flow))])

    async def enqueue(self, flow: Flow) -> flows.Plan:
        """Enqueue *flow*."""
        plan = self.plan(flow)
        async with self.connection.transaction():
            await self.run(flows.insert(plan, enqueue.insert))
        await self.run(order.promote(enqueue.keys_of(plan.jobs)))
        return plan

    async def claim(self, limit: int = 1, queue: str = QUEUE) -> list[Claimed]:
        """Claim jobs."""
        token = fetch.first_claim(self.number) + next(self.claims)
        return await self.run(fetch.claim(queue, ["work"], limit, token))

    async def end(self, *jobs: Claimed, ending: Ending = "completed", **facts: Any) -> int:
        """End attempts in one transaction, and promote what is next; how many were still held."""
        linked = await self.run(settle_linked([Ended(job, ending, **facts) for job in jobs]))
        await self.run(order.promote(linked.keys))
        return len(linked.settled)

    async def cancel_waiting(self, *ids: int) -> None:
        """As an operator: hold, delete, follow, promote."""
        async with self.connection.transaction():
            await self.run(flows.hold([(one, False) for one in ids]))
            gone = await self.connection.fetch(
                "DELETE FROM jobs WHERE id = ANY ($1) AND state <> 2 RETURNING id, batch, queue, key",
                ids,
            )
            freed = await self.run(
                flows.follow([flows.Followed(row[0], "cancelled", None, row[1]) for row in gone])
            )
        keys = {(row[2], row[3]) for row in gone if row[3] is not None}
        await self.run(order.promote(freed.keys | keys))

    async def states(self) -> dict[int, int]:
        """State by id of all live jobs."""
        return dict(await self.connection.fetch("SELECT id, state FROM jobs ORDER BY id"))


@asynccontextmanager
async def desks(url: str, number: int = 1, **settings: str) -> AsyncIterator[list[Desk]]:
    """*number* desks with one counter of ids, as nodes 1, 2, ..."""
    ids = count(1)
    opened: list[Any] = []
    try:
        for _ in range(number):
            opened.append(
                await asyncpg.connect(
                    url,
                    server_settings={
                        "search_path": "strandline",
                        "deadlock_timeout": "100ms",
                        **settings,
                    },
                )
            )
        yield [
            Desk(AsyncpgSession(one, "strandline"), node, ids)
            for node, one in enumerate(opened, start=1)
        ]
    finally:
        for one in opened:
            one.terminate()


@asynccontextmanager
async def desk(url: str) -> AsyncIterator[Desk]:
    """One desk."""
    async with desks(url) as found:
        yield found[0]


async def drained(found: Sequence[Desk], handle: Any, *, limit: int = 3) -> None:
    """Let each desk claim and *handle* (desk, jobs) until no live job can run any more."""

    async def worker(one: Desk) -> None:
        while True:
            jobs = await one.claim(limit)
            if jobs:
                await handle(one, jobs)
            elif not await one.value("SELECT EXISTS (SELECT FROM jobs WHERE state IN (0, 2))"):
                return
            else:
                await asyncio.sleep(0.002)

    async with asyncio.timeout(60):
        await asyncio.gather(*(worker(one) for one in found))
