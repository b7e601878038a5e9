"""Looking before and after: what a rebuild would do, and whether a read model is what its events make of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from strandline.app.rebuilds import RebuildFace, parts_of, rebuildable
from strandline.daemon import rebuild_plan
from strandline.daemon.comparing import LISTED, Compared, Difference
from strandline.daemon.rebuild_plan import RebuildPlan
from strandline.daemon.rebuilds import Build
from strandline.daemon.scope import Scope, scope_of
from strandline.errors import ApplyFailed, InvalidInput, RebuildFailed
from strandline.events.gaps import read_mark
from strandline.projections.composite import Composite
from strandline.projections.failure_policy import Action
from strandline.projections.projection import Projection
from strandline.projections.registry import Reference
from strandline.projections.slice import WHOLE


@dataclass(frozen=True, slots=True)
class Verified:
    """What a read model is compared with what its events make of it.

    Attributes:
        label: Of the projection.
        scope: Which part of it, in words.
        checked: Documents or rows looked at, of either side.
        differing: How many are not the same in both.
        differences: The first of them, in order of tenant and key.
        repaired: Whether what was built has taken the place of what was live.
        seconds: How long it took.
    """

    label: str
    scope: str
    checked: int
    differing: int
    differences: tuple[Difference, ...]
    repaired: bool
    seconds: float

    @property
    def is_right(self) -> bool:
        """Whether nothing differs, or it has been repaired."""
        return not self.differing or self.repaired


class VerifyFace(RebuildFace):
    """Plans of rebuilds, and verification, of an app."""

    async def verify(
        self,
        projection: Reference,
        *,
        repair: bool = False,
        timeout: float | None = None,
        parts: int | None = None,
        on_error: str | None = None,
        tenant: str | None = None,
        streams: Iterable[str] | None = None,
        keys: Iterable[str] | None = None,
        limit: int = 100,
        elsewhere: bool = False,
    ) -> Verified:
        """Compare what an asynchronous projection has written with what its events make of it.

        It is built again beside the one that serves; when both have read exactly the same events, they
        are compared in one snapshot. Appends go on, nodes run it, readers notice nothing. Who builds
        it is as for ``rebuild``, and so are *timeout*, *parts*, *tenant*, *streams* and *keys*.

        Args:
            projection: Its class, definition, name or label.
            repair: Let what was built take over, if anything differs.
            timeout: Seconds to wait at the most; None: as long as it takes.
            parts: Into how many shards the build is cut.
            on_error: What becomes of events that fail in the build: ``pause``, ``skip`` or ``park``. None:
                what becomes of them where the projection runs, so that both sides lack the same.
            tenant: Only this tenant's documents.
            streams: Only these documents of a single-stream projection.
            keys: Only these documents.
            limit: Differences to list at the most, up to 1,000; all are counted.
            elsewhere: Leave it to other nodes: this process becomes none for it.

        Raises:
            InvalidDefinition: It is inline or live.
            InvalidInput: It has no such part, or *limit* is no such number.
            RebuildUnderWay: It is being built again already.
            RebuildFailed: It could not be begun; the message says why.
            RebuildCancelled: Somebody cancelled it meanwhile.
            ApplyFailed: A shard of the build pauses at an event that fails. A build that was not to
                repair anything is cancelled then.
            AnswerTimedOut: *timeout* is over. The build goes on where there are nodes for it.
        """
        if not 0 <= limit <= LISTED:
            raise InvalidInput(f"limit={limit} is not 0 to {LISTED:,}")
        definition = rebuildable(self.registry.projection(projection))
        scope = scope_of(definition, tenant=tenant, streams=streams, keys=keys)
        cut = parts_of(definition, scope, parts)
        action = self.usual_action(definition.label) if on_error is None else on_error
        if action not in list(Action):
            raise InvalidInput(f"on_error={on_error!r} is not one of {', '.join(Action)}")
        started = not (elsewhere or self.is_running)
        if started:
            await self.start(definition)
        try:
            build = await self.request_build(
                definition.label,
                purpose="repair" if repair else "verify",
                scope=scope,
                parts=cut,
                on_error=action,
            )
            try:
                done = await self.ended_build(build, timeout)
            except ApplyFailed as error:
                if not repair:
                    await self.cancel_rebuild(definition, reason=str(error))
                raise
        finally:
            if started:
                await self.stop()
        return _verified(done, scope, limit)

    async def plan_rebuild(
        self,
        projection: Reference,
        *,
        parts: int | None = None,
        tenant: str | None = None,
        streams: Iterable[str] | None = None,
        keys: Iterable[str] | None = None,
    ) -> RebuildPlan:
        """What ``rebuild`` with the same arguments would do; nothing is changed.

        It counts events and documents, which takes a while in a long log.

        Raises:
            InvalidDefinition: It is inline or live.
            InvalidInput: It has no such part.
        """
        definition = rebuildable(self.registry.projection(projection))
        scope = scope_of(definition, tenant=tenant, streams=streams, keys=keys)
        label, model = definition.label, self.requests.model(definition)
        pool = self.pools.work
        names = self.definition_of(label).make(WHOLE).appetite.names
        mark = (await pool.run(read_mark())).position
        events = await pool.run(rebuild_plan.count_events(names, scope, up_to=mark))
        measured = await pool.run(rebuild_plan.measure(model.tables(), scope))
        rate = await pool.run(rebuild_plan.last_rate(label)) if scope.is_whole else None
        return RebuildPlan(
            label=label,
            scope=str(scope),
            position=mark,
            events=events,
            documents=measured.documents,
            bytes=measured.bytes,
            parts=parts_of(definition, scope, parts),
            letters=await pool.run(rebuild_plan.open_letters(label, scope)),
            seconds=mark / rate if rate else None,
            suppressed=_suppressed(definition),
        )


def _verified(build: Build, scope: Scope, limit: int) -> Verified:
    if build.outcome is None or build.ended_at is None:
        raise RebuildFailed(f"build {build.shadow} has ended without a comparison: {build.reason}")
    found = Compared.parsed(build.outcome)
    return Verified(
        label=build.label,
        scope=str(scope),
        checked=found.checked,
        differing=found.differing,
        differences=found.differences[:limit],
        repaired=build.purpose == "repair" and found.differing > 0,
        seconds=(build.ended_at - build.requested_at).total_seconds(),
    )


def _suppressed(definition: Projection) -> tuple[str, ...]:
    """What a running projection does, and a build does not."""
    members = definition.members if isinstance(definition, Composite) else (definition,)
    return tuple(
        f"side effects of {one.name}" for one in members if one.effects_handler is not None
    )
