"""A connection of our pools: it knows its last query, and what goes along with BEGIN."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg


class PooledConnection(asyncpg.Connection):  # type: ignore[misc]  # it has no types
    """asyncpg's connection; also what the user gets as ``tx.connection``.

    Attributes:
        last_query: The statement that was sent last.
        with_begin: SQL sent in one message with every BEGIN.
    """

    last_query = ""
    with_begin = ""

    def execute(self, query: str, *args: Any, **options: Any) -> Any:
        """See asyncpg."""
        if self.with_begin and not args and query.startswith("BEGIN"):
            query = f"{query} {self.with_begin}"
        else:
            self.last_query = query
        return super().execute(query, *args, **options)

    def executemany(self, command: str, args: Any, **options: Any) -> Any:
        """See asyncpg."""
        self.last_query = command
        return super().executemany(command, args, **options)

    def fetch(self, query: str, *args: Any, **options: Any) -> Any:
        """See asyncpg."""
        self.last_query = query
        return super().fetch(query, *args, **options)

    def fetchrow(self, query: str, *args: Any, **options: Any) -> Any:
        """See asyncpg."""
        self.last_query = query
        return super().fetchrow(query, *args, **options)

    def fetchval(self, query: str, *args: Any, **options: Any) -> Any:
        """See asyncpg."""
        self.last_query = query
        return super().fetchval(query, *args, **options)

    def cursor(self, query: str, *args: Any, **options: Any) -> Any:
        """See asyncpg."""
        self.last_query = query
        return super().cursor(query, *args, **options)

    def prepare(self, query: str, **options: Any) -> Any:
        """See asyncpg."""
        self.last_query = query
        return super().prepare(query, **options)


def only_primary(url: str) -> dict[str, str]:
    """Options for asyncpg: of several hosts the one that takes writes, unless told otherwise."""
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    hosts = [parts.netloc.rpartition("@")[2], *query.get("host", ())]
    is_said = "target_session_attrs" in query or "PGTARGETSESSIONATTRS" in os.environ
    if is_said or not any("," in one for one in hosts):
        return {}
    return {"target_session_attrs": "read-write"}
