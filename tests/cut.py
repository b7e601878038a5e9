"""A label whose shards are run by hand, and a ledger that shows what was applied twice or left out."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from tally import connected

from strandline.daemon import slicing
from strandline.daemon.checkpoint import Checkpoint, claim, move
from strandline.daemon.feed import SLICED
from strandline.daemon.slicing import Stage
from strandline.errors import CheckpointMoved, OwnershipLost
from strandline.postgres.operations import AsyncpgSession, Call
from strandline.postgres.pools import Pool
from strandline.projections.slice import parsed
from strandline.settings import Settings

LABEL = "orders:v2"
CHANNEL = "strandline.cluster"
LEDGER = """CREATE TABLE ledger (
    position bigint PRIMARY KEY, stream text NOT NULL, version bigint NOT NULL, shard text NOT NULL,
    epoch bigint NOT NULL, at serial)"""


@dataclass
class Cut:
    """The shards of one label in one database; batches are claimed and committed by hand."""

    pool: Pool
    operator: Any
    held: list[Checkpoint] = field(default_factory=list)  # ever claimed, zombies included

    async def append(self, streams: int, events: int) -> int:
        """*events* in each of *streams*, one after the other; the last position."""
        last = 0
        for _ in range(events):
            for number in range(streams):
                last = await self.operator.fetchval(
                    "SELECT position FROM strandline.append($1, $2)",
                    f"s{number}",
                    json.dumps([{"type": "t", "data": {}}]),
                )
        return last

    async def declare(self, wanted: int, start: int = 0) -> slicing.Slicing:
        return await self.pool.run(slicing.declare(LABEL, wanted, start=start))

    async def step(self) -> Stage:
        return await self.pool.run(slicing.step(LABEL, channel=CHANNEL))

    async def pending(self) -> list[str]:
        return await self.pool.run(slicing.pending())

    async def rows(self) -> list[Any]:
        """The shards: name, position, epoch, owner, seal."""
        return [
            tuple(row)
            for row in await self.operator.fetch(
                "SELECT name, position, epoch, owner, seal FROM strandline.shards ORDER BY name"
            )
        ]

    async def shards(self) -> list[str]:
        """The names of this label's."""
        return [row[0] for row in await self.rows() if parsed(row[0])[0] == LABEL]

    async def claim(self, shard: str, owner: UUID | None = None) -> Checkpoint:
        """What a solo node does."""
        found = await self.pool.run(claim(shard, owner or uuid4()))
        self.held.append(found)
        return found

    async def claim_all(self, owner: UUID | None = None) -> list[Checkpoint]:
        return [await self.claim(shard, owner) for shard in await self.shards()]

    async def apply(self, checkpoint: Checkpoint, most: int = 1000) -> Checkpoint:
        """A batch of *most* positions under *checkpoint*, up to the log's end, or to the seal.

        Raises:
            CheckpointMoved: It was not good any more: nothing was written.
        """
        async with self.pool.transaction() as session:
            end = await session.connection.fetchval(
                "SELECT coalesce(max(position), 0) FROM strandline.events"
            )
            limit = end if checkpoint.seal is None else min(end, checkpoint.seal)
            ceiling = min(limit, checkpoint.position + most)
            if ceiling <= checkpoint.position:
                return checkpoint
            await session.run(move(checkpoint, ceiling))
            await self._write(session, checkpoint, ceiling)
        return checkpoint.at(ceiling)

    async def _write(self, session: AsyncpgSession, at: Checkpoint, ceiling: int) -> None:
        _, part = parsed(at.shard)
        rows = await session.run(_sliced(at.position, ceiling, part.part, part.parts))
        await session.connection.executemany(
            "INSERT INTO ledger (position, stream, version, shard, epoch) VALUES ($1, $2, $3, $4, $5)",
            [(row[0], row[2], row[3], at.shard, at.epoch) for row in rows],
        )

    async def drain(self, most: int = 1000) -> None:
        """Somebody new claims everything and applies it, as far as it may."""
        for shard in await self.shards():
            checkpoint = await self.claim(shard)
            while (moved := await self.apply(checkpoint, most)) != checkpoint:
                checkpoint = moved

    async def settle(self) -> None:
        """Steps and batches until the label is cut as it is wanted."""
        for _ in range(20):
            await self.step()
            if not await self.pending():
                return
            await self.drain()
        raise AssertionError(f"does not settle: {await self.rows()}")

    async def assert_zombies_are_refused(self) -> None:
        """Nothing that was claimed earlier than the last claim of its shard is good for anything."""
        latest = {row[0]: (row[3], row[2]) for row in await self.rows()}
        for one in self.held:
            if latest.get(one.shard) == (one.owner, one.epoch):
                continue
            for position in range(await self._end() + 1):
                try:
                    async with self.pool.transaction() as session:
                        await session.run(move(one.at(position), position + 1))
                except CheckpointMoved:
                    continue
                raise AssertionError(f"{one} may still write")

    async def assert_applied_once(self) -> None:
        """Every event is in the ledger, and those of a stream in order."""
        events = await self.operator.fetch(
            "SELECT position, stream, version FROM strandline.events ORDER BY stream, version"
        )
        applied = await self.operator.fetch(
            "SELECT position, stream, version FROM ledger ORDER BY stream, at"
        )
        assert [tuple(one) for one in applied] == [tuple(one) for one in events]

    async def some_of_a_step(self, statements: int) -> int:
        """A node that crashes after so many statements of a step; how many it came to."""
        async with self.pool.session() as session:
            step = slicing.step(LABEL, channel=CHANNEL)
            made = 0
            try:
                call = next(step)
                while made < statements:
                    made += 1
                    sql = call.statement.sql("strandline")
                    call = step.send(await session.connection.fetch(sql, *call.arguments))
            except StopIteration:
                pass
            return made

    async def offered(
        self, work: Sequence[str], *, pinned_to: str | None = None, paused: bool = False
    ) -> None:
        """What nodes of the cluster have offered, and run some time."""
        for name in work:
            await self.operator.execute(
                """INSERT INTO strandline.work (name, needs, apart, weight, pinned_to, paused_at, reason)
                   VALUES ($1, ARRAY[$2], $2, 2, $3, CASE WHEN $4 THEN now() END, 'maintenance')""",
                name,
                parsed(name)[0],
                pinned_to,
                paused,
            )
            await self.operator.execute(
                "INSERT INTO strandline.assignments (work, owner, epoch) VALUES ($1, $2, 7)",
                name,
                uuid4(),
            )

    async def work(self) -> list[str]:
        """The cluster's work, by name."""
        rows = await self.operator.fetch("SELECT name FROM strandline.work ORDER BY 1")
        return [row[0] for row in rows]

    async def _end(self) -> int:
        return await self.operator.fetchval(
            "SELECT coalesce(max(position), 0) FROM strandline.events"
        )


def _sliced(*arguments: Any) -> Any:
    after, up_to, part, parts = arguments
    return (yield Call(SLICED, (after, up_to, 1_000_000, part, parts)))


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Cut]:
    """A label that nobody has declared yet, in a database with a ledger."""
    pool = Pool("work", url, 4, Settings(database_url=url))
    await pool.open()
    try:
        async with connected(url) as operator:
            await operator.execute(LEDGER)
            yield Cut(pool, operator)
    finally:
        await pool.close()


def names(parts: int) -> Sequence[str]:
    """The shards of LABEL cut into *parts*, as they sort."""
    if parts == 1:
        return [f"{LABEL}:all"]
    return sorted(f"{LABEL}:{part}/{parts}" for part in range(1, parts + 1))


__all__ = ["CHANNEL", "LABEL", "Cut", "OwnershipLost", "Stage", "names", "opened"]
