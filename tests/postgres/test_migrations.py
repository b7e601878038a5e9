"""Migrations: applied once, by one, in order; the dump in git is what they make."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from strandline.errors import SchemaOutOfDate
from strandline.postgres import migrations
from strandline.postgres.operations import AsyncpgSession
from strandline.testing.database import fresh_database


async def _apply(url: str, schema: str = "strandline") -> list[str]:
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            done = await AsyncpgSession(connection, schema).run(migrations.apply(schema))
        return [one.name for one in done]
    finally:
        await connection.close()


async def test_eight_processes_that_start_together_apply_each_migration_once(
    server_url: str,
) -> None:
    async with fresh_database(server_url, template="template1") as url:
        done = await asyncio.gather(*(_apply(url) for _ in range(8)))

        names = [one.name for one in migrations.available()]
        assert sorted(len(one) for one in done) == [0] * 7 + [len(names)]
        assert [one for one in done if one] == [names]


async def test_a_schema_name_with_quotes_and_capitals_works(server_url: str) -> None:
    async with fresh_database(server_url, template="template1") as url:
        await _apply(url, 'My "odd" schema')

        connection = await asyncpg.connect(url)
        row = await connection.fetchrow(
            """SELECT * FROM "My ""odd"" schema".append('s', '[{"type": "t", "data": {}}]')"""
        )
        await connection.close()
        assert tuple(row or ()) == (1, 1)


async def test_a_database_newer_than_the_program_is_refused(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        "INSERT INTO strandline.migrations (number, name, checksum) VALUES (9999, 'later', 'x')"
    )
    await connection.close()

    with pytest.raises(SchemaOutOfDate, match="install a newer strandline"):
        await _apply(database_url)


async def test_a_migration_changed_after_it_was_applied_is_refused(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute("UPDATE strandline.migrations SET checksum = 'other' WHERE number = 1")
    await connection.close()

    with pytest.raises(SchemaOutOfDate, match="0001 was changed"):
        await _apply(database_url)
