"""``schema/current.sql`` is what all migrations make together; ``make schema`` writes it anew."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import asyncpg

import strandline.postgres.schema
from strandline.testing.database import fresh_database

CURRENT = Path(strandline.postgres.schema.__file__).with_name("current.sql")
DUMP = Path(__file__).with_name("dump_schema.sql").read_text(encoding="utf-8")
HEAD = """\
-- What the migrations make together, in the schema strandline. Not applied by anything: for reading.
-- Made by `make schema`; tests/architecture/test_schema_dump.py compares it.

"""


async def test_the_dump_in_git_is_what_the_migrations_make(database_url: str) -> None:
    found = HEAD + await _dump(database_url)
    if os.environ.get("STRANDLINE_WRITE_SCHEMA"):
        CURRENT.write_text(found, encoding="utf-8")

    assert found == CURRENT.read_text(encoding="utf-8"), (
        "run `make schema` and look at the difference"
    )


async def test_the_dump_can_be_run_and_makes_the_same(server_url: str) -> None:
    current = CURRENT.read_text(encoding="utf-8")
    async with fresh_database(server_url, template="template1") as url:
        connection: Any = await asyncpg.connect(url)
        await connection.execute("CREATE SCHEMA strandline")
        await connection.execute(current)
        await connection.close()

        again = HEAD + await _dump(url)

    assert again == current


async def _dump(url: str) -> str:
    connection: Any = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await connection.execute("SET LOCAL search_path = ''")  # every name with its schema
            made = [row["text"] for row in await connection.fetch(DUMP, "strandline")]
    finally:
        await connection.close()
    return "\n\n".join(made) + "\n"
