"""One fault being injected: at whom, when, what was seen of it, and how long everything took."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import asyncpg

from chaos.field import Choice, Field, Node
from chaos.oracle import Violation
from chaos.signs import Sign, signs_since
from chaos.watch import Look

AIM = 3.0  # seconds until there is somebody to aim at
SLACK = 75.0  # seconds that a disturbance may take longer than it should, before it is given up


class NoTarget(Exception):
    """There is nobody to do it to."""


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Attributes:
        inject: Does the harm, and undoes it if it is of the kind that ends.
        heals: ``while``: the cluster gets over it while it lasts, so its recovery counts from the
            blow. ``after``: nobody can, so it counts from its end.
        deadline: Seconds within which all work must run again (I5).
        reach: ``node``: harms nodes one at a time, others go on. ``all``: harms everybody.
        in_solo: Makes sense with a single node that claims everything.
        alone: Nothing else happens meanwhile: others would hide what it looks for.
    """

    name: str
    inject: Callable[[Blow], Awaitable[None]]
    heals: Literal["while", "after"] = "while"
    deadline: float = 12.0
    reach: Literal["node", "all"] = "node"
    in_solo: bool = True
    alone: bool = False


@dataclass
class Blow:
    """A fault on its way, or done."""

    fault: Fault
    field: Field
    random: random.Random
    size: str = "short"
    targets: list[Node] = field(default_factory=list)
    works: set[str] = field(default_factory=set)
    ids: set[str] = field(default_factory=set)
    was_leader: bool = False
    at: float = 0.0  # time of day
    began: float = 0.0  # monotonic
    head: int = 0
    struck: asyncio.Event = field(default_factory=asyncio.Event)
    violations: list[Violation] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    detected: float | None = None
    recovered: float | None = None

    async def aim(self, choose: Choice) -> Node:
        """The node that *choose* picks from a look, left alone by others until this is over.

        Raises:
            NoTarget: It picks none for some seconds.
        """
        found: list[Node] = []

        def picks(look: Look) -> bool:
            node = choose(look)
            found.extend([node] if node else [])
            return node is not None

        if await self.field.watch.until(picks, timeout=AIM) is None:
            raise NoTarget
        found[0].is_busy = True
        self.targets.append(found[0])
        return found[0]

    def hit(self, *, earlier: float = 0.0) -> None:
        """The blow falls now, or fell *earlier* seconds ago."""
        look = self.field.watch.latest
        self.at, self.began = time.time() - earlier, time.monotonic() - earlier
        if look is not None:
            self.head = look.head
            pids = {one.pid for one in self.targets}
            self.ids = {one.id for one in look.nodes.values() if one.pid in pids}
            self.works = {work for one in self.ids for work in look.works_of(one)}
            self.was_leader = look.leader in self.ids
        self.struck.set()

    def accuse(self, invariant: str, words: str) -> None:
        """Note a violation."""
        self.violations.append(Violation(invariant, words, time.time()))

    @property
    def words(self) -> str:
        """What it is, and at whom."""
        return " ".join([self.fault.name, *(one.tag for one in self.targets)])


async def strike(blow: Blow) -> bool:
    """Carry *blow* out and wait until everything has recovered; False if there was no target.

    Raises:
        Exception: The harness itself failed.
    """
    fault, watch = blow.fault, blow.field.watch
    doing = asyncio.create_task(_inject(blow), name=blow.fault.name)
    struck = asyncio.create_task(blow.struck.wait())
    await asyncio.wait({doing, struck}, return_when=asyncio.FIRST_COMPLETED)
    struck.cancel()
    if doing.done() and not blow.struck.is_set():
        try:
            await doing
        except NoTarget:
            return False
        raise RuntimeError(f"{fault.name} never struck")
    since, head = blow.began, blow.head
    if fault.heals == "after":
        await _over(doing, blow)
        since = time.monotonic()
        look = watch.latest
        head = max(head, look.head if look else 0)
    at = await watch.until_recovered(head, deadline=since + fault.deadline)
    if at is None:
        blow.accuse(
            "I5", f"{blow.words}: not recovered within {fault.deadline} s; {state(blow.field)}"
        )
    else:
        blow.recovered = max(0.0, at - since)
    await _over(doing, blow)
    return True


async def _inject(blow: Blow) -> None:
    try:
        await blow.fault.inject(blow)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        if blow.struck.is_set():
            raise
        raise NoTarget from error  # another fault of the round keeps the server away
    finally:
        for node in blow.targets:
            node.is_busy = False


async def _over(doing: asyncio.Task[None], blow: Blow) -> None:
    """Wait for the end of the disturbance."""
    limit = blow.fault.deadline + SLACK
    await asyncio.wait({doing}, timeout=limit)
    if not doing.done():
        doing.cancel()
        blow.accuse("I5", f"{blow.words}: the disturbance was not over after {limit} s")
        await asyncio.wait({doing})
    elif not doing.cancelled():
        await doing


def state(field: Field) -> str:
    """What is not as it should be, in words."""
    look = field.watch.latest
    if look is None:
        return "nothing is known"
    names = {one.id: f"{one.name} ({one.state})" for one in look.nodes.values()}
    homeless = [
        f"{work} of {names.get(owner or '', owner)}"
        for work, owner in look.owners().items()
        if owner not in {one.id for one in look.nodes.values() if one.state == "active"}
    ]
    late = [f"{name} at {at}" for name, (at, _) in look.shards.items() if at < look.head]
    age = time.monotonic() - look.taken
    return (
        f"head {look.head}, mark {look.mark} ({age:.1f} s ago); not owned by the living:"
        f" {', '.join(homeless) or 'none'}; behind: {', '.join(late) or 'none'};"
        f" {field.inactive(look)}"
    )


async def find_signs(blow: Blow) -> None:
    """Find out afterwards when it was noticed, and how fast work changed hands."""
    signs = await signs_since(blow.field.url, blow.at)
    names = {one.name for one in blow.targets}
    everywhere = blow.fault.reach == "all"

    def concerns(sign: Sign) -> bool:
        if everywhere:
            return True
        if sign.kind == "node":
            return sign.name in names and not sign.detail.startswith(("joining", "active"))
        if sign.kind == "lease":
            return blow.was_leader
        return sign.name in blow.works and sign.owner not in blow.ids

    first = next((sign.at for sign in signs if concerns(sign)), None)
    line = blow.field.logs.first_trouble(
        blow.at, None if everywhere else {one.tag for one in blow.targets}
    )
    seen = [at for at in (first, line) if at is not None]
    blow.detected = max(0.0, min(seen) - blow.at) if seen else None
    _note_handovers(blow, [one for one in signs if one.kind == "assignment"])


def _note_handovers(blow: Blow, signs: list[Sign]) -> None:
    taken: dict[str, float] = {}
    released: dict[str, float] = {}
    handed: list[float] = []
    for sign in signs:
        if sign.name not in blow.works or sign.name in taken:
            continue
        if sign.owner is None:
            released.setdefault(sign.name, sign.at)
        elif sign.owner not in blow.ids:
            taken[sign.name] = sign.at - blow.at
            if sign.name in released:
                handed.append(sign.at - released[sign.name])
    if taken and len({one.pulse for one in blow.targets}) == 1:
        blow.facts[f"taken_over_{blow.targets[0].pulse}_s"] = list(taken.values())
    if handed:
        blow.facts["handed_over_s"] = handed
