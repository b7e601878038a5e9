"""Brings builds on, step by step: begin, seal, swap or compare, sweep. Any node; several at once.

Each step is one transaction, which locks the build's row and leaves it to others if they have it.
What comes next is found out from the rows, so a crash between two steps is nothing special.

What can go wrong, and what then:

* A build cannot begin, since a schema or table cannot be made: it has failed, and says why.
* A shard of the build pauses at a poison event: the build is not sealed, or not any more; it stays
  where it is, and what serves goes on. It goes on when the event can be processed.
* What serves stands still: the build goes on beside it, and its swap puts what serves at the seal.
* Both are sealed, and one does not come to the seal, or a reader holds a table: after ``SEALED_AT_MOST``
  seconds the seal is taken away, so that what serves goes on; ``SEALED_AGAIN`` seconds after the first
  seal there is another.
* Appends go on heavily: a build that has read what there was when it began is sealed as soon as it is
  a page behind the mark, and has that page to go.
* What serves is being cut otherwise: it is sealed when that is over. While it is sealed it is not cut.
* A build is cancelled, at any moment: its row says so, and no step is taken any more. Its shards are
  refused, their work goes, then its schema, by whoever comes first.
* The owner of a shard is frozen: seal and swap raise its epoch, and after the swap its row is gone. What
  its open transactions hold, they are made to give up (``breaker``); and who is frozen in a step, too.
* No node's code has the label any more: nobody takes steps, and the build says so.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from strandline.cluster.membership import channel
from strandline.daemon import build_reasons, exchange, rebuilds
from strandline.daemon.buildable import Buildable
from strandline.daemon.checkpoint import is_locked
from strandline.daemon.comparing import Compared, compare
from strandline.daemon.exchange import Names, filled_in
from strandline.daemon.rebuilds import Build, Standing
from strandline.daemon.scope import Scope
from strandline.daemon.step_locks import StepLocks
from strandline.daemon.sweeping import sweep
from strandline.errors import AnswerTimedOut, RebuildFailed, Unavailable
from strandline.loops import Loop, Rhythm
from strandline.postgres.operations import Op
from strandline.postgres.pools import Pools
from strandline.projections.shadow import Pair, Swappable
from strandline.settings import Settings
from strandline.telemetry.journal import Journal
from strandline.telemetry.signals import Signals

log = Journal("strandline.rebuilds")

LOOK_EVERY = 5.0  # seconds between looks when nothing is under way
AWAKE = 2.0  # seconds for which it looks often after something has happened
OFTEN = 0.1  # seconds between looks while a build is under way
SWIFTLY = 0.05  # seconds between looks while what serves is sealed
TRIES = 3  # of a swap, or comparison, that takes longer than a statement may
BREATH = 0.5  # seconds that readers have between two tries of a swap
LIVE_NEAR = 10_000  # positions that what serves may have to go to a seal that it must come to
SEALED_AT_MOST = 10.0  # seconds that what serves may have to wait for the swap
SEALED_AGAIN = 60.0  # seconds from one seal to the next
SEAL_PATIENCE = 0.8  # seconds for batches under way; less than a claim waits for this


class Rebuilder:
    """Takes the steps of builds whose labels this node's code has.

    Args:
        pools: Of the app.
        settings: ``rebuilds_at_once``, ``page_events``, ``poll_interval``.
        signals: Told ``rebuild`` (label, number, state, reason) after each step.
        known: What can be built, by label.
        on_step: Called with the label after each step of its own: others should hear of it.
        on_news: Called with the label when a step was taken, by whomever: whoever runs its shards here
            must look again.
        node: Name of this node.
    """

    def __init__(
        self,
        pools: Pools,
        settings: Settings,
        signals: Signals,
        known: Mapping[str, Buildable],
        *,
        on_step: Callable[[str], None],
        on_news: Callable[[str], None],
        node: str = "",
    ) -> None:
        self._pools = pools
        self._settings = settings
        self._signals = signals
        self._known = known
        self._on_step = on_step
        self._on_news = on_news
        self._seen: dict[int, tuple[str, str]] = {}  # label and state
        self._channel = channel(settings.schema)
        self._locks = StepLocks(pools, settings.schema, signals, node)
        self._sweeps_at = 0.0
        self._awake_until = 0.0
        self._tried_at: dict[int, float] = {}  # when a swap had to give way to a reader
        self._too_long: dict[int, int] = {}  # tries that took longer than a statement may
        self._loop = Loop("rebuilds", self._look, Rhythm(LOOK_EVERY))

    def start(self) -> None:
        """Begin to look."""
        self._loop.start()

    def wake(self) -> None:
        """Look now, and some times more: what an ended build leaves is not all there at once."""
        self._sweeps_at = 0.0
        self._awake_until = time.monotonic() + AWAKE
        self._loop.wake()

    async def stop(self, *, timeout: float) -> bool:
        """End; whether the step under way ended within *timeout* seconds."""
        return await self._loop.stop(timeout=timeout)

    # ---- one look

    async def step(self) -> bool:
        """Take the next step of each build that it is due for; whether there was one."""
        return await self._steps(await self._under_way())

    async def _look(self) -> bool:
        builds = await self._under_way()
        moved = await self._steps(builds)
        if time.monotonic() >= self._sweeps_at:
            await self._swept()
        if not builds and time.monotonic() > self._awake_until:
            return False
        if not moved:
            is_sealed = any(one.state == "sealed" for one in builds)
            often = min(OFTEN, self._settings.poll_interval)
            await asyncio.sleep(SWIFTLY if is_sealed else often)
        return True

    async def _under_way(self) -> list[Build]:
        found = await self._pools.control.run(rebuilds.open_rebuilds(list(self._known)))
        now = {one.number: (one.label, one.state) for one in found}
        for label in {one[0] for _, one in now.items() ^ self._seen.items()}:
            self._on_news(label)
        self._seen = now
        return found

    async def _steps(self, builds: Sequence[Build]) -> bool:
        moved = False
        for build in builds:
            moved = await self._taken(build) or moved
        return moved

    async def _taken(self, build: Build) -> bool:
        """Take the next step of *build*, if it is due; whether it was."""
        steps = {"queued": self._begin, "building": self._seal, "sealed": self._end}
        try:
            done = await steps[build.state](build)
        except Unavailable as error:
            log.tell(
                "build_waits",
                level=logging.DEBUG if is_locked(error) else logging.WARNING,
                shadow=build.shadow,
                error=error,
            )
            return False
        except Exception as error:  # a defect, or a refusal of the server: others must get on
            with suppress(Unavailable):  # the next look finds it as it was
                await self._refused(build, exchange.explained(error))
            return False
        if done:
            self._tell(build.number, build.label)
            found = await self._pools.control.run(rebuilds.read(build.number))
            state, reason = (found.state, found.reason) if found else ("gone", "")
            log.tell("build_moved", shadow=build.shadow, state=state)
            self._signals.tell(
                "rebuild", label=build.label, number=build.number, state=state, reason=reason
            )
        return done

    def _tell(self, number: int, label: str) -> None:
        self._tried_at.pop(number, None)
        self.wake()
        self._on_step(label)
        self._on_news(label)

    async def _refused(self, build: Build, reason: str, *, fails: bool = False) -> None:
        """A step cannot be taken as things are; one that has not begun, or has no shards, has failed."""
        fails = fails or build.state == "queued"
        if reason == build.reason and not fails:
            return  # it was told
        log.tell("build_refused", shadow=build.shadow, state=build.state, reason=reason)
        async with self._pools.control.transaction() as session:
            now = await self._locks.lock(session, build)
            if now is None or not (now.is_open if fails else now.state == build.state):
                return
            await session.run(rebuilds.be_patient(SEAL_PATIENCE))
            if now.state != "queued":
                await session.run(rebuilds.unseal(now, reason))
            if fails:
                await session.run(rebuilds.note(build, "failed", reason))
        self._tell(build.number, build.label)
        self._signals.tell(
            "rebuild", label=build.label, number=build.number, state="refused", reason=reason
        )

    # ---- begin

    async def _begin(self, build: Build) -> bool:
        names = self._names(build)
        model = self._known[build.label].model(names.place)
        pairs = self._pairs(model)
        if not pairs:
            raise RebuildFailed(
                f"{build.label} does not say which tables are its own: only in_place=True is left"
            )
        async with self._pools.work.transaction(watched=False) as session:
            now = await self._locks.lock(session, build)
            if now is None or not await session.run(self._may_begin(now)):
                return False
            await session.run(rebuilds.be_patient(SEAL_PATIENCE))
            await session.run(exchange.make_room(names))
            await session.run(model.create())
            await session.run(exchange.refuse_what_would_be_lost(pairs))
            await session.run(rebuilds.begin(build, channel=self._channel))
        return True

    def _may_begin(self, build: Build) -> Op[bool]:
        if build.state != "queued":
            return False
        key = f"strandline begins builds of {self._settings.schema}"
        if not (yield from rebuilds.take_turn(key)):
            return False  # who has it is about to begin another: one more could be one too many
        return (yield from build_reasons.may_begin(build, self._settings.rebuilds_at_once))

    def _names(self, build: Build) -> Names:
        return Names(self._settings.schema, build.number)

    def _pairs(self, model: Swappable) -> list[Pair]:
        return filled_in(model.tables(), self._settings.schema)

    def _pairs_of(self, build: Build) -> list[Pair]:
        return self._pairs(self._known[build.label].model(self._names(build).place))

    # ---- seal

    async def _standing(self, build: Build) -> Standing | None:
        found = await self._pools.control.run(rebuilds.weigh(build))
        if found is None:  # retired, or deleted by hand
            await self._refused(build, f"{build.label} has no shards any more", fails=True)
        return found

    async def _seal(self, build: Build) -> bool:
        standing = await self._standing(build)
        if standing is None:
            return False
        is_near, is_exact = self._is_near(build, standing), self._is_exact(build)
        reason = build_reasons.unsealed(standing, is_exact=is_exact, is_near=is_near)
        await build_reasons.keep(self._pools.control, build, reason)
        if not is_near or not self._may_seal(build, standing):
            return False
        async with self._pools.control.transaction() as session:
            now = await self._locks.lock(session, build)
            if now is None or now.state != "building":
                return False
            if _is_compared(build) and not await self._locks.turn(session, build):
                return False  # somebody compares: it is going to end
            await session.run(rebuilds.be_patient(SEAL_PATIENCE))
            near = self._near(build, standing)
            return await session.run(rebuilds.seal(build, near=near))

    def _may_seal(self, build: Build, standing: Standing) -> bool:
        is_near = True
        if self._is_exact(build):  # then it runs up to the seal meanwhile
            is_near = standing.live_low >= standing.mark - LIVE_NEAR
        rests = standing.sealed_for is not None and standing.sealed_for < SEALED_AGAIN
        return is_near and standing.is_settled and not rests and standing.pauses is None

    def _is_near(self, build: Build, standing: Standing) -> bool:
        return standing.shadow_low >= self._near(build, standing)

    def _near(self, build: Build, standing: Standing) -> int:
        """How far it must have come: to where the log ended at first, and a page from where it ends."""
        return max(build.target, standing.mark - self._settings.page_events)

    def _is_exact(self, build: Build) -> bool:
        """Whether what serves must come to the seal as well."""
        whole = Scope.parsed(build.scope).is_whole
        return not whole or _is_compared(build) or self._known[build.label].speaks

    # ---- swap, or compare

    async def _end(self, build: Build) -> bool:
        standing = await self._standing(build)
        if standing is None:
            return False
        if not standing.is_at_the_seal(exact=self._is_exact(build)):
            if standing.pauses is not None:
                return await self._opened(build, standing.pauses)
            return await self._opened_if_due(build, standing, build_reasons.behind(standing))
        if time.monotonic() - self._tried_at.get(build.number, 0.0) < BREATH:
            return False
        try:
            return await (self._compare if _is_compared(build) else self._swap)(build)
        except Unavailable as error:
            self._tried_at[build.number] = time.monotonic()
            log.tell("swap_waits", shadow=build.shadow, error=error)
            if is_locked(error):
                await self._locks.free_tables(build, self._pairs_of(build))
            return await self._gave_way(build, error)

    async def _gave_way(self, build: Build, error: Unavailable) -> bool:
        """A try has failed, which may have taken long; what serves must not stand still for it."""
        if isinstance(error, AnswerTimedOut):
            tries = self._too_long.get(build.number, 0) + 1
            self._too_long[build.number] = tries
            if tries >= TRIES:
                reason = build_reasons.too_long(build, error, tries)
                await self._refused(build, reason, fails=True)
                return False
        standing = await self._standing(build)
        if standing is None:
            return False
        return await self._opened_if_due(build, standing, build_reasons.gave_way(error))

    async def _swap(self, build: Build) -> bool:
        names, pairs = self._names(build), self._pairs_of(build)
        async with self._pools.work.transaction(watched=False) as session:
            now = await self._locks.lock(session, build)
            if now is None or now.state != "sealed":
                return False
            speaks = self._known[build.label].speaks
            op = exchange.swap(build, pairs, names, speaks=speaks, channel=self._channel)
            return await session.run(op)

    async def _opened_if_due(self, build: Build, standing: Standing, reason: str) -> bool:
        if standing.sealed_for is None or standing.sealed_for < SEALED_AT_MOST:
            return False
        return await self._opened(build, reason)

    async def _opened(self, build: Build, reason: str) -> bool:
        async with self._pools.control.transaction() as session:
            now = await self._locks.lock(session, build)
            if now is None or now.state != "sealed":
                return False
            await session.run(rebuilds.be_patient(SEAL_PATIENCE))
            await session.run(rebuilds.unseal(build, reason))
        log.tell("build_unsealed", shadow=build.shadow, reason=reason)
        return True

    async def _compare(self, build: Build) -> bool:
        try:
            return await self._compare_at_the_seal(build)
        except Unavailable as error:
            await build_reasons.compared_again(self._pools.control, build, error)
            raise
        except Exception as error:  # it would be the same the next time
            await self._refused(build, exchange.explained(error), fails=True)
            return False

    async def _compare_at_the_seal(self, build: Build) -> bool:
        """Compare both sides in one snapshot, taken at the seal, which is opened at once."""
        pairs = self._pairs_of(build)
        async with self._pools.work.transaction(watched=False) as session:
            await session.run(rebuilds.one_snapshot())
            if not await self._locks.turn(session, build):
                return False
            standing = await session.run(rebuilds.weigh(build))
            if standing is None or not standing.is_at_the_seal(exact=True):
                return False
            if not await self._opened(build, "it is being compared"):
                return False
            self._tell(build.number, build.label)
            compared = await session.run(compare(pairs, Scope.parsed(build.scope)))
            return await self._compared(build, compared)

    async def _compared(self, build: Build, found: Compared) -> bool:
        async with self._pools.control.transaction() as session:
            if build.purpose == "repair" and found.differing:
                # It goes on being built, and is swapped the next time that both are sealed.
                return bool(await session.run(rebuilds.note(build, "building", "", found.json())))
            done = await session.run(rebuilds.note(build, "done", "", found.json()))
        return done is not None

    # ---- what others have left behind

    async def _swept(self) -> None:
        is_clean = await sweep(self._pools.control, self._settings.schema, channel=self._channel)
        if self._settings.mode != "solo":
            await self._tell_unknown()
        now = time.monotonic()
        is_calm = is_clean and now > self._awake_until
        self._sweeps_at = now + (LOOK_EVERY if is_calm else BREATH)

    async def _tell_unknown(self) -> None:
        await build_reasons.tell_unknown(self._pools.control, self._known)


def _is_compared(build: Build) -> bool:
    """Whether it is compared, and has not been yet."""
    return build.purpose != "rebuild" and build.outcome is None
