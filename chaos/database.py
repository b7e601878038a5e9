"""One statement on a connection of its own, past every proxy."""

from __future__ import annotations

from typing import Any

import asyncpg


async def execute(url: str, sql: str) -> None:
    """Run *sql* at *url*."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


async def fetchval(url: str, sql: str, *arguments: Any) -> Any:
    """The first value of *sql*'s answer."""
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(sql, *arguments)
    finally:
        await connection.close()
