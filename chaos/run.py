"""One run: cycles of rounds, and the checks between them."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from chaos import job_oracle, schedule
from chaos.blow import Blow, find_signs, state, strike
from chaos.database import fetchval
from chaos.evidence import Collector
from chaos.faults import FAULTS
from chaos.field import Field
from chaos.job_oracle import LIVE, QUEUE
from chaos.oracle import Oracle, Violation
from chaos.results import Row, rows
from chaos.watch import Look

CALM = 20.0  # seconds within which every node is active and all work owned, after a round
LEVEL = 20.0  # seconds within which every shard is at the head, once writers rest
CHECK_EVERY = 60.0  # seconds between checks of the whole, in a long run
NOT_STARTED = 3  # exit code of a node that cannot reach the database when it starts
EVICTED = 75  # of one that was declared dead more than so many times in ten minutes
TOO_OFTEN = 3
LONGEST_ROUND = 180.0


@dataclass
class Run:
    """A run under way.

    Attributes:
        goes_on: Asked before each round with the number of the cycle (from 0) and how many faults
            were injected: whether there is to be another round.
    """

    field: Field
    seed: int
    goes_on: Callable[[int, int], bool]
    only: Sequence[str] = ()
    size: str = "short"
    blows: list[Blow] = field(default_factory=list)
    others: list[Violation] = field(default_factory=list)
    checked_events: int = 0
    checked_jobs: int = 0
    checks: int = 0
    server_version: str = ""

    def __post_init__(self) -> None:
        self.collector = Collector(self.field.writers, self.field.enqueuers)
        self.oracle = Oracle()
        self._checked_at = time.monotonic()

    async def go(self) -> None:
        """Do it."""
        self.field.go()
        number = 0
        while True:
            solo = self.field.mode == "solo"
            for one in schedule.cycle(self.seed, number, only=self.only, solo=solo):
                if not self.goes_on(number, len(self.blows)):
                    await self.check()
                    return
                await self._round(one)
                if time.monotonic() - self._checked_at > CHECK_EVERY:
                    await self.check()
                    self.field.go()
            number += 1

    async def leave(self) -> None:
        """Tell every node to stop, and see what is left behind."""
        going = [(one, self.field.stop_node(one)) for one in self.field.running()]
        for node, task in going:
            seconds = await task
            if seconds is None:
                self._accuse("I6", f"{node.tag} was told to stop at the end, and did not")
            elif node.process.code:
                self._accuse("I6", f"{node.tag} stopped at the end with code {node.process.code}")
        look = await self.field.watch.until(_is_left, timeout=2.0)
        if look is None and self.field.watch.latest is not None and self.field.mode != "solo":
            left = self.field.watch.latest
            owned = [work for work, owner in left.owners().items() if owner]
            self._accuse(
                "I6",
                f"all nodes have stopped, and still there are: nodes {[*left.nodes.values()]},"
                f" leader {left.leader}, owned {owned}",
            )

    async def check(self) -> None:
        """Let the writers rest and everything come to an end; then look whether it is right."""
        await self._rest()
        found = await self.collector_evidence()
        self.others += await asyncio.to_thread(self.oracle.judge, found)
        self.others += job_oracle.judge(found.jobs)
        self.checked_events = len(self.oracle.positions)
        self.checked_jobs = len(found.jobs.fates) + len(found.jobs.paid)
        self.checks += 1
        self._checked_at = time.monotonic()

    async def collector_evidence(self) -> Any:
        """What there is to be judged."""
        self.collector.samples += self.field.watch.samples
        self.field.watch.samples = []
        return await self.collector.collect(self.field.url)

    def rows(self) -> list[Row]:
        """What came out, a row a fault."""
        return rows(self.blows, self.others)

    def violations(self) -> list[Violation]:
        """Everything that was wrong, in order of time as far as it is known."""
        found = [*self.others, *(one for blow in self.blows for one in blow.violations)]
        return sorted(found, key=lambda one: one.at or float("inf"))

    # ---- parts

    async def _round(self, planned: schedule.Round) -> None:
        begun = time.monotonic()
        blows = [
            Blow(FAULTS[one.fault], self.field, random.Random(one.seed), size=self.size)
            for one in planned
        ]
        async with asyncio.timeout(LONGEST_ROUND):
            struck = await asyncio.gather(
                *(_later(one.after, strike(blow)) for one, blow in zip(planned, blows, strict=True))
            )
        hit = [blow for blow, was in zip(blows, struck, strict=True) if was]
        self.blows += hit
        await self._calm(hit)
        for blow in hit:
            await find_signs(blow)
        words = ", ".join(_told(blow) for blow in hit) or "nobody to harm"
        say(f"{time.monotonic() - begun:5.1f} s  {words}")
        for blow in hit:
            for one in blow.violations:
                say(f"         {one.invariant}: {one.words}")

    async def _calm(self, hit: Sequence[Blow]) -> None:
        """Wait until everybody is there again; a node that neither works nor ends is a violation."""
        self._look_after_writers()
        await self._look_for_ended(hit)
        await self.field.fill_up()
        if self.field.mode == "solo":
            return
        field = self.field
        is_calm = lambda look: field.all_active(look) and field.is_whole(look)  # noqa: E731
        if await field.watch.until(is_calm, timeout=CALM) is not None:
            return
        words = f"not calm {CALM} s after {', '.join(one.words for one in hit)}: {state(field)}"
        if hit:
            hit[0].accuse("I5", words)
        else:
            self._accuse("I5", words)
        for node in field.running():
            if node.tag in field.inactive(field.watch.latest or _NOTHING):
                node.process.kill()  # so that the run can go on
                node.is_leaving = True
        await field.fill_up()
        await field.watch.until(is_calm, timeout=CALM)

    async def _rest(self) -> None:
        self._look_after_writers()
        for name in await self.field.rest(timeout=LEVEL):
            self._accuse("I5", f"writer {name} cannot append any more")
        level = await self.field.watch.until(
            lambda look: look.mark >= look.head and look.slowest >= look.head, timeout=LEVEL
        )
        if level is None:
            self._accuse("I5", f"not level {LEVEL} s after the last append: {state(self.field)}")
        await self._jobs_end()

    async def _jobs_end(self) -> None:
        """Wait until no job is left, for a time; the oracle tells if there are some."""
        until = time.monotonic() + LEVEL
        while time.monotonic() < until:
            if not await fetchval(self.field.url, LIVE, QUEUE):
                return
            await asyncio.sleep(0.1)

    def _look_after_writers(self) -> None:
        for writer in self.field.busy:
            if writer.process.returncode is not None:
                words = self.field.last_words([writer.name])
                raise SystemExit(f"writer {writer.name} ended: {words}")

    async def _look_for_ended(self, hit: Sequence[Blow]) -> None:
        """A node that ended by itself is a violation, but for two cases in which it is to end.

        It was starting while the server was away; or it was declared dead again and again.
        """
        is_away = any(one.fault.reach == "all" and one.fault.heals == "after" for one in hit)
        is_away = is_away and "join_many" not in {one.fault.name for one in hit}
        for node in self.field.nodes:
            code = node.process.code
            if code is None or node.is_leaving:
                continue
            node.is_leaving = True
            if code == NOT_STARTED and is_away:
                continue
            if code == EVICTED and await self.field.evictions(node) > TOO_OFTEN:
                continue
            words = self.field.last_words([node.tag], lines=2)
            self._accuse("I5", f"{node.tag} ended by itself with code {code}: {words}")

    def _accuse(self, invariant: str, words: str) -> None:
        say(f"         {invariant}: {words}")
        self.others.append(Violation(invariant, words, time.time()))


_NOTHING = Look(0.0, 0, 0, {}, {}, {}, None, 0)


async def _later(seconds: float, what: Any) -> Any:
    await asyncio.sleep(seconds)
    return await what


def _is_left(look: Look) -> bool:
    return not look.nodes and look.leader is None and not any(look.owners().values())


def _told(blow: Blow) -> str:
    seen = "-" if blow.detected is None else f"{blow.detected:.2f}"
    again = "never" if blow.recovered is None else f"{blow.recovered:.2f}"
    return f"{blow.words} ({seen} {again})"


def say(words: str) -> None:
    """Tell how it goes on."""
    print(words, file=sys.stderr, flush=True)
