"""An append looks at its own streams only, however many others there are and whatever was cached."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

STREAMS = 20_000
READ = (
    "SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_xact_user_tables"
    " WHERE schemaname = 'strandline' AND relname = 'streams'"
)


async def append(connection: Any, version: int, streams: int) -> None:
    items = [
        ["default", f"s{number}", None, version, [[str(uuid4()), "t", {}, None]]]
        for number in range(streams)
    ]
    rows = await connection.fetch(
        "SELECT outcome FROM strandline.append_batch($1)", json.dumps(items)
    )
    assert {row["outcome"] for row in rows} == {"appended"}


@pytest.mark.parametrize("is_analysed", [False, True])
async def test_a_plan_made_for_few_streams_stays_good_for_many(
    database_url: str, is_analysed: bool
) -> None:
    """Connections keep their plans; a log may grow by thousands of streams before any ANALYZE."""
    connection = await asyncpg.connect(database_url)
    await append(connection, 0, 5)
    if is_analysed:
        await connection.execute("VACUUM ANALYZE strandline.streams")
    for version in range(1, 12):  # the sixth makes the plan that is kept
        await append(connection, version, 5)
    await connection.execute(
        "INSERT INTO strandline.streams (tenant, id, version, expected)"
        f" SELECT 'default', 'other ' || g, 1, 0 FROM generate_series(1, {STREAMS}) g"
    )

    async with connection.transaction():
        before = await connection.fetchval(READ)
        await append(connection, 12, 5)
        after = await connection.fetchval(READ)
    await connection.close()

    assert after - before <= 20
