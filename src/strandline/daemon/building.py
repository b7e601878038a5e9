"""Builds on this node: which of their shards can run here, and as what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from strandline.daemon import rebuilds
from strandline.daemon.buildable import Buildable
from strandline.daemon.definitions import Definition, Wiring
from strandline.daemon.rebuilder import Rebuilder
from strandline.daemon.rebuilds import Build, build_of
from strandline.errors import LeaseLost
from strandline.projections.failure_policy import ErrorPolicy
from strandline.projections.slice import slices


class Builds:
    """What this node does for builds of its definitions.

    Args:
        wiring: Of the daemon.
        definitions: Of this node's code, by label.
        doubt: Called with a label whose shards must be looked at again: of what serves, or of a build.
    """

    def __init__(
        self,
        wiring: Wiring,
        definitions: Mapping[str, Definition],
        *,
        doubt: Callable[[str], None],
    ) -> None:
        self._wiring = wiring
        self._definitions = definitions
        self._doubt = doubt
        self._known: dict[str, Definition] = {}
        self._hears: Callable[[], None] | None = None
        buildable = {one.label: one.build for one in definitions.values() if one.build is not None}
        self._rebuilder = Rebuilder(
            wiring.pools,
            wiring.settings,
            wiring.signals,
            buildable,
            on_step=lambda label: wiring.notifier.notify(rebuilds.CHANNEL, label),
            on_news=doubt,
            node=wiring.node_name,
        )

    def start(self) -> None:
        """Begin to take steps."""
        self._hears = self._wiring.listener.on(rebuilds.CHANNEL, self._heard)
        self._rebuilder.start()

    async def stop(self, *, timeout: float) -> bool:
        """End; whether the step under way ended within *timeout* seconds."""
        if self._hears is not None:
            self._hears()
            self._hears = None
        return await self._rebuilder.stop(timeout=timeout)

    def __getitem__(self, label: str) -> Definition | None:
        """The definition of a build that was learned."""
        return self._known.get(label)

    async def learn(self, label: str) -> None:
        """Find out what *label* is, if it is a build's: each time, as a number may come a second time.

        Raises:
            LeaseLost: The build has ended.
        """
        named = build_of(label)
        if named is None or named[0] not in self._definitions:
            return
        found = await self._wiring.pools.control.run(rebuilds.read(named[1]))
        if found is None or not found.is_open or found.shadow != label:
            raise LeaseLost(label, epoch=0, reason="the build has ended")
        self._keep(found)

    async def shards(self) -> Sequence[str]:
        """Every shard of a build of this node's definitions; all are known from now on."""
        labels = list(self._definitions)
        found = await self._wiring.pools.control.run(rebuilds.open_rebuilds(labels))
        under_way = [one for one in found if one.state != "queued"]
        self._known.clear()
        for one in under_way:
            self._keep(one)
        return [
            part.shard(one.shadow)
            for one in under_way
            if one.shadow in self._known
            for part in slices(one.parts)
        ]

    def _keep(self, build: Build) -> None:
        buildable = self._definitions[build.label].build
        if buildable is not None:
            own = self._definitions[build.label].policy
            self._known[build.shadow] = _definition(build, buildable, own)

    def _heard(self, label: str) -> None:
        self._rebuilder.wake()
        self._doubt(label)


def _definition(build: Build, buildable: Buildable, own: ErrorPolicy) -> Definition:
    action = build.on_error
    unknown = "ignore" if own.unknown_type == "ignore" else action
    return Definition(
        build.shadow,
        build.parts,
        partial(buildable.processor, build),
        policy=ErrorPolicy(apply=action, undecodable=action, unknown_type=unknown),
    )
