"""What an app's declarations become on a node: definitions to run, sessions to join."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from strandline.daemon.batch import DocumentProcessor, Processor, SqlProcessor, TableProcessor
from strandline.daemon.daemon import Definition
from strandline.daemon.subscriber import SubscriptionProcessor
from strandline.errors import InvalidDefinition
from strandline.postgres.operations import AsyncpgSession, PsycopgSession, Session
from strandline.postgres.pools import Pool
from strandline.projections.projection import Lifecycle, Projection
from strandline.projections.registry import Registry
from strandline.projections.slice import Slice
from strandline.projections.sql_projection import OwnTables
from strandline.projections.subscription import Subscription
from strandline.projections.table import TableRows
from strandline.requests import Requests
from strandline.settings import Settings


class Runtime:
    """The declarations of one registry, ready to run."""

    def __init__(self, registry: Registry, settings: Settings, pool: Pool) -> None:
        self._registry = registry
        self._settings = settings
        self._pool = pool
        self.requests = Requests(registry, settings)

    def definitions(self, begin: Callable[[AsyncpgSession], Any]) -> list[Definition]:
        """Everything that a node can run; *begin* makes the ``tx`` of subscriptions."""
        found = [
            Definition(one.label, one.shards, partial(self._processor, one))
            for one in self._registry.of(Lifecycle.ASYNC)
        ]
        for one in self._registry.subscriptions.values():
            make = partial(self._subscriber, one, begin)
            start = 0 if one.start == "beginning" else one.start
            found.append(Definition(one.label, one.shards, make, start))
        return found

    def session_on(self, connection: Any) -> Session:
        """A session on the caller's own asynchronous connection.

        Raises:
            InvalidDefinition: It is neither asyncpg's nor psycopg's.
        """
        for step in ("driver_connection", "_con"):  # SQLAlchemy's adapter, asyncpg's pool proxy
            inner = getattr(connection, step, None)
            if inner is not None:
                connection = inner
        module = type(connection).__module__.partition(".")[0]
        if module == "asyncpg":
            return AsyncpgSession(connection, self._settings.schema)
        if module == "psycopg" and hasattr(connection, "__aenter__"):
            return PsycopgSession(connection, self._settings.schema)
        raise InvalidDefinition(
            f"cannot join a {type(connection).__module__}.{type(connection).__qualname__}:"
            " pass an asyncpg connection or a psycopg AsyncConnection"
            " (blocking psycopg connections go to strandline.sync.App.join)"
        )

    def _processor(self, projection: Projection, part: Slice) -> Processor:
        model = self.requests.model(projection)
        if isinstance(model, TableRows):
            return TableProcessor(model, self._pool, self._settings, part)
        if isinstance(model, OwnTables):
            return SqlProcessor(model, self._pool, self._settings, part)
        return DocumentProcessor(model, self._registry.types, self._pool, self._settings, part)

    def _subscriber(
        self, subscription: Subscription, begin: Callable[[AsyncpgSession], Any], part: Slice
    ) -> Processor:
        return SubscriptionProcessor(
            subscription, self._registry.types, self._pool, self._settings, begin, part
        )
