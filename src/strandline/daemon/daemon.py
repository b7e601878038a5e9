"""The daemon of one node: agents of shards, the detector or follower of the mark, one feed.

What it may run it is told by grants, one for each piece of work: a shard, or the detector of the
high-water mark, of which the cluster needs one. In mode ``solo`` nobody grants: it claims all.
A second detector, e.g. one whose node was frozen and wakes up, is harmless; see ``high_water``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from uuid import UUID

from strandline import backoff
from strandline.cluster.work import Ended, Grant, Work
from strandline.daemon import slicing
from strandline.daemon.agent import Agent
from strandline.daemon.agent_parts import Surroundings
from strandline.daemon.building import Builds
from strandline.daemon.definitions import DaemonStatistics, Definition, Wiring
from strandline.daemon.feed import Feed
from strandline.daemon.letter_watch import LetterWatch
from strandline.daemon.mark import MarkFollower
from strandline.daemon.progress import CHANNEL as PROGRESS_CHANNEL
from strandline.daemon.rewinding import CHECKPOINTS_CHANNEL, unowned
from strandline.daemon.slicing import Stage
from strandline.errors import InvalidDefinition
from strandline.events.detections import HighWaterStatistics
from strandline.events.gaps import read_mark
from strandline.events.high_water import HighWater
from strandline.loops import Loop, Rhythm
from strandline.projections.slice import Slice, parsed, slices
from strandline.telemetry.journal import Journal

log = Journal("strandline.daemon")

APPENDED_CHANNEL = "appended"
MARK_CHANNEL = "mark"
CLUSTER_CHANNEL = "cluster"
HIGH_WATER = "high-water"  # the work of detecting the mark
PRESENT = "present"
CARE_EVERY = 10.0  # seconds between looks whether a projection is to be cut otherwise
LONGEST_CARE_PAUSE = 2.0  # seconds between steps while one is


class Daemon:
    """Runs work of this node's code. A ``Worker`` of the cluster."""

    def __init__(
        self,
        wiring: Wiring,
        feed: Feed,
        definitions: Sequence[Definition],
        *,
        on_progress: Callable[[], None],
    ) -> None:
        self._wiring = wiring
        self._feed = feed
        self._definitions = {one.label: one for one in definitions}
        self._on_progress = on_progress
        self._progress = 0
        self._solo: UUID | None = None  # who owns everything, in mode solo
        self._left_alone: set[str] = set()  # what rests for a while, in mode solo
        self._deaf: list[Callable[[], None]] = []
        self._detector: HighWater | None = None
        self.agents: dict[str, Agent] = {}
        self._around = Surroundings(
            feed=feed,
            pool=wiring.pools.work,
            control=wiring.pools.control,
            signals=wiring.signals,
            backoff=replace(
                backoff.WORK,
                pause=wiring.settings.failure_pause,
                longest_pause=wiring.settings.longest_failure_pause,
            ),
            node=wiring.node_name,
            on_progress=self._progressed,
            clock=wiring.clock,
        )
        self._follower = MarkFollower(
            wiring.pools.control,
            wiring.settings,
            known=lambda: feed.mark,
            on_moved=self._mark_moved,
        )
        self._letters = LetterWatch(
            wiring.pools.control, wiring.listener, wiring.settings, lambda: self.agents
        )
        self._builds = Builds(wiring, self._definitions, doubt=self._look_again)
        self._care_pause = wiring.settings.poll_interval
        self._care = Loop("cuts", self._care_for_cuts, Rhythm(CARE_EVERY, limit=60.0))

    # ---- life

    async def open(self) -> None:
        """Learn the mark and follow it, and declare what there is to run. Nothing runs yet.

        Raises:
            Unavailable: The database did not answer.
        """
        wiring = self._wiring
        self._feed.move((await wiring.pools.control.run(read_mark())).position)
        await self._declare()
        self._deaf = [
            wiring.listener.on(APPENDED_CHANNEL, lambda _: self.appended()),
            wiring.listener.on(MARK_CHANNEL, lambda _: self._marked()),
            wiring.listener.on(CHECKPOINTS_CHANNEL, self._moved_away),
        ]
        self._follower.start()
        self._care.start()
        self._letters.start()
        self._builds.start()

    async def run_everything(self, owner: UUID) -> None:
        """Run all there is, whoever had it: mode ``solo``."""
        self._solo = owner
        await self._run_what_there_is(owner)
        log.tell("node_runs", node=self._wiring.node_name, count=len(self.agents))

    async def close(self, *, timeout: float) -> Mapping[str, bool]:
        """Stop everything, each agent after its batch under way.

        Returns:
            For each shard whether it ended by itself within *timeout* seconds.
        """
        for end in self._deaf:
            end()
        self._deaf = []
        self._solo = None  # care must not begin anew what is being stopped
        agents, limit = dict(self.agents), min(timeout, 2.0)
        try:
            *ended, _, _, _, _, _ = await asyncio.gather(
                *(self.stop(name, timeout=timeout) for name in agents),
                self.stop(HIGH_WATER, timeout=limit),
                self._follower.stop(timeout=limit),
                self._care.stop(timeout=limit),
                self._letters.stop(timeout=limit),
                self._builds.stop(timeout=limit),
            )
        except asyncio.CancelledError:
            for agent in agents.values():
                agent.cut()
            raise
        return dict(zip(agents, ended, strict=True))

    @asynccontextmanager
    async def without(self, shards: Sequence[str]) -> AsyncIterator[None]:
        """Run none of *shards* inside the block: mode ``solo``."""
        self._left_alone |= set(shards)
        try:
            for name in shards:
                await self.stop(name, timeout=self._wiring.settings.stop_timeout)
            yield
        finally:
            self._left_alone -= set(shards)
            self._care.wake()

    # ---- what a worker does

    async def offers(self) -> Sequence[Work]:
        """See ``Worker``."""
        found = [Work(HIGH_WATER, weight=0.0)]
        async for label, part in self._parts():
            apart = label if part.parts > 1 else ""  # on one node slices gain nothing
            found.append(Work(part.shard(label), frozenset({label}), apart=apart))
        return found

    async def run(self, grant: Grant, ended: Ended) -> None:
        """See ``Worker``.

        Raises:
            InvalidDefinition: This node's code does not know it.
            LeaseLost: It is of a build that has ended.
        """
        before = self.agents.get(grant.work)
        if before is not None:  # its end was not waited for
            await self.stop(grant.work, timeout=0.0)
        await self._builds.learn(_parsed(grant.work)[0])
        self._begin(grant.work, grant.owner, grant.epoch, ended)

    async def stop(self, work: str, *, timeout: float) -> bool:
        """See ``Worker``."""
        if work == HIGH_WATER:
            detector, self._detector = self._detector, None
            return detector is None or await detector.stop(timeout=timeout)
        agent = self.agents.pop(work, None)
        self._feed.agents = len(self.agents)
        return agent is None or await agent.stop(timeout=timeout)

    def stuck(self) -> Sequence[str]:
        """See ``Worker``."""
        limit = self._wiring.settings.work_stall_after
        return [name for name, seconds in self._idle() if seconds > limit]

    def progress(self) -> int:
        """See ``Worker``."""
        return self._progress

    # ---- the rest

    def appended(self) -> None:
        """Something was appended: look at once."""
        if self._detector is not None:
            self._detector.wake()

    def statistics(self) -> DaemonStatistics:
        """A picture of now."""
        mark, detector = self._feed.mark, self._detector
        return DaemonStatistics(
            mark=mark,
            high_water=detector.statistics() if detector else HighWaterStatistics(position=mark),
            agents=tuple(agent.statistics() for agent in self.agents.values()),
            detects=detector is not None,
            letters=self._letters.counts,
        )

    def _begin(self, work: str, owner: UUID, granted: int | None, ended: Ended | None) -> None:
        if work == HIGH_WATER:
            if self._detector is None:
                self._detector = self._new_detector()
                self._detector.start()
            return
        label, part = _parsed(work)
        definition = self._definitions.get(label) or self._builds[label]
        if definition is None:
            raise InvalidDefinition(f"this node's code has no projection or subscription {label!r}")
        start = self._feed.mark if definition.start == PRESENT else int(definition.start)
        agent = Agent(
            work,
            definition.make(part),
            self._around,
            owner=owner,
            granted=granted,
            start=start,
            ended=ended,
            policy=definition.policy,
        )
        self.agents[work] = agent
        self._feed.agents = len(self.agents)
        agent.start()

    def _idle(self) -> Iterator[tuple[str, float]]:
        """What runs, and for how long it has got nowhere."""
        for name, agent in self.agents.items():
            yield name, agent.idle_for()
        if self._detector is not None:
            loop = self._detector.statistics().loop
            fails = loop is not None and loop.consecutive_failures
            yield HIGH_WATER, loop.seconds_since_success if loop is not None and fails else 0.0

    # ---- into how many shards

    async def _declare(self) -> None:
        control = self._wiring.pools.control
        known = await control.run(slicing.slicings(list(self._definitions)))
        present: int | None = None
        for one in self._definitions.values():
            if one.label in known and known[one.label].wanted == one.parts:
                continue  # said already; and to say it again could wait for a batch under way
            start = one.start
            if start == PRESENT:
                # What is appended from now on is for it, whichever node runs it first, and when.
                if one.label not in known and present is None:
                    present = await self._bring_the_mark_up()
                start = self._feed.mark if present is None else present
            if await control.run(slicing.declare(one.label, one.parts, start=int(start))) is None:
                log.tell("projection_left_out", projection=one.label)

    async def _parts(self) -> AsyncIterator[tuple[str, Slice]]:
        """Every shard there is of this node's definitions, as its label and slice."""
        labels = list(self._definitions)
        known = await self._wiring.pools.control.run(slicing.slicings(labels))
        for label in labels:
            if label in known:
                for part in slices(known[label].parts):
                    yield label, part

    async def _care_for_cuts(self) -> bool:
        """Bring on what is to be cut otherwise; any node may, and several at once."""
        wiring = self._wiring
        channel = f"{wiring.settings.schema}.{CLUSTER_CHANNEL}"
        moved = False
        for name in await wiring.pools.control.run(unowned(list(self.agents))):
            if name in self.agents:  # a notice was missed
                self.agents[name].doubt()
        labels = await wiring.pools.control.run(slicing.pending())
        for label in labels:
            stage = await wiring.pools.control.run(slicing.step(label, channel=channel))
            if stage in (Stage.SEALED, Stage.OPENED):
                self._moved_away(label)
            if stage not in (Stage.SETTLED, Stage.DRAINING):
                moved = True
                log.tell("cut_moved", projection=label, stage=stage)
                wiring.signals.tell("cut", label=label, stage=str(stage))
        if self._solo is not None:
            await self._run_what_there_is(self._solo)
        if not labels:
            return False
        self._care_pause = wiring.settings.poll_interval if moved else 2 * self._care_pause
        self._care_pause = min(self._care_pause, LONGEST_CARE_PAUSE)
        await asyncio.sleep(self._care_pause)
        return True

    async def _run_what_there_is(self, owner: UUID) -> None:
        """In mode solo: a shard that another has taken stays in ``agents``, and is left to it."""
        parts = [part.shard(label) async for label, part in self._parts()]
        parts += await self._builds.shards()
        wanted = [name for name in parts if name not in self._left_alone]
        cut_off = {name for name, agent in self.agents.items() if agent.was_cut_off}
        for name in set(self.agents) - set(wanted) | cut_off:
            await self.stop(name, timeout=self._wiring.settings.stop_timeout)
        for name in [HIGH_WATER, *wanted] if self._solo is not None else ():
            if name not in self.agents:
                self._begin(name, owner, None, None)

    # ---- the mark

    def _new_detector(self) -> HighWater:
        wiring = self._wiring
        return HighWater(
            wiring.pools.control,
            wiring.settings,
            wiring.signals,
            on_moved=self._mark_moved,
            on_forced=self._forced,
        )

    def _forced(self, numbers: int, labels: Sequence[str]) -> None:
        """Numbers were skipped: for *labels*, whichever node runs them."""
        for label in labels:
            self._wiring.signals.tell("forced_gap_passed", projection=label, numbers=numbers)

    async def _bring_the_mark_up(self) -> int:
        """Move the mark until it only waits for appends under way: that is the present."""
        detector, mark = self._new_detector(), -1
        while (position := await detector.tick()) > mark:
            mark = position
        return mark

    def _marked(self) -> None:
        """Another process moved the mark: a hint, no proof."""
        (self._detector or self._follower).wake()

    def _look_again(self, label: str) -> None:
        """A build of *label* came a step further."""
        self._moved_away(label)
        self._care.wake()

    def _moved_away(self, label: str) -> None:
        """Others set checkpoints of *label*, of any if it is empty: who waits would not see it."""
        for name, agent in self.agents.items():
            own = _parsed(name)[0]
            if label in ("", own) or own.startswith(f"{label}~"):
                agent.doubt()

    def _mark_moved(self, position: int) -> None:
        if position < self._feed.mark:  # restored, or failed over: the checkpoints went back too
            self._feed.move_back(position)
            for agent in self.agents.values():
                agent.doubt()
            return
        self._progress += 1
        self._feed.move(position)
        if self._detector is not None:
            self._wiring.notifier.notify(MARK_CHANNEL, str(position))

    def _progressed(self) -> None:
        self._progress += 1
        self._on_progress()
        self._wiring.notifier.notify(PROGRESS_CHANNEL)


def _parsed(work: str) -> tuple[str, Slice]:
    """Label and slice of a shard's name; of other work its name, as if it were a label."""
    try:
        return parsed(work)
    except ValueError:
        return work, Slice()
