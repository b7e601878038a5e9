"""Faults of connections: ended, cut, held up, swallowed."""

from __future__ import annotations

import asyncio
import time

from chaos import choices
from chaos.blow import Blow, Fault, NoTarget
from chaos.field import Node
from chaos.settings import SETTINGS

TTL = SETTINGS["node_ttl"]


async def terminate_pulse(blow: Blow) -> None:
    """pg_terminate_backend for the session that renews the leader's lease."""
    await _terminate(blow, await blow.aim(choices.leader(blow.field)), "pulse")


async def terminate_listen(blow: Blow) -> None:
    """pg_terminate_backend for a session that listens."""
    await _terminate(blow, await blow.aim(choices.owner(blow.field, blow.random)), "listen")


async def terminate_work(blow: Blow) -> None:
    """pg_terminate_backend for all sessions that apply batches on a node."""
    await _terminate(blow, await blow.aim(choices.owner(blow.field, blow.random)), "work")


async def cut(blow: Blow) -> None:
    """Every connection of a node breaks."""
    node = await blow.aim(choices.owner(blow.field, blow.random))
    blow.hit()
    await blow.field.relay.order("cut", node.tag)


async def lost_answer(blow: Blow) -> None:
    """A commit takes effect, and its answer never comes."""
    node = await blow.aim(choices.owner(blow.field, blow.random))
    blow.hit()
    await blow.field.relay.order("swallow_answer_to", node.tag, words="COMMIT")


async def delay(blow: Blow) -> None:
    """Everything to and from a node takes a fifth of a second longer, each way."""
    node = await blow.aim(choices.owner(blow.field, blow.random))
    blow.hit()
    await blow.field.relay.order("delay", node.tag, seconds=blow.random.uniform(0.05, 0.2))
    await asyncio.sleep(1.5)
    await blow.field.relay.order("forward", node.tag)


async def black_hole(blow: Blow) -> None:
    """What a node sends is acknowledged and goes nowhere, for longer than it may be silent."""
    await _pause(blow, "black_hole", 1.8 * TTL)


async def one_way(blow: Blow) -> None:
    """A node's requests arrive, and the answers do not."""
    await _pause(blow, "hold", 1.8 * TTL, way="answers")


async def outage(blow: Blow) -> None:
    """For everybody nothing goes through, for longer than a lease: nobody may be evicted for it."""
    look = blow.field.watch.latest
    blow.hit()
    await blow.field.relay.order("black_hole", "*")
    await asyncio.sleep(blow.random.uniform(1.0, 1.8) * TTL)
    await blow.field.relay.order("forward", "*")
    if look is not None:
        blow.facts["nodes_before"] = len(look.nodes)


async def _pause(blow: Blow, how: str, seconds: float, **facts: str) -> None:
    node: Node = await blow.aim(choices.owner(blow.field, blow.random))
    blow.hit()
    node.is_frozen = True  # whatever its row says, what it owns does not run
    await blow.field.relay.order(how, node.tag, **facts)
    await asyncio.sleep(seconds)
    node.is_frozen = False
    await blow.field.relay.order("forward", node.tag)


async def _terminate(blow: Blow, node: Node, application: str) -> None:
    began = time.monotonic()
    if not await blow.field.end_backends(node, application):
        raise NoTarget
    blow.hit(earlier=time.monotonic() - began)


ALL = (
    Fault("terminate_pulse", terminate_pulse),
    Fault("terminate_listen", terminate_listen),
    Fault("terminate_work", terminate_work),
    Fault("cut", cut),
    Fault("lost_answer", lost_answer),
    Fault("delay", delay),
    Fault("black_hole", black_hole),
    Fault("one_way", one_way),
    Fault("outage", outage, heals="after", reach="all"),
)
