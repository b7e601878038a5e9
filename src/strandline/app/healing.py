"""Late events: what had passed a gap before an event turned up in it is mended."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from strandline.app.rebuilds import RebuildFace, parts_of
from strandline.daemon import late_events, letters, rebuilds
from strandline.daemon.scope import EVERYTHING, MOST, Scope
from strandline.errors import EventFailure, RebuildUnderWay
from strandline.projections.documents import Documents
from strandline.projections.fold import POSITION, STREAM, TENANT, TYPE, PageFold, Row
from strandline.projections.multi_stream import MultiStream
from strandline.projections.projection import Projection
from strandline.projections.slice import WHOLE
from strandline.projections.sql_projection import OwnTables
from strandline.telemetry.journal import Journal

log = Journal("strandline.heal")

LOOK = 0.2  # seconds between looks whether another build of the same projection is over
MOST_BUILDS = 20  # builds of parts, one for each tenant; beyond that all of it is built


@dataclass(frozen=True, slots=True)
class Healed:
    """What was done about late events for one projection or subscription.

    Attributes:
        label: Its label.
        positions: Of the late events that it wants.
        how: ``rebuilt``: all of it, or the *scopes* that the events belong to; ``called``: the
            subscription is being called for them; ``read``: it had not passed them, and reads them
            like all others; ``none``: nothing could be done, and *reason* says why.
        scopes: The parts that were rebuilt, in words.
        reason: Why nothing was done.
    """

    label: str
    positions: tuple[int, ...]
    how: str
    scopes: tuple[str, ...] = ()
    reason: str = ""


class HealFace(RebuildFace):
    """Healing of an app."""

    async def heal(self, *projections: Any, elsewhere: bool = False) -> list[Healed]:
        """Mend what lacks events that turned up in a gap after ``force_after`` had skipped it.

        Each projection that wants them is built anew, in the shadow: only the streams or keys that
        the events belong to, where that can be told. Subscriptions are called for the events that
        they have passed, alone and after the fact. Inline projections have seen them. What is done
        is noted: a second call finds nothing to do, and two at a time take turns.

        Args:
            projections: Only these projections and subscriptions; all of the app without any.
            elsewhere: Leave the building to other nodes: this process becomes none for it.

        Raises:
            ApplyFailed: A build pauses at an event that fails: the one that this has asked for, which
                is cancelled then, or another of the same projection.
            StrandlineError: A build failed; what was healed before it stays healed.
        """
        labels = self.registry.labels_of(projections)
        healed = []
        for one in self.opened_runtime.definitions(self._begin):
            if one.label not in labels:
                continue
            names = one.make(WHOLE).appetite.names
            found = await self._heal_label(one.label, names, elsewhere=elsewhere)
            if found is not None:
                healed.append(found)
                log.tell(
                    "projection_healed",
                    projection=one.label,
                    events=len(found.positions),
                    how=found.how,
                )
        return healed

    async def unhealed(self) -> list[late_events.UnhealedGap]:
        """The gaps skipped by force whose late events ``heal`` has not seen to yet."""
        return await self.pools.control.run(late_events.unhealed_gaps(self.registry.labels()))

    async def _heal_label(
        self, label: str, names: Sequence[str] | None, *, elsewhere: bool
    ) -> Healed | None:
        while True:
            rows = await self.pools.work.run(late_events.late_events(label))
            wanted = [row for row in rows if names is None or row[TYPE] in names]
            others = {row[POSITION] for row in rows} - {row[POSITION] for row in wanted}
            if others:
                await self.pools.work.run(late_events.note_healed(label, sorted(others)))
            if not wanted:
                return None
            try:
                if label in self._subscriptions():
                    return await self._heal_subscription(label, wanted)
                projection = self.registry.projection(label)
                return await self._heal_projection(projection, wanted, elsewhere=elsewhere)
            except RebuildUnderWay:  # it is being built already: for this, or before these came
                for build in await self.pools.control.run(rebuilds.open_rebuilds([label])):
                    await self.refuse_paused(build)
                await asyncio.sleep(LOOK)

    def _subscriptions(self) -> set[str]:
        return {one.label for one in self.registry.subscriptions.values()}

    async def _heal_subscription(self, label: str, rows: Sequence[Row]) -> Healed | None:
        """Letters for the owners of its shards, in one transaction with the note."""
        async with self.pools.work.transaction() as session:
            await session.run(late_events.take_turns(label))
            left = {row[POSITION] for row in await session.run(late_events.late_events(label))}
            positions = [row[POSITION] for row in rows if row[POSITION] in left]
            if not positions:
                return None
            await session.run(late_events.is_passed(label, positions))
            called = await session.run(late_events.call_again(label, positions))
            await session.run(late_events.note_healed(label, positions))
        if called and self._notifier is not None:
            self._notifier.notify(letters.CHANNEL)
        return Healed(label, tuple(positions), "called" if called else "read")

    async def _heal_projection(
        self, projection: Projection, rows: Sequence[Row], *, elsewhere: bool
    ) -> Healed | None:
        label, positions = projection.label, [row[POSITION] for row in rows]
        model = self.requests.model(projection)
        if isinstance(model, OwnTables) and not model.tables():
            reason = (
                'it does not say which tables are its own (tables = ("...",)): mend them by hand,'
                " or rebuild it in place"
            )
            return Healed(label, tuple(positions), "none", reason=reason)
        async with self.pools.work.transaction() as session:
            passed = await session.run(late_events.is_passed(label, positions))
            left = {row[POSITION] for row in await session.run(late_events.late_events(label))}
            if left.isdisjoint(positions):
                return None
            if not passed:
                under_way = await session.run(rebuilds.open_rebuilds([label]))
                if any(one.state != "queued" for one in under_way):
                    raise RebuildUnderWay(f"a build of {label} may have passed them")
                await session.run(late_events.note_healed(label, positions))
                return Healed(label, tuple(positions), "read")
        scopes = self._scopes(projection, model, rows)
        started = bool(scopes) and not (elsewhere or self.is_running)
        if started:
            await self.start(projection)
        try:
            for scope in scopes:
                cut = parts_of(projection, scope, None)
                build = await self.request_build(
                    label, scope=scope, parts=cut, on_error=self.usual_action(label)
                )
                try:
                    await self.ended_build(build)
                except EventFailure as error:
                    await self.cancel_rebuild(label, reason=str(error))
                    raise
        finally:
            if started:
                await self.stop()
        await self.pools.work.run(late_events.note_healed(label, positions))
        return Healed(label, tuple(positions), "rebuilt", tuple(str(scope) for scope in scopes))

    def _scopes(self, projection: Projection, model: Any, rows: Sequence[Row]) -> Sequence[Scope]:
        """The parts of a projection that these events belong to; all of it if that cannot be told."""
        multi = isinstance(projection, MultiStream)
        if not isinstance(model, Documents) or (multi and projection.enrich_handler is not None):
            return (EVERYTHING,)  # keys may depend on what is looked up, by nodes only
        named: dict[str, dict[str, None]] = {}
        if multi:
            try:
                pieces = PageFold(model.projection, self.registry.types).group(rows)
            except EventFailure:  # the build meets it too, and its policy decides
                return (EVERYTHING,)
            keys = [piece[0] for piece in pieces]
        else:
            keys = [(row[TENANT], row[STREAM]) for row in rows]
        for tenant, name in keys:
            named.setdefault(tenant, {})[name] = None
        if len(named) > MOST_BUILDS or any(len(names) > MOST for names in named.values()):
            return (EVERYTHING,)
        return [
            Scope(tenant, keys=tuple(names)) if multi else Scope(tenant, streams=tuple(names))
            for tenant, names in named.items()
        ]
