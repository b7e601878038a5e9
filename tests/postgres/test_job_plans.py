"""Plans that are made while the table is empty, and kept when it has filled: a worker idles, then many jobs come."""

from __future__ import annotations

from typing import Any

import asyncpg

from strandline.jobs.fetch import CLAIM_JOBS
from strandline.jobs.fetcher import PLANS
from strandline.jobs.scheduling import PROMOTE_DUE
from strandline.postgres.line import FRESH_PLANS

FILL = """
INSERT INTO strandline.jobs (id, kind, state, run_at)
SELECT n, 'noop', $1, clock_timestamp() FROM generate_series(1, 20000) n
"""


async def planned(connection: Any, statement: Any, values: str) -> str:
    sql = statement.text.replace("{schema}", "strandline")
    kinds = ", ".join(one.type for one in statement.parameters)
    await connection.execute(f"PREPARE block ({kinds}) AS {sql}")
    return await explained(connection, values)


async def explained(connection: Any, values: str) -> str:
    rows = await connection.fetch(f"EXPLAIN EXECUTE block ({values})")
    return "\n".join(row[0] for row in rows)


async def test_a_claim_planned_on_an_empty_table_finds_what_it_has_picked_by_the_key(
    database_url: str,
) -> None:
    settings = {**PLANS, "plan_cache_mode": "force_generic_plan"}
    connection: Any = await asyncpg.connect(database_url, server_settings=settings)
    try:
        await connection.execute("VACUUM ANALYZE strandline.jobs")
        plan = await planned(connection, CLAIM_JOBS, "'default', '{noop}', 2000, 1, 0, 0")
    finally:
        await connection.close()
    assert "Index Cond: (id = ANY" in plan
    assert "Join Filter" not in plan


async def test_what_is_due_is_found_by_the_key_before_the_table_that_has_filled_is_analysed(
    database_url: str,
) -> None:
    connection: Any = await asyncpg.connect(database_url, server_settings=FRESH_PLANS)
    try:
        await connection.execute("ALTER TABLE strandline.jobs SET (autovacuum_enabled = off)")
        await connection.execute(FILL, 0)  # statistics of a day when nothing was scheduled
        await connection.execute("ANALYZE strandline.jobs")
        await connection.execute("DELETE FROM strandline.jobs")
        await connection.execute("VACUUM strandline.jobs")
        await planned(connection, PROMOTE_DUE, "NULL, NULL, 5000")
        await connection.execute(FILL, 1)
        plan = await explained(connection, "NULL, NULL, 5000")
    finally:
        await connection.close()
    assert "Join Filter" not in plan
