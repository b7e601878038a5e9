"""One shard of a table projection, processed as an agent does it; and tables that can fail."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from tables import (
    AT,
    TYPES,
    Closed,
    Noted,
    Restarted,
    Stored,
    Transferred,
    events,
    record,
    store,
)
from tally import connected

from strandline.daemon.batch import Batch
from strandline.daemon.checkpoint import Checkpoint, claim
from strandline.daemon.failures import Ledger as Failures
from strandline.daemon.feed import Page
from strandline.daemon.isolation import Isolation
from strandline.daemon.replay import Replay
from strandline.daemon.table_batch import TableProcessor
from strandline.postgres.pools import Pool
from strandline.projections.failure_policy import ErrorPolicy
from strandline.projections.slice import WHOLE, Slice
from strandline.projections.table import TableRows
from strandline.projections.table_declaration import Table
from strandline.projections.table_rules import add, column, count, on
from strandline.projections.table_values import POSITION
from strandline.settings import Settings
from strandline.telemetry.signals import Signals

MOST = 2**63 - 1
OWNER = UUID(int=7)


class Totals(Table):
    """A sum for each account, which a large amount takes out of range."""

    account = column(str, key="account")
    total = column(int, default=0)
    last = column(int)
    rules = (
        on(Noted, total=add("amount"), last=POSITION),
        on(Transferred, account="source", total=add("amount"), last=POSITION),
        on(Transferred, account="target", total=add("amount"), last=POSITION),
        on(Restarted, total="amount", last=POSITION),
        on(Closed, delete=True),
    )


class Mended(Table):
    """The same table, once its rules know what to do with a large amount."""

    account = column(str, key="account")
    total = column(int, default=0)
    last = column(int)
    rules = (
        on(Noted, total=count(), last=POSITION),
        on(Transferred, account="source", total=add("amount"), last=POSITION),
        on(Transferred, account="target", total=add("amount"), last=POSITION),
        on(Restarted, total="amount", last=POSITION),
        on(Closed, delete=True),
    )


def named(table: type[Table], name: str = "totals") -> TableRows:
    projection = table()
    projection.named(name, 1, "async")
    projection.bind(TYPES, None)
    return TableRows(projection)


@dataclass
class Shard:
    """One shard of a table, processed as an agent does it."""

    pool: Pool
    settings: Settings
    rows: TableRows
    processor: TableProcessor
    checkpoint: Checkpoint
    policy: ErrorPolicy = ErrorPolicy()

    @classmethod
    async def of(
        cls,
        pool: Pool,
        rows: TableRows,
        part: Slice = WHOLE,
        *,
        policy: ErrorPolicy | None = None,
        known: frozenset[str] | None = None,
    ) -> Shard:
        settings = Settings()
        async with pool.transaction() as session:
            await session.run(rows.create())
        checkpoint = await pool.run(claim(part.shard(rows.label), OWNER))
        processor = TableProcessor(rows, pool, settings, part, known=known)
        found = cls(pool, settings, rows, processor, checkpoint, policy or ErrorPolicy())
        await found.replay.read_parking()
        return found

    @property
    def replay(self) -> Replay:
        return Replay(
            self.checkpoint.shard,
            self.processor,
            self.pool,
            Signals(),
            is_over=lambda: False,
            on_progress=lambda: None,
        )

    async def commit(self, batch: Batch) -> None:
        await self.processor.commit(batch, self.checkpoint)
        self.checkpoint = self.checkpoint.at(batch.page.ceiling)

    async def to(self, ceiling: int) -> int:
        """Process up to *ceiling*; how many events were put aside."""
        page = Page(self.checkpoint.position, ceiling, ())
        isolation = Isolation(
            self.checkpoint.shard,
            self.processor,
            self.policy,
            Failures(self.rows.label),
            commit=self.commit,
            is_over=lambda: False,
        )
        return await isolation.through(page)

    async def once(self, ceiling: int) -> None:
        """Process up to *ceiling* in one batch."""
        page = Page(self.checkpoint.position, ceiling, ())
        await self.commit(await self.processor.prepare(page))

    async def replayed(self, rows: TableRows | None = None) -> Shard:
        """Everything asked for is tried again; by other code, if *rows* are given."""
        if rows is not None:
            self.rows = rows
            part = self.processor._part
            self.processor = TableProcessor(rows, self.pool, self.settings, part)
        async with connected(self.pool.url) as other:
            await other.execute(
                "UPDATE strandline.dead_letters SET retry_at = now()"
                " WHERE status IN ('parked', 'skipped') AND category IS NOT NULL"
            )
        await self.replay.run(self.checkpoint)
        return self

    async def stored(self) -> dict[tuple[Any, ...], dict[str, Any]]:
        """The table, as ``python_fold`` answers it."""
        keys = [column.name for column in self.rows.projection.keys]
        values = [column.name for column in self.rows.projection.values]
        found = []
        for tenant in ("t", "u"):
            found += await self.pool.run(self.rows.query(None, (), tenant=tenant))
        return {
            (row.tenant, *(getattr(row, key) for key in keys)): {
                name: getattr(row, name) for name in values
            }
            for row in found
        }

    async def letters(self, columns: str = "key, position, status, category") -> list[Any]:
        async with connected(self.pool.url) as other:
            found = await other.fetch(
                f"SELECT {columns} FROM strandline.dead_letters"
                " WHERE status IN ('parked', 'skipped') ORDER BY position, key"
            )
        return [tuple(row) for row in found]


@asynccontextmanager
async def logged(url: str, *given: Any) -> AsyncIterator[Pool]:
    """A pool on a database whose log holds *given*."""
    pool = Pool("work", url, 3, Settings(database_url=url))
    await pool.open()
    await append(url, *given)
    try:
        yield pool
    finally:
        await pool.close()


async def append(url: str, *given: Any) -> None:
    async with connected(url) as other:
        await store(other, *map(record, events(*given)))


async def append_raw(url: str, position: int, data: dict[str, Any]) -> None:
    """Append an event as another program may have stored it."""
    row = (position, position, AT, uuid4(), "t", "raw", "Noted", json.dumps(data))
    async with connected(url) as other:
        await store(other, row)


def without(log: Iterable[Stored], *positions: int) -> list[Stored]:
    return [one for one in log if one.position not in positions]
