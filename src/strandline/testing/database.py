"""A fresh database per test, cloned from a migrated template.

That takes 15 to 40 ms where the server's folder is in memory, and 150 ms or more on a disk. Works under
pytest-xdist: the template is named after the migrations it holds, made once under an advisory lock,
and shared by all workers and later runs on the same server.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg

from strandline.postgres import migrations
from strandline.postgres.operations import AsyncpgSession
from strandline.postgres.statements import quoted

_LOCK = 7_361_001  # advisory lock of template makers, on the maintenance database
_BY_FILES = " STRATEGY FILE_COPY"
_there: set[tuple[str, str]] = set()  # templates by the server's URL


def with_database(url: str, name: str) -> str:
    """*url* with another database name."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path="/" + name))


def template_name(schema: str = "strandline") -> str:
    """The template's name: it changes with the migrations, so a stale one is never used."""
    checksums = "".join(one.checksum for one in migrations.available())
    return f"sl_template_{hashlib.sha256((schema + checksums).encode()).hexdigest()[:12]}"


async def make_template(url: str, schema: str = "strandline") -> str:
    """Make the migrated template database on the server at *url*, unless it is there."""
    name = template_name(schema)
    admin = await asyncpg.connect(url)
    try:
        await admin.execute("SELECT pg_advisory_lock($1)", _LOCK)
        if not await admin.fetchval("SELECT true FROM pg_database WHERE datname = $1", name):
            making = f"{name}_{os.getpid()}"
            await admin.execute(f"DROP DATABASE IF EXISTS {quoted(making)} WITH (FORCE)")
            await admin.execute(f"CREATE DATABASE {quoted(making)}")
            await _migrated(with_database(url, making), schema)
            await admin.execute(f"ALTER DATABASE {quoted(making)} RENAME TO {quoted(name)}")
    finally:
        await admin.close()
    return name


@asynccontextmanager
async def fresh_database(
    url: str, *, template: str | None = None, keep: bool = False
) -> AsyncIterator[str]:
    """A database of its own for the block, from the template; its URL.

    Args:
        url: Any database on the server; the role must be allowed to create databases.
        template: Another template than the migrated one; ``"template1"`` gives an empty database.
        keep: Leave the database there afterwards, for looking at it.
    """
    name = f"sl_test_{uuid4().hex[:16]}"
    if template is not None:
        await _clone(url, template, name)
    else:
        await _clone_of_migrated(url, name)
    try:
        yield with_database(url, name)
    finally:
        if not keep:
            with contextlib.suppress(OSError, asyncpg.PostgresError):
                await _execute(url, f"DROP DATABASE IF EXISTS {quoted(name)} WITH (FORCE)")


async def _clone_of_migrated(url: str, name: str) -> None:
    """The template is made, or looked for, once by each process."""
    template = template_name()
    if (url, template) in _there:
        with contextlib.suppress(asyncpg.InvalidCatalogNameError):  # another server by now
            await _clone(url, template, name)
            return
    await make_template(url)
    _there.add((url, template))
    await _clone(url, template, name)


async def _clone(url: str, template: str, name: str) -> None:
    """Make the database *name*, by the way that is quicker there.

    Copying files needs two checkpoints, which cost nothing without fsync and much with it.
    """
    connection = await asyncpg.connect(url)
    try:
        is_durable = await connection.fetchval("SELECT current_setting('fsync') = 'on'")
        how = "" if is_durable or connection.get_server_version() < (15,) else _BY_FILES
        await connection.execute(f"CREATE DATABASE {quoted(name)} TEMPLATE {quoted(template)}{how}")
    finally:
        await connection.close()


async def _migrated(url: str, schema: str) -> None:
    connection: Any = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await AsyncpgSession(connection, schema).run(migrations.apply(schema))
    finally:
        await connection.close()


async def _execute(url: str, sql: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()
