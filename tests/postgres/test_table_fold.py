"""What PostgreSQL makes of any events is what a plain fold in Python makes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tables import (
    AT,
    TABLES,
    Closed,
    Noted,
    Place,
    Restarted,
    Stored,
    Transferred,
    bound,
    python_fold,
    record,
    store,
)

from strandline.postgres.operations import AsyncpgSession
from strandline.projections.table import TableRows

accounts = st.sampled_from(["a", "b", "ü {x}", ""])
maybe = st.one_of(st.none(), accounts)
amounts = st.integers(-1000, 1000)
zones = st.sampled_from([None, UTC, timezone(timedelta(hours=13)), timezone(timedelta(hours=-5.5))])


@st.composite
def moments(draw: Any) -> datetime:
    naive = draw(st.datetimes(datetime(1990, 1, 1), datetime(2040, 1, 1)))
    zone = draw(zones)
    return naive.replace(tzinfo=zone)


noted = st.builds(
    Noted,
    account=maybe,
    amount=st.none() | amounts,
    price=st.none() | st.decimals(-99, 99, places=3),
    ratio=st.none() | st.integers(-99, 99).map(float),
    note=st.none() | st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=3),
    at=st.none() | moments(),
    place=st.none() | st.builds(Place, st.none() | st.sampled_from(["Rome", "Oslo"])),
    tags=st.none() | st.lists(st.sampled_from("xyz"), max_size=2),
)
transferred = st.builds(Transferred, source=maybe, target=maybe, amount=amounts)
restarted = st.builds(Restarted, account=accounts, amount=amounts)
closed = st.builds(Closed, account=maybe)
logs = st.lists(
    st.tuples(
        st.sampled_from(["t", "u"]),
        st.sampled_from(["s1", "s2"]),
        st.integers(1, 3),
        st.one_of(noted, noted, transferred, restarted, closed),
    ),
    max_size=25,
)


class Bench:
    """A connection with all the tables, emptied for each example."""

    def __init__(self, runner: asyncio.Runner, url: str) -> None:
        self.runner = runner
        self.tables = [bound(table) for table in TABLES]
        self.connection: Any = runner.run(self._connect(url))
        self.session = AsyncpgSession(self.connection, "strandline")
        for one in self.tables:
            runner.run(self.session.run(one.create()))

    async def _connect(self, url: str) -> Any:
        # another time zone than UTC: nothing may depend on the session's
        return await asyncpg.connect(
            url, server_settings={"TimeZone": "Asia/Kathmandu", "jit": "off"}
        )

    async def fold(
        self, log: list[Stored], edges: list[int], *, inline: bool
    ) -> list[dict[Any, Any]]:
        await self.connection.execute("TRUNCATE strandline.events")
        await store(self.connection, *map(record, log))
        answers = []
        for one in self.tables:
            await self.session.run(one.empty())
            for floor, ceiling in zip(edges, edges[1:], strict=False):
                if inline:
                    page = [e.position for e in log if floor < e.position <= ceiling]
                    await self.session.run(one.apply_positions(page))
                else:
                    await self.session.run(one.apply(floor, ceiling))
            answers.append(await self._rows(one))
        return answers

    async def _rows(self, one: TableRows) -> dict[Any, Any]:
        keys = [key.name for key in one.projection.keys]
        names = [value.name for value in one.projection.values]
        found = {}
        for tenant in ("t", "u"):
            for row in await self.session.run(one.query(None, (), tenant=tenant)):
                key = (row.tenant, *(getattr(row, name) for name in keys))
                found[key] = {name: getattr(row, name) for name in names}
        return found


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    with asyncio.Runner() as runner:
        made = Bench(runner, database_url)
        yield made
        runner.run(made.connection.close())


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    logs=logs,
    cuts=st.sets(st.integers(1, 100), max_size=4),
    steps=st.integers(1, 4),
    inline=st.booleans(),
)
def test_any_log_in_any_pages_gives_the_rows_of_a_plain_fold(
    bench: Bench, logs: Any, cuts: set[int], steps: int, inline: bool
) -> None:
    log = [
        Stored(
            number * steps,
            tenant,
            stream,
            1000 * number + version,
            AT + timedelta(days=number),
            event,
        )
        for number, (tenant, stream, version, event) in enumerate(logs, 1)
    ]
    edges = [0, *sorted(cuts), 200]

    found = bench.runner.run(bench.fold(log, edges, inline=inline))

    for rows, one in zip(found, bench.tables, strict=True):
        assert rows == python_fold(one, log), one.label
