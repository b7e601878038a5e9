"""Building read models again: in the shadow while they serve, or in their place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from strandline.app.in_place import emptied_at_rest
from strandline.app.rebuild_progress import RebuildProgress, told
from strandline.cluster.membership import channel
from strandline.daemon import exchange, rebuilds
from strandline.daemon.definitions import Definition
from strandline.daemon.progress import Waiting, progress
from strandline.daemon.rebuilds import Build
from strandline.daemon.scope import EVERYTHING, Scope, scope_of
from strandline.daemon.sweeping import sweep
from strandline.errors import (
    AnswerTimedOut,
    ApplyFailed,
    InvalidDefinition,
    InvalidInput,
    RebuildCancelled,
    RebuildFailed,
    RebuildUnderWay,
    UnknownProjection,
)
from strandline.postgres.pools import Pool
from strandline.projections.composite import Composite
from strandline.projections.failure_policy import Action, Category
from strandline.projections.projection import MOST_SHARDS, Lifecycle, Projection
from strandline.projections.registry import Reference, Registry
from strandline.projections.sql_projection import Sql
from strandline.requests import Requests
from strandline.telemetry.journal import Journal

if TYPE_CHECKING:
    from strandline.app.runtime import Runtime
    from strandline.postgres.listener import Listener, Notifier
    from strandline.postgres.pools import Pools
    from strandline.settings import Settings

log = Journal("strandline")

LOOK = 0.1  # seconds between looks whether a build has ended; mostly a notice comes first
SWEPT_WITHIN = 5.0  # seconds a cancelled build may take to be gone altogether
OF_EVENTS = (Category.APPLY, Category.UNDECODABLE, Category.UNKNOWN_TYPE)


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A rebuild that was asked for.

    Attributes:
        number: Of the build; 0 if it was in place.
        state: ``done``; or as it was when the call returned without waiting.
        position: Up to where it had read when it took over; 0 if it has not.
        seconds: From the request to the swap; 0 if it has not come to that.
    """

    label: str
    number: int
    state: str
    position: int
    seconds: float


class RebuildFace:
    """Rebuilds of an app."""

    if TYPE_CHECKING:
        registry: Registry
        settings: Settings
        _listener: Listener | None
        _notifier: Notifier | None

        @property
        def pools(self) -> Pools: ...
        @property
        def requests(self) -> Requests: ...
        @property
        def waiting(self) -> Waiting: ...
        @property
        def is_running(self) -> bool: ...
        @property
        def opened_runtime(self) -> Runtime: ...
        def _begin(self, session: Any) -> Any: ...
        async def start(self, *projections: Any) -> None: ...
        async def stop(self, *, timeout: float | None = None) -> Any: ...
        def at_rest(self, shards: Sequence[str]) -> AbstractAsyncContextManager[None]: ...

    async def rebuild(
        self,
        projection: Reference,
        *,
        wait: bool = True,
        timeout: float | None = None,
        parts: int | None = None,
        on_error: str = "pause",
        tenant: str | None = None,
        streams: Iterable[str] | None = None,
        keys: Iterable[str] | None = None,
        in_place: bool = False,
    ) -> Rebuilt:
        """Build an asynchronous projection again from the log, beside the one that serves.

        Readers see the old state until all of the new one takes its place, at once. Nodes that have the
        projection build it; this process is one of them for as long as it waits, unless it is a node
        anyway. A build that was begun goes on after a restart, from where it was.

        Args:
            projection: Its class, definition, name or label.
            wait: Until it has taken over.
            timeout: Seconds to wait at the most; None: as long as it takes.
            parts: Into how many shards the build is cut that nodes run in parallel; as the projection
                is declared when None.
            on_error: What becomes of events that fail in it: ``pause``, ``skip`` or ``park``.
            tenant: Only this tenant's documents.
            streams: Only these documents of a single-stream projection.
            keys: Only these documents.
            in_place: Delete what there is and let it begin again: readers see it empty and growing.

        Raises:
            InvalidDefinition: It is inline or live.
            InvalidInput: It has no such part, or cannot be cut into so many.
            RebuildUnderWay: It is being built again already.
            ConflictError: It has side effects, and those of open dead letters would be lost.
            RebuildFailed: It could not be begun; the message says why.
            RebuildCancelled: Somebody cancelled it meanwhile.
            ApplyFailed: A shard of it pauses at an event that fails. The build stays, and goes on when
                the event can be processed, or until it is cancelled.
            AnswerTimedOut: *timeout* is over. The build goes on where there are nodes for it.
        """
        definition = rebuildable(self.registry.projection(projection))
        scope = scope_of(definition, tenant=tenant, streams=streams, keys=keys)
        if on_error not in [one.value for one in Action]:
            raise InvalidInput(f"on_error={on_error!r} is not one of {', '.join(Action)}")
        if in_place:
            if not scope.is_whole or not wait:
                raise InvalidInput("a rebuild in place is of all of it, and is waited for")
            if definition.raises_effects:
                raise InvalidInput(
                    f"{definition.label} would raise its side effects again: rebuild it without"
                    " in_place=True"
                )
            return await self._rebuild_in_place(definition)
        cut = parts_of(definition, scope, parts)
        started = wait and not self.is_running
        if started:
            await self.start(definition)
        try:
            build = await self.request_build(
                definition.label, scope=scope, parts=cut, on_error=on_error
            )
            return await self._built(build, timeout) if wait else _rebuilt(build)
        finally:
            if started:
                await self.stop()

    async def rebuilds(self, *projections: Reference, ended: int = 10) -> list[RebuildProgress]:
        """How far builds are, the oldest first; and the last *ended* of those that are over.

        Args:
            projections: Only of these; of all there are, this app's or not, when none is named.
            ended: How many.
        """
        labels = [self._label(one) for one in projections] or None
        return told(await self.pools.control.run(rebuilds.progress(labels, ended=ended)))

    async def cancel_rebuild(self, projection: Reference, *, reason: str = "cancelled") -> bool:
        """End the build of a projection that is under way; whether there was one.

        What serves goes on as before. What the build has written is deleted, here or by the next node
        that finds it.

        Args:
            projection: It; or its label, if no code has it any more.
            reason: For those who wait for it.
        """
        label = self._label(projection)
        control, schema = self.pools.control, self.settings.schema
        async with control.transaction() as session:
            found = await session.run(rebuilds.cancel(label, reason=reason))
        if found is None:
            return False
        self._tell_builders(label)
        try:
            async with asyncio.timeout(SWEPT_WITHIN):
                await self._swept(control, schema)
        except TimeoutError:
            log.tell("build_cancelled", shadow=found.shadow)
        return True

    # ---- what others are built on

    async def request_build(
        self,
        label: str,
        *,
        purpose: str = "rebuild",
        scope: Scope = EVERYTHING,
        parts: int = 1,
        on_error: str = "pause",
    ) -> Build:
        """Ask the nodes for a build.

        Raises:
            RebuildUnderWay: There is one.
            ConflictError: It would read silently past dead letters whose side effects are to be raised.
        """
        if purpose != "verify" and self.registry.projection(label).raises_effects:
            await self.pools.control.run(exchange.refuse_silence(label, scope))
        asked = rebuilds.request(
            label, purpose=purpose, scope=scope.json(), parts=parts, on_error=on_error
        )
        build = await self.pools.control.run(asked)
        self._tell_builders(label)
        return build

    def definition_of(self, label: str) -> Definition:
        """What nodes run under *label*.

        Raises:
            InvalidDefinition: They do not.
        """
        for one in self.opened_runtime.definitions(self._begin):
            if one.label == label:
                return one
        raise InvalidDefinition(f"{label} is not run by nodes")

    def usual_action(self, label: str) -> str:
        """What becomes of events that fail where *label* runs: a build then lacks the same ones."""
        return self.definition_of(label).policy.apply

    async def refuse_paused(self, build: Build) -> None:
        """Tell that a build waits for somebody to do something about an event.

        Raises:
            ApplyFailed: It does.
        """
        for row in await self.pools.control.run(rebuilds.progress([build.label])):
            if row.shard_state == "paused" and row.category in OF_EVENTS:
                position = msgspec.json.decode(row.failure or "{}").get("position") or 0
                raise ApplyFailed(
                    build.shadow,
                    f"{row.shard} pauses: {row.shard_reason}; what serves goes on, and so does the"
                    " build once the event can be processed, or until it is cancelled",
                    position=position,
                )

    async def ended_build(self, build: Build, timeout: float | None = None) -> Build:
        """Wait until *build* has ended; as it is then.

        Raises:
            RebuildFailed: It has failed.
            RebuildCancelled: It was cancelled.
            ApplyFailed: A shard of it pauses at an event that fails.
            AnswerTimedOut: It has not ended within *timeout* seconds.
        """
        heard = asyncio.Event()
        deaf = self._hearing(heard.set)
        try:
            async with asyncio.timeout(timeout):
                while True:
                    now = await self.pools.control.run(rebuilds.read(build.number))
                    if now is None or not now.is_open:
                        break
                    await self.refuse_paused(now)
                    await _soon(heard)
        except TimeoutError:
            raise AnswerTimedOut(
                f"build {build.shadow} has not ended within {timeout} s; it goes on where there are"
                " nodes for it: `strandline projections rebuilds` shows how far it is"
            ) from None
        finally:
            deaf()
        if now is None or now.state == "cancelled":
            raise RebuildCancelled(f"build {build.shadow} was cancelled: {now and now.reason}")
        if now.state == "failed":
            raise RebuildFailed(f"build {build.shadow} has failed: {now.reason}")
        return now

    async def _swept(self, control: Pool, schema: str) -> None:
        is_clean = False
        while not is_clean:
            is_clean = await sweep(control, schema, channel=channel(schema))
            if not is_clean:
                await asyncio.sleep(LOOK)

    def _hearing(self, call: Callable[[], None]) -> Callable[[], None]:
        if self._listener is None:
            return lambda: None
        return self._listener.on(rebuilds.CHANNEL, lambda _: call())

    def _tell_builders(self, label: str) -> None:
        if self._notifier is not None:
            self._notifier.notify(rebuilds.CHANNEL, label)

    def _label(self, reference: Reference) -> str:
        try:
            return self.registry.projection(reference).label
        except UnknownProjection:
            if isinstance(reference, str) and ":v" in reference:
                return reference  # of code that is gone
            raise

    async def _built(self, build: Build, timeout: float | None) -> Rebuilt:
        done = await self.ended_build(build, timeout)
        self.waiting.wake()
        return _rebuilt(done)

    async def _rebuild_in_place(self, definition: Projection) -> Rebuilt:
        label = definition.label
        members = definition.members if isinstance(definition, Composite) else (definition,)
        if any(one.effects_handler is not None for one in members):
            raise InvalidDefinition(
                f"{label} has side effects, and would raise them again in place: rebuild it beside"
            )
        if await self.pools.control.run(rebuilds.open_rebuilds([label])):
            raise RebuildUnderWay(f"{label} is being built again already; cancel that first")
        emptied = False
        while not emptied:
            shards = [one.name for one in await self.pools.control.run(progress([label]))]
            async with self.at_rest(shards):
                emptied = await emptied_at_rest(self.pools.work, self.requests, definition, shards)
                self.waiting.wake()  # what was seen before is not true any more
        return Rebuilt(label, 0, "done", 0, 0.0)


def rebuildable(definition: Projection) -> Projection:
    """*definition*, if nodes run it.

    Raises:
        InvalidDefinition: It is inline or live, or a member of a composite.
    """
    if definition.part_of is not None:
        raise InvalidDefinition(
            f"{definition.name} is a member of {definition.run_label}: its members are rebuilt and"
            " compared together, so name that"
        )
    if definition.lifecycle is not Lifecycle.ASYNC:
        raise InvalidDefinition(
            f"{definition.label} is {definition.lifecycle}: only asynchronous projections can be"
            " rebuilt"
        )
    return definition


def parts_of(definition: Projection, scope: Scope, wanted: int | None) -> int:
    """Into how many shards a build of *scope* is cut.

    Raises:
        InvalidInput: *wanted* is no such number; or statements of the user's own would be run in
            another order than by what serves.
    """
    if wanted is None:
        return definition.shards if scope.ids is None else 1
    if isinstance(wanted, bool) or not isinstance(wanted, int) or not 1 <= wanted <= MOST_SHARDS:
        raise InvalidInput(f"parts={wanted!r} is not 1 to {MOST_SHARDS}")
    if isinstance(definition, Sql) and wanted > definition.shards:
        raise InvalidInput(
            f"parts={wanted}: {definition.label} runs in {definition.shards} shards, and its SQL may"
            " count on the order of events of different streams: rebuild it in as many at the most"
        )
    return wanted


def _rebuilt(build: Build) -> Rebuilt:
    is_done = build.state == "done" and build.ended_at is not None
    seconds = (build.ended_at - build.requested_at).total_seconds() if build.ended_at else 0.0
    return Rebuilt(build.label, build.number, build.state, build.target if is_done else 0, seconds)


async def _soon(heard: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(LOOK):
            await heard.wait()
    except TimeoutError:
        pass
    heard.clear()
