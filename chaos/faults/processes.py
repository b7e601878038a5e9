"""Faults of processes: killed, frozen, told to go, many coming at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

from chaos import choices
from chaos.blow import Blow, Fault, NoTarget
from chaos.field import GONE_SLACK, START, Field, Node, set_poison
from chaos.settings import SETTINGS

TTL = SETTINGS["node_ttl"]
ZOMBIE = 1.6 * TTL  # seconds a frozen owner sleeps: long enough to be declared dead


async def kill_leader(blow: Blow) -> None:
    """kill -9 for who leads."""
    await _kill(blow, await blow.aim(choices.leader(blow.field)))


async def kill_follower(blow: Blow) -> None:
    """kill -9 for somebody else."""
    await _kill(blow, await blow.aim(choices.follower(blow.field, blow.random)))


async def kill_side_process(blow: Blow) -> None:
    """kill -9 for what beats for a node."""
    node = await blow.aim(choices.with_side_process(blow.field, blow.random))
    blow.hit()
    node.process.kill_side_process()


async def freeze_owner(blow: Blow) -> None:
    """SIGSTOP for longer than it may be silent, then SIGCONT: a zombie. Its side process lives."""
    await _freeze(blow, with_side_process=False)


async def freeze_host(blow: Blow) -> None:
    """The same for its side process too, as when a virtual machine is paused."""
    await _freeze(blow, with_side_process=True)


async def freeze_in_transaction(blow: Blow) -> None:
    """SIGSTOP while a batch's transaction is open and holds the checkpoint's row."""
    node = await blow.aim(choices.owner_of(blow.field, "journal:all"))
    blow.field.order(node, "stop_in_transaction")
    await _stopped(node)
    blow.hit()
    await asyncio.sleep(2 * TTL)
    _thaw(node)


async def freeze_in_batch(blow: Blow) -> None:
    """SIGSTOP in the middle of a batch; its successor cannot get on; then it wakes up and commits.

    The checkpoint is still where the batch begins, so that the epoch alone tells the two apart.
    """
    name = blow.random.choice(["branches", "ledger"])  # those that pause
    shard = f"{name}:v1:all"
    node = await blow.aim(choices.owner_of(blow.field, shard))
    blow.field.order(node, "stop_in_batch", projection=name)
    await _stopped(node)
    blow.hit()
    set_poison(blow.field, f"{name} * {node.tag}")
    before = blow.field.watch.latest
    assert before is not None
    owner = before.shards[shard][1]
    await blow.field.watch.until(
        lambda look: look.shards[shard][1] not in (owner, None), timeout=blow.fault.deadline
    )
    _thaw(node)
    await asyncio.sleep(TTL / 2)
    set_poison(blow.field, "")


async def graceful_leave(blow: Blow) -> None:
    """SIGTERM."""
    await _leave(blow, [await blow.aim(choices.owner(blow.field, blow.random))])


async def leaving_storm(blow: Blow) -> None:
    """SIGTERM to all but two at once."""
    look = blow.field.watch.latest
    staying = 2
    found = choices.free(blow.field, look) if look else []
    blow.random.shuffle(found)
    if len(found) <= staying:
        raise NoTarget
    for node in found[staying:]:
        node.is_busy = True
        blow.targets.append(node)
    await _leave(blow, list(blow.targets))


async def join_many(blow: Blow) -> None:
    """Many nodes start at once."""
    count = 20 if blow.size == "long" else 8
    blow.hit()
    nodes = [await blow.field.start_node() for _ in range(count)]
    blow.targets += nodes
    joined = await blow.field.watch.until(
        lambda look: (
            {one.pid for one in nodes if one.process.is_running}
            <= {row.pid for row in look.nodes.values() if row.state == "active"}
        ),
        timeout=START,
    )
    if joined is None:
        blow.accuse("I5", f"of {count} nodes that joined at once not all are active in {START} s")
    blow.facts["joined"] = count


async def kill(node: Node, field: Field) -> None:
    """kill -9 for *node*; another one is started soon."""
    node.process.kill()
    node.is_leaving = True
    await node.process.gone(timeout=5.0)
    field.background(field.fill_up())


async def _kill(blow: Blow, node: Node) -> None:
    blow.hit()
    await kill(node, blow.field)


async def _freeze(blow: Blow, *, with_side_process: bool) -> None:
    node = await blow.aim(choices.owner(blow.field, blow.random))
    blow.hit()
    node.is_frozen = True
    node.process.freeze(with_side_process=with_side_process)
    await asyncio.sleep(ZOMBIE)
    _thaw(node)


async def _stopped(node: Node) -> None:
    """Wait until it has stopped itself, as it was ordered.

    Raises:
        NoTarget: It has nothing to do.
    """
    for _ in range(300):
        if _is_stopped(node.pid):
            node.is_frozen = True
            return
        await asyncio.sleep(0.01)
    raise NoTarget


def _thaw(node: Node) -> None:
    node.is_frozen = False
    node.process.thaw()


async def _leave(blow: Blow, nodes: list[Node]) -> None:
    blow.hit()
    going = [blow.field.stop_node(one) for one in nodes]
    await asyncio.wait(going)
    for node, one in zip(nodes, going, strict=True):
        if one.result() is None:
            limit = SETTINGS["stop_hard"] + GONE_SLACK
            blow.accuse("I6", f"{node.tag} was told to stop, and is there after {limit} s")
            node.process.kill()
        else:
            blow.facts.setdefault("gone_s", []).append(one.result())
            blow.facts.setdefault("exit_codes", []).append(node.process.code)
    await blow.field.fill_up()


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


ALL = (
    Fault("kill_leader", kill_leader, in_solo=False),
    Fault("kill_follower", kill_follower, in_solo=False),
    Fault("kill_side_process", kill_side_process, in_solo=False),
    Fault("freeze_owner", freeze_owner, in_solo=False),
    Fault("freeze_host", freeze_host, in_solo=False),
    Fault("freeze_in_transaction", freeze_in_transaction, in_solo=False),
    Fault("freeze_in_batch", freeze_in_batch, heals="after", in_solo=False, alone=True),
    Fault("graceful_leave", graceful_leave, in_solo=False),
    Fault("leaving_storm", leaving_storm, deadline=20.0, reach="all", in_solo=False),
    Fault("join_many", join_many, heals="after", deadline=20.0, reach="all", in_solo=False),
)
