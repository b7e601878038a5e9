"""What an app's declarations become on a node: definitions to run, sessions to join."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from strandline.daemon.batch import Processor
from strandline.daemon.buildable import Buildable
from strandline.daemon.composite_batch import CompositeProcessor
from strandline.daemon.definitions import Definition
from strandline.daemon.document_batch import DocumentProcessor
from strandline.daemon.effects import Begin
from strandline.daemon.exchange import Names
from strandline.daemon.rebuilds import Build
from strandline.daemon.scope import Scope
from strandline.daemon.sql_batch import SqlProcessor
from strandline.daemon.subscriber import SubscriptionProcessor
from strandline.daemon.table_batch import TableProcessor
from strandline.errors import InvalidDefinition
from strandline.postgres.operations import AsyncpgSession, PsycopgSession, Session
from strandline.postgres.pools import Pool
from strandline.projections.composite import Composite, CompositeDocuments
from strandline.projections.enrichment import Lookup
from strandline.projections.failure_policy import ErrorPolicy
from strandline.projections.projection import Lifecycle, Projection
from strandline.projections.registry import Registry
from strandline.projections.slice import Slice
from strandline.projections.sql_projection import OwnTables
from strandline.projections.subscription import Subscription
from strandline.projections.table import TableRows
from strandline.requests import Model, Requests
from strandline.settings import Settings


class Runtime:
    """The declarations of one registry, ready to run."""

    def __init__(self, registry: Registry, settings: Settings, pool: Pool) -> None:
        self._registry = registry
        self._settings = settings
        self._pool = pool
        self.requests = Requests(registry, settings)

    def definitions(self, begin: Begin) -> list[Definition]:
        """Everything that a node can run; *begin* makes the ``tx`` of the user's functions."""
        found = [
            Definition(
                one.label,
                one.shards,
                partial(self._processor, one, begin),
                policy=self._policy(one.on_error),
                build=self._buildable(one),
            )
            for one in self._registry.of(Lifecycle.ASYNC)
        ]
        for one in self._registry.subscriptions.values():
            make = partial(self._subscriber, one, begin)
            start = 0 if one.start == "beginning" else one.start
            policy = self._policy(one.on_error)
            found.append(Definition(one.label, one.shards, make, start, policy))
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

    def _processor(self, projection: Projection, begin: Begin | None, part: Slice) -> Processor:
        model = self.requests.model(projection)
        return self._processor_of(model, projection, begin, self._settings, part)

    def _processor_of(
        self,
        model: Model,
        projection: Projection,
        begin: Begin | None,
        settings: Settings,
        part: Slice,
    ) -> Processor:
        """*begin* makes the ``tx`` of side effects. None: they are not raised, as in a build."""
        known = self._known(projection.on_error)
        if isinstance(model, TableRows):
            return TableProcessor(model, self._pool, settings, part, known=known)
        if isinstance(model, OwnTables):
            return SqlProcessor(model, self._pool, settings, part, known=known)
        what = (self._registry.types, self._pool, settings, part)
        find = self.requests.find
        look = Lookup(self._pool, find, self._registry.projection, frozenset({projection.label}))
        if isinstance(model, CompositeDocuments):
            return CompositeProcessor(model, *what, known=known, begin=begin, look=look)
        return DocumentProcessor(model, *what, known=known, begin=begin, look=look)

    # ---- builds

    def _buildable(self, projection: Projection) -> Buildable:
        members = projection.members if isinstance(projection, Composite) else (projection,)
        return Buildable(
            model=partial(self.requests.model_in, reference=projection),
            processor=partial(self._builder, projection),
            speaks=any(one.effects_handler is not None for one in members),
        )

    def _builder(self, projection: Projection, build: Build, part: Slice) -> Processor:
        """What processes one shard of a build: larger pages, another place, no side effects."""
        settings = self._settings
        most = settings.rebuild_page_events
        settings = replace(
            settings,
            page_events=max(settings.page_events, most),
            table_page_events=max(settings.table_page_events, most),
        )
        model = self.requests.model_in(Names(settings.schema, build.number).place, projection)
        scope = Scope.parsed(build.scope)
        if isinstance(model, TableRows):
            model = TableRows(model.projection, model.place, scope.within)
        made = self._processor_of(model, projection, None, settings, part)
        made.label = build.shadow
        made.appetite = scope.narrowed(made.appetite)
        if isinstance(made, DocumentProcessor):
            made.narrow(scope)
        return made

    def _subscriber(self, subscription: Subscription, begin: Begin, part: Slice) -> Processor:
        return SubscriptionProcessor(
            subscription,
            self._registry.types,
            self._pool,
            self._settings,
            begin,
            part,
            known=self._known(subscription.on_error),
        )

    def _policy(self, own: ErrorPolicy | None) -> ErrorPolicy:
        """What a projection or subscription says, or the settings where it says nothing."""
        if own is not None:
            return own
        settings = self._settings
        return ErrorPolicy(
            apply=settings.on_apply_failed,
            undecodable=settings.on_undecodable,
            unknown_type=settings.on_unknown_type,
        )

    def _known(self, own: ErrorPolicy | None) -> frozenset[str] | None:
        """The names of all registered types, where an event of another one is a failure."""
        if self._policy(own).unknown_type == "ignore":
            return None
        return frozenset(self._registry.types.classes)
