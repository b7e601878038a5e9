"""`strandline nodes`: who is in the cluster, what happened there, and asking a node to go."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer

from strandline.cli import node_log
from strandline.cli.command import FAILED, Options, command, complain, confirm, group
from strandline.cli.node_choice import GONE, chosen_node, known_nodes, node_now

if TYPE_CHECKING:
    from strandline.cli.connect import Database
    from strandline.cluster.membership import NodeRow

commands = group("Nodes: who is there, who leads, draining, evicting.")

NODE_FIELDS = (
    *("number", "id", "name", "state", "is_leader", "mode", "labels", "capacity", "priority"),
    *("version", "host", "pid", "pulse", "age", "silent", "expires_in", "loop_lag", "progress"),
    *("work", "drain_reason", "left_reason"),
)
SHOWN_FIELDS = (*NODE_FIELDS, "report", "owns", "log")
ASKED_FIELDS = ("id", "name", "state", "work")
LAST = 10  # entries of the log that `show` shows
LOOK = 0.2  # seconds between looks whether a node has drained

STYLES = {
    "active": "green",
    "joining": "yellow",
    "stalled": "red",
    "draining": "yellow",
    "left": "dim",
    "dead": "red",
}

Node = Annotated[
    str, typer.Argument(metavar="NODE", help="Its name, number or id, or how one of them begins.")
]
Reason = Annotated[str, typer.Option(help="Why, for the log and for others.")]


@command(commands, "list", json=NODE_FIELDS)
async def list_nodes(
    options: Options,
    *,
    everyone: Annotated[
        bool, typer.Option("--all", help="Also those that have left or died.")
    ] = False,
) -> None:
    """List the nodes: state, work owned, last beat, who leads."""
    from strandline.cli import output
    from strandline.cli.connect import database

    async with database(options) as db:
        known = await known_nodes(db)
    found = [one for one in known if everyone or one.state not in GONE]
    if options.json:
        output.write_json([output.fields_of(one, NODE_FIELDS) for one in found])
        return
    if not found:
        output.say(_nobody(options, known))
        return
    output.table(
        [">no", "node", "state", ">work", ">silent", ">age", "notes"],
        [
            (
                str(one.number),
                one.name,
                output.styled(_state(one), STYLES.get(one.state, "")),
                output.number(one.work),
                output.short(one.silent) if one.state not in GONE else "",
                output.short(one.age),
                _notes(one),
            )
            for one in found
        ],
    )
    if not any(one.is_leader for one in found):
        output.say(_leaderless(found), style="yellow")


@command(commands, "show", json=SHOWN_FIELDS)
async def show(options: Options, *, node: Node) -> None:
    """Show one node: its work, its log, its shutdown report."""
    from strandline.cli import output
    from strandline.cli.connect import database
    from strandline.cluster import log, work_control

    async with database(options) as db:
        found = await chosen_node(db, node)
        owned = [
            one for one in await db.pool.run(work_control.list_work()) if one.owner == found.id
        ]
        entries = await db.pool.run(log.read(LAST, node=found.id))
    if options.json:
        more = {
            "report": output.raw(found.report),
            "owns": [{"work": one.name, "epoch": one.epoch} for one in owned],
            "log": [node_log.entry_fields(one) for one in entries],
        }
        output.write_json([output.fields_of(found, NODE_FIELDS, **more)])
        return
    _write_node(found)
    output.say()
    if owned:
        output.table(["owns", ">epoch"], [(one.name, output.number(one.epoch)) for one in owned])
    else:
        output.say("owns nothing")
    if found.report:
        import msgspec

        output.say()
        output.say("shutdown report", style="bold")
        for line in msgspec.json.format(found.report, indent=2).splitlines():
            output.say(output.plain(line))
    if entries:
        output.say()
        node_log.write_entries(list(reversed(entries)), named=False)


@command(commands, "drain", json=ASKED_FIELDS)
async def drain(
    options: Options,
    *,
    node: Node,
    reason: Reason = "asked for by `strandline nodes drain`",
    wait: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="SECONDS", help="Wait so long until it owns nothing, else exit code 1."
        ),
    ] = None,
) -> None:
    """Ask a node to give all its work away and to take none.

    It gives up leadership too, and stays, in state draining, until its process is stopped. It takes no
    work again: start another process for that.
    """
    from strandline.cli import output
    from strandline.cli.connect import database
    from strandline.cluster import membership
    from strandline.errors import NotFound

    async with database(options) as db:
        found = await chosen_node(db, node)
        channel = membership.channel(db.settings.schema)
        asked = await db.pool.run(membership.request_drain(found.id, reason, channel=channel))
        if asked is None:
            raise NotFound(f"node {found.name} is {_end(await node_now(db, found))}")
        done = await _drained(db, found, wait) if wait is not None else True
        found = await node_now(db, found)
    if options.json:
        output.write_json([output.fields_of(found, ASKED_FIELDS)])
    elif wait is None:
        output.say(f"node {output.plain(found.name)} was asked to drain")
    elif done:
        output.say(f"node {output.plain(found.name)} is {found.state} and owns nothing")
    if not done:
        complain(
            f"node {found.name} is {found.state} and still owns {found.work} after {wait:g} s:"
            f" see `strandline nodes show {found.number}`"
        )
        raise typer.Exit(FAILED)


@command(commands, "resign", json=("id", "name", "epoch"))
async def resign(
    options: Options, *, reason: Reason = "asked for by `strandline nodes resign`"
) -> None:
    """Ask the leader to let another node lead. It may be elected again later."""
    from strandline.cli import output
    from strandline.cli.connect import database
    from strandline.cluster import membership
    from strandline.errors import NotFound

    async with database(options) as db:
        channel = membership.channel(db.settings.schema)
        asked = await db.pool.run(membership.request_resign(reason, channel=channel))
    if asked is None:
        raise NotFound("nobody leads: there is nobody to ask")
    if options.json:
        output.write_json([{"id": asked.holder, "name": asked.name, "epoch": asked.epoch}])
    else:
        output.say(output.plain(f"node {asked.name} was asked to give up epoch {asked.epoch}"))


@command(commands, "evict", json=ASKED_FIELDS)
async def evict(
    options: Options,
    *,
    node: Node,
    reason: Reason = "evicted by `strandline nodes evict`",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Declare a node dead: its work goes to others at once.

    What it still writes is refused. A process that lives learns it with its next beat and joins again,
    unless its setting on_evicted says exit. To empty a node in good order, drain it.
    """
    from strandline.cli import output
    from strandline.cli.connect import database
    from strandline.cluster import membership
    from strandline.errors import NotFound

    async with database(options) as db:
        found = await chosen_node(db, node)
        if found.state in GONE:
            raise NotFound(f"node {found.name} is {_end(found)}: there is nothing to evict")
        if not yes:
            complain(output.plain(f"node {found.name} ({found.id}): {_evidence(found)}"))
            confirm("Declare it dead?")
        channel = membership.channel(db.settings.schema)
        if await db.pool.run(membership.evict(found.id, reason, channel=channel)) is None:
            raise NotFound(f"node {found.name} is {_end(await node_now(db, found))}")
        found = await node_now(db, found)
    if options.json:
        output.write_json([output.fields_of(found, ASKED_FIELDS)])
    else:
        output.say(f"node {output.plain(found.name)} is dead; its work goes to others")


command(commands, "log", json=node_log.ENTRY_FIELDS)(node_log.log)


# ---- waiting


async def _drained(db: Database, node: NodeRow, seconds: float) -> bool:
    """Wait until *node* has given all its work away, at most *seconds*."""
    from strandline.cli import output

    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    with output.progress(f"draining {output.plain(node.name)}", node.work) as bar:
        while True:
            now = await node_now(db, node)
            bar.at(max(0, node.work - now.work))
            # An active node without work has not seen the request: it may still be given some.
            if now.state in GONE or (now.state in ("draining", "stalled") and not now.work):
                return True
            if loop.time() >= until:
                return False
            await asyncio.sleep(min(LOOK, max(0.0, until - loop.time())))


# ---- how a node looks


def _state(node: NodeRow) -> str:
    late = node.expires_in < 0 and node.state not in GONE
    return node.state + (", leads" if node.is_leader else "") + (", silent" if late else "")


def _end(node: NodeRow) -> str:
    return f"{node.state}{f' ({node.left_reason})' if node.left_reason else ''}"


def _notes(node: NodeRow) -> str:
    notes = [node.left_reason] if node.state in GONE else []
    if node.state not in GONE:
        notes += [f"drain: {node.drain_reason}"] if node.drain_reason is not None else []
        notes += [f"event loop {node.loop_lag:.1f} s late"] if node.loop_lag >= 1 else []
        notes += ["follower"] if node.mode == "follower" else []
        notes += ["never leads"] if node.mode != "follower" and node.priority < 0 else []
        notes += [f"capacity {node.capacity:g}"] if node.capacity != 1 else []
    return "; ".join(one for one in notes if one)


def _evidence(node: NodeRow) -> str:
    leads = ", leads" if node.is_leader else ""
    return f"{node.state}{leads}, owns {node.work}, last beat {node.silent:.1f} s ago"


def _nobody(options: Options, known: list[NodeRow]) -> str:
    start = f"`strandline node {options.app or 'module:app'}` starts one"
    if known:
        return f"no node is here; {len(known)} left or died (--all shows them); {start}"
    return f"no node has joined; {start}"


def _leaderless(nodes: list[NodeRow]) -> str:
    active = [one for one in nodes if one.state == "active"]
    if any(one.mode == "cluster" and one.priority >= 0 for one in active):
        return "nobody leads at this moment: work stays where it is"
    return "nobody leads, and no active node may: work stays where it is"


def _write_node(node: NodeRow) -> None:
    from strandline.cli import output

    output.say(output.plain(f"{node.name} ({_state(node)})"), style="bold")
    lines: list[tuple[str, Any]] = [
        ("id", f"{node.id}, number {node.number}"),
        ("process", f"{node.pid} on {node.host}, strandline {node.version}"),
        ("mode", f"{node.mode}, leader priority {node.priority}, capacity {node.capacity:g}"),
        ("labels", ", ".join(node.labels) or "none"),
    ]
    if node.state in GONE:
        lines += [("ran", output.duration(node.age)), (node.state, node.left_reason)]
    else:
        beat = f"{output.duration(node.silent)} ago, by its {node.pulse}"
        ends = output.duration(node.expires_in) if node.expires_in > 0 else "overdue"
        lines += [
            ("started", f"{output.duration(node.age)} ago"),
            ("last beat", f"{beat}; counts as dead in {ends}"),
            ("event loop", f"{node.loop_lag:.1f} s late"),
        ]
    if node.drain_reason is not None:
        lines.append(("drain", node.drain_reason or "asked for"))
    for label, text in lines:
        output.say(output.plain(f"{label:<11}{text}"))
