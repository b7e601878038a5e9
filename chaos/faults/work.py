"""Faults of what users' code does: it leaks, blocks, raises; and a clock that is wrong."""

from __future__ import annotations

import asyncio

from chaos import choices
from chaos.blow import Blow, Fault
from chaos.database import execute, fetchval
from chaos.field import Node, set_poison
from chaos.settings import SETTINGS
from chaos.watch import Look

TTL = SETTINGS["node_ttl"]
HELD = 2.5  # seconds that all work connections are leaked
POISONED = 1.5  # seconds that a handler raises
SHARDS = {  # of those that pause at a bad event
    "branches": "branches:v1:",
    "ledger": "ledger:v1:",
    "journal": "journal:",
}


async def pool_exhausted(blow: Blow) -> None:
    """Transactions that nobody ends hold the leader's whole work pool: control must go on (I7)."""
    node = await blow.aim(choices.leader(blow.field))
    blow.hit()
    blow.field.order(node, "leak", connections=SETTINGS["work_connections"], seconds=HELD)
    before = blow.field.watch.latest
    await asyncio.sleep(HELD)
    after = blow.field.watch.latest
    if blow.field.mode == "cluster" and before and after:
        _check_control(blow, node, before, after)


def _check_control(blow: Blow, node: Node, before: Look, after: Look) -> None:
    """While its work pool was held, a leader must have gone on beating, and leading."""
    beats = {
        one.id: one.beats - before.nodes[one.id].beats
        for one in after.nodes.values()
        if one.pid == node.pid and one.id in before.nodes
    }
    wanted = HELD / SETTINGS["pulse_interval"] / 3
    if not beats or max(beats.values()) < wanted:
        blow.accuse("I7", f"{node.tag} beat {beats or 'never'} while its work pool was held")
    if before.leader in beats and before.leader_epoch != after.leader_epoch:
        blow.accuse("I7", f"{node.tag} lost its lease while its work pool was held")


async def blocked_loop(blow: Blow) -> None:
    """A handler sleeps, or counts, in the event loop."""
    node = await blow.aim(choices.owner(blow.field, blow.random))
    seconds = blow.random.choice([0.6 * TTL, 1.8 * TTL])
    blow.hit()
    blow.field.order(node, blow.random.choice(["block", "spin"]), seconds=seconds)
    await asyncio.sleep(seconds)


async def clock_jump(blow: Blow) -> None:
    """A node's wall clock is an hour, or ten days, wrong: nobody may notice."""
    node = await blow.aim(choices.leader(blow.field))
    blow.hit()
    node.move_clock(blow.random.choice([-3600.0, 3600.0, 864_000.0]))
    look = blow.field.watch.latest
    row = look and next((one for one in look.nodes.values() if one.pid == node.pid), None)
    await asyncio.sleep(0.8)
    look = blow.field.watch.latest
    if row and look and row.id not in look.nodes:
        blow.accuse("clock", f"{node.tag} was declared dead when its clock jumped")


async def poison_event(blow: Blow) -> None:
    """A handler raises at the events of one stream; its shard rests, and goes on when that is cured."""
    name = blow.random.choice(sorted(SHARDS))
    stream = f"w1-{blow.random.randint(1, 3)}"
    look = blow.field.watch.latest
    blow.hit()
    set_poison(blow.field, f"{name} {stream} -")
    await asyncio.sleep(POISONED)
    later = blow.field.watch.latest
    set_poison(blow.field, "")
    if look and later:
        stuck = [
            shard
            for shard, (position, _) in later.shards.items()
            if position < look.head and not shard.startswith(SHARDS[name])
        ]
        if stuck:
            blow.accuse("I5", f"poison for {name} stopped {', '.join(stuck)}")


async def other_slices(blow: Blow) -> None:
    """Two projections are to be cut into another number of shards, as by a node with newer code."""
    parts = blow.random.choice([2, 3, 5, 6])
    blow.field.cut_into(parts)  # nodes that start from now on want the same
    blow.hit()
    await execute(
        blow.field.url,
        f"UPDATE strandline.slicings SET wanted = {parts}, wanted_at = clock_timestamp()"
        " WHERE label LIKE 'sliced%'",
    )
    cut = await blow.field.watch.until(
        lambda look: sum(name.startswith("sliced:") for name in look.shards) == parts,
        timeout=blow.fault.deadline,
    )
    if cut is None and await _is_wanted(blow, parts):
        look = blow.field.watch.latest
        there = sorted(one for one in look.shards if one.startswith("sliced")) if look else []
        blow.accuse("I5", f"not cut into {parts} in {blow.fault.deadline} s: {there}")


async def _is_wanted(blow: Blow, parts: int) -> bool:
    """Whether that is still wanted: a node that was just starting may have wanted another number."""
    sql = "SELECT wanted FROM strandline.slicings WHERE label LIKE 'sliced:%'"
    return bool(await fetchval(blow.field.url, sql) == parts)


ALL = (
    Fault("pool_exhausted", pool_exhausted, heals="after"),
    Fault("blocked_loop", blocked_loop),
    Fault("clock_jump", clock_jump),
    Fault("other_slices", other_slices, heals="after", reach="all", in_solo=False),
    Fault("poison_event", poison_event, heals="after", reach="all", alone=True),
)
