"""The reading side of an app: documents, live folds, waiting, catching up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from strandline.daemon.progress import ShardProgress, Waiting, progress
from strandline.events.append import Append
from strandline.events.event import DEFAULT_TENANT, NO_STREAM, Appended
from strandline.events.gaps import highest_position
from strandline.events.spanned import appended, appending
from strandline.jobs.part import JobShare
from strandline.projections.registry import Reference, Registry
from strandline.projections.slice import parsed
from strandline.requests import Requests
from strandline.telemetry.signals import Notice, Signals

if TYPE_CHECKING:
    from strandline.postgres.pools import Pools
    from strandline.settings import Settings


class WritingStream:
    """A stream being decided on: its state, and what is to be appended."""

    def __init__(self, stream: str, state: Any, version: int) -> None:
        self.stream = stream
        self.state = state
        self.version = version
        self.events: list[Any] = []
        self.appended: Appended | None = None

    def append(self, *events: Any) -> None:
        """Append *events* at the end of the block, if the stream is still at ``version``."""
        self.events.extend(events)


class ModelFace:
    """Requests to read models."""

    if TYPE_CHECKING:
        registry: Registry
        settings: Settings
        signals: Signals
        _running: Any

        @property
        def pools(self) -> Pools: ...
        @property
        def requests(self) -> Requests: ...
        @property
        def waiting(self) -> Waiting: ...
        @property
        def is_running(self) -> bool: ...
        async def append_prepared(self, item: Append) -> Appended: ...
        async def _be_node(
            self, projections: tuple[Any, ...], jobs: JobShare | None = None
        ) -> None: ...
        async def stop(self, *, timeout: float | None = None) -> Any: ...

    async def get(self, projection: Reference, name: str, *, tenant: str = DEFAULT_TENANT) -> Any:
        """The document *name* of a projection.

        Raises:
            DocumentNotFound: There is none, or not yet: ``wait_for`` waits for a position.
        """
        return await self.pools.work.run(self.requests.get(projection, name, tenant=tenant))

    async def find(self, projection: Reference, name: str, *, tenant: str = DEFAULT_TENANT) -> Any:
        """The document *name* of a projection, or None."""
        return (await self.find_many(projection, [name], tenant=tenant)).get(name)

    async def find_many(
        self, projection: Reference, names: Iterable[str], *, tenant: str = DEFAULT_TENANT
    ) -> dict[str, Any]:
        """The documents that exist among *names*, by id."""
        op = self.requests.find(projection, list(names), tenant=tenant)
        return await self.pools.work.run(op)

    async def query(
        self,
        projection: Reference,
        where: Mapping[str, Any] | str | None = None,
        *arguments: Any,
        tenant: str = DEFAULT_TENANT,
        order_by: str | None = None,
        limit: int | None = None,
    ) -> list[tuple[str, Any]]:
        """Ids and documents that fit *where*, ordered by id unless told otherwise.

        Args:
            projection: Whose documents.
            where: ``{"owner": "Ada"}``: these fields have these values; or SQL over the column
                ``data``: ``"(data->>'balance')::bigint > $1"``. SQL is yours: never put input of
                users into it, only into *arguments*.
            arguments: ``$1, $2 ...`` of an SQL *where*.
            tenant: Whose documents.
            order_by: SQL, e.g. ``"(data->>'balance')::bigint DESC"``.
            limit: At most so many.
        """
        op = self.requests.query(
            projection, where, arguments, tenant=tenant, order_by=order_by, limit=limit
        )
        return await self.pools.work.run(op)

    async def count(
        self,
        projection: Reference,
        where: Mapping[str, Any] | str | None = None,
        *arguments: Any,
        tenant: str = DEFAULT_TENANT,
    ) -> int:
        """How many documents or rows fit *where*; see ``query`` and ``rows``."""
        model = self.requests.countable(projection)
        return await self.pools.work.run(model.count(where, arguments, tenant=tenant))

    async def rows(
        self,
        projection: Reference,
        where: Mapping[str, Any] | str | None = None,
        *arguments: Any,
        tenant: str = DEFAULT_TENANT,
        order_by: str | None = None,
        limit: int | None = None,
    ) -> list[Any]:
        """The rows of a table projection that fit *where*, ordered by key unless told otherwise.

        Args:
            projection: Whose rows; each has the declared columns as attributes.
            where: ``{"country": "NL"}``: these columns have these values; or SQL over the columns:
                ``"balance > $1"``. SQL is yours: never put input of users into it.
            arguments: ``$1, $2 ...`` of an SQL *where*.
            tenant: Whose rows.
            order_by: SQL, e.g. ``"balance DESC"``.
            limit: At most so many.
        """
        op = self.requests.table(projection).query(
            where, arguments, tenant=tenant, order_by=order_by, limit=limit
        )
        return await self.pools.work.run(op)

    async def row(self, projection: Reference, key: Any, *, tenant: str = DEFAULT_TENANT) -> Any:
        """The row of a table projection under *key* (a tuple of several key columns), or None."""
        return await self.pools.work.run(self.requests.table(projection).find(key, tenant=tenant))

    async def live(
        self,
        projection: Reference,
        stream: str,
        *,
        tenant: str = DEFAULT_TENANT,
        version: int | None = None,
        at: datetime | None = None,
    ) -> Any:
        """A single-stream projection folded from the stream's events now; None if it has none.

        Args:
            projection: The projection; it may be stored as well.
            stream: The stream.
            tenant: The stream's tenant.
            version: As it was after this version.
            at: As it was at this time (aware).
        """
        op = self.requests.live(projection, stream, tenant=tenant, version=version, at=at)
        return (await self.pools.work.run(op))[0]

    @asynccontextmanager
    async def writing(
        self, projection: Reference, stream: str, *, tenant: str = DEFAULT_TENANT
    ) -> AsyncIterator[WritingStream]:
        """Load, decide, append with the version checked.

        Raises:
            WrongVersion: Somebody appended meanwhile: run the block again.
        """
        op = self.requests.live(projection, stream, tenant=tenant)
        state, version = await self.pools.work.run(op)
        writing = WritingStream(stream, state, version)
        yield writing
        if writing.events:
            expected = version or NO_STREAM
            with appending(tenant, stream) as span:
                item = self.requests.prepare(
                    stream, writing.events, expected=expected, tenant=tenant
                )
                writing.appended = await self.append_prepared(item)
                appended(span, [writing.appended])

    # ---- freshness

    async def wait_for(
        self, position: int, *projections: Reference, timeout: float | None = None
    ) -> None:
        """Wait until *projections* (all asynchronous ones when none is named) include *position*.

        Raises:
            AnswerTimedOut: One did not within *timeout* seconds (default: ``wait_timeout``); the
                message says where each is.
        """
        await self.waiting.until(
            position,
            self.registry.labels_of(projections),
            timeout=self.settings.wait_timeout if timeout is None else timeout,
        )

    async def catch_up(self, *projections: Reference, timeout: float = 60.0) -> int:
        """Bring projections up to everything committed by now; the position reached.

        For tests and scripts. The process is a node that can run these projections (all when none is
        named) for as long as that takes, unless it is one anyway, and touches no jobs. In mode
        ``solo`` a node elsewhere loses them.

        Raises:
            AnswerTimedOut: It took longer than *timeout* seconds.
            StrandlineError: A projection paused, every try of a batch having failed: its failure.
        """
        target = await self.pools.control.run(highest_position())
        labels = self.registry.labels_of(projections)
        if not labels:
            return target
        started = not self.is_running
        paused = _first_pause(self.signals, labels)
        arriving = asyncio.ensure_future(self.waiting.until(target, labels, timeout=timeout))
        try:
            if started:
                await self._be_node(projections, JobShare.NONE)
            either: set[asyncio.Future[Any]] = {arriving, paused}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if paused.done() and not arriving.done():
                raise paused.result()
            await arriving
        finally:
            arriving.cancel()
            paused.cancel()
            if started:
                await self.stop()
        return target

    async def progress(self) -> list[ShardProgress]:
        """How far every shard of this app is."""
        return await self.pools.control.run(progress(self.registry.labels()))


def _first_pause(signals: Signals, labels: list[str]) -> asyncio.Future[Exception]:
    """The failure of the first shard of *labels* that pauses from now on."""
    failure: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    def hear(notice: Notice) -> None:
        if notice.name != "shard_paused" or failure.done():
            return
        if parsed(notice.facts["shard"])[0] in labels:
            failure.set_result(notice.facts["error"])

    end = signals.listen(hear)
    failure.add_done_callback(lambda _: end())
    return failure
