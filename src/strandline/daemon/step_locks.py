"""What a step of a build locks, taken; or taken from whoever is frozen with it."""

from __future__ import annotations

from collections.abc import Sequence

from strandline.daemon import breaker, rebuilds
from strandline.daemon.rebuilds import Build
from strandline.errors import Unavailable
from strandline.postgres.operations import AsyncpgSession, Op
from strandline.postgres.pools import Pools
from strandline.postgres.silence import Zombie
from strandline.projections.shadow import Pair
from strandline.telemetry.journal import Journal
from strandline.telemetry.signals import Signals

log = Journal("strandline.rebuilds")


class StepLocks:
    """The locks of the steps of builds.

    Args:
        pools: Of the app.
        schema: Strandline's own.
        signals: Told ``zombie_ended``.
        node: Name of this node.
    """

    def __init__(self, pools: Pools, schema: str, signals: Signals, node: str) -> None:
        self._pools = pools
        self._schema = schema
        self._signals = signals
        self._node = node

    async def lock(self, session: AsyncpgSession, build: Build) -> Build | None:
        """*build* as it is now, nobody else's until the transaction ends; None: somebody is at it."""
        now = await session.run(rebuilds.lock(build.number))
        if now is None:
            await self._free_step(session, build)
        return now

    async def turn(self, session: AsyncpgSession, build: Build) -> bool:
        """Whether nobody else compares *build*; none does until the transaction ends."""
        is_ours = await session.run(rebuilds.take_turn(self._turn(build)))
        if not is_ours:
            await self._free_step(session, build)
        return is_ours

    async def free_tables(self, build: Build, pairs: Sequence[Pair]) -> None:
        """End whoever is frozen with a lock on a table of *build*; the next try is not held up."""
        tables = [table for pair in pairs for table in (pair.live, pair.shadow)]
        try:
            await self._free(self._pools.control, build, breaker.end_silent(tables))
        except Unavailable as error:
            log.tell("table_holders_unknown", shadow=build.shadow, error=error)

    async def _free_step(self, session: AsyncpgSession, build: Build) -> None:
        # On this session: a pool may have no other connection. What is freed, the next look takes.
        await self._free(session, build, breaker.end_steppers(build.number, self._turn(build)))

    async def _free(self, by: breaker.Runner, build: Build, op: Op[list[Zombie]]) -> None:
        await breaker.free_build(op, build.shadow, self._node, by=by, signals=self._signals)

    def _turn(self, build: Build) -> str:
        return f"strandline compares build {build.shadow} of {self._schema}"
