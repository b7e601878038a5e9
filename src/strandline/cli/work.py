"""`strandline work`: what should run and what does, where; pins and pauses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from strandline.cli.command import Options, command, complain, confirm, group
from strandline.cli.node_choice import GONE, chosen_node, chosen_work, known_nodes

if TYPE_CHECKING:
    from strandline.cli.connect import Database
    from strandline.cluster.membership import NodeRow
    from strandline.cluster.work_control import WorkRow
    from strandline.postgres.operations import Op

commands = group("Work: which shards run where, pinned, paused or unplaced.")

WORK_FIELDS = (
    *("name", "state", "owner", "owner_name", "target", "epoch", "owned", "pinned_to", "paused_at"),
    *("reason", "unplaced", "needs", "together", "apart", "weight", "failures", "avoid"),
)
CHANGED_FIELDS = ("name",)

STYLES = {"running": "green", "paused": "yellow", "moving": "yellow", "unplaced": "red"}

Word = Annotated[
    str,
    typer.Argument(
        metavar="WORK", help="Its name or how it begins; with * all that match, e.g. 'orders:v2:*'."
    ),
]


@command(commands, "list", json=WORK_FIELDS)
async def list_work(
    options: Options,
    *,
    unplaced: Annotated[
        bool, typer.Option("--unplaced", help="Only what runs nowhere and should.")
    ] = False,
    node: Annotated[
        str | None, typer.Option(metavar="NODE", help="Only what this node owns.")
    ] = None,
) -> None:
    """List all work: its state, where it runs, and why not.

    Running; moving, from an owner to another; paused; or unplaced, which no node can run.
    """
    from strandline.cli import output
    from strandline.cli.connect import database
    from strandline.cluster import work_control

    async with database(options) as db:
        found = await db.pool.run(work_control.list_work())
        nodes = await known_nodes(db)
        owner = await chosen_node(db, node) if node is not None else None
    shown = [
        one
        for one in found
        if (not unplaced or state_of(one) == "unplaced")
        and (owner is None or one.owner == owner.id)
    ]
    if options.json:
        output.write_json([_fields(one, nodes) for one in shown])
        return
    if not shown:
        output.say(_nothing(options, found, unplaced=unplaced, owner=owner))
        return
    output.table(
        ["work", "state", "node", ">epoch", "notes"],
        [
            (
                one.name,
                output.styled(state_of(one), STYLES[state_of(one)]),
                one.owner_name,
                output.number(one.epoch),
                _notes(one, nodes),
            )
            for one in shown
        ],
    )


@command(commands, "pin", json=CHANGED_FIELDS)
async def pin(
    options: Options,
    *,
    work: Word,
    node: Annotated[
        str, typer.Argument(metavar="NODE", help="Name of the node; how it begins is enough.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Let work run only on nodes of one name, over restarts.

    Nowhere while there is none: a name that no node has now is asked about first.
    """
    from strandline.cli import output
    from strandline.cluster import work_control

    async with _meant(options, work) as (db, names):
        name = await _name_for_pin(db, node, yes=yes)
        channel = _channel(db)
        done = await _each(db, names, lambda one: work_control.pin(one, name, channel=channel))
    _tell(options, done, output.plain(f"is pinned to {name}"))


@command(commands, "unpin", json=CHANGED_FIELDS)
async def unpin(options: Options, *, work: Word) -> None:
    """Let work run on any node again."""
    from strandline.cluster import work_control

    async with _meant(options, work) as (db, names):
        channel = _channel(db)
        done = await _each(db, names, lambda one: work_control.unpin(one, channel=channel))
    _tell(options, done, "may run on any node")


@command(commands, "pause", json=CHANGED_FIELDS)
async def pause(
    options: Options,
    *,
    work: Word,
    reason: Annotated[str, typer.Option(help="Why, for the others.")],
) -> None:
    """Let work rest until it is resumed; it keeps its checkpoint."""
    from strandline.cluster import work_control

    async with _meant(options, work) as (db, names):
        done = await db.pool.run(work_control.pause(names, reason, channel=_channel(db)))
    _tell(options, done, "is paused; `strandline work resume` lets it run again")


@command(commands, "resume", json=CHANGED_FIELDS)
async def resume(options: Options, *, work: Word) -> None:
    """Let paused work run again."""
    from strandline.cluster import work_control

    async with _meant(options, work) as (db, names):
        done = await db.pool.run(work_control.resume(names, channel=_channel(db)))
    _tell(options, done, "is no longer paused", otherwise="nothing of that was paused")


@command(commands, "forget", json=CHANGED_FIELDS)
async def forget(
    options: Options,
    *,
    work: Word,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete work that no code offers any more, such as an old version's.

    Its pin and pause go too; checkpoints and documents stay. Work that a node owns is left alone
    (exit code 5). What some node's code still has comes back when that node starts.
    """
    from strandline.cluster import work_control
    from strandline.errors import ConflictError

    async with _meant(options, work) as (db, names):
        if not yes:
            complain(f"{len(names)} to be forgotten: {', '.join(names)}")
            confirm("Forget it?")
        done, owned = [], []
        for one in names:
            found = await db.pool.run(work_control.forget(one, channel=_channel(db)))
            if found is not None and found.is_forgotten:
                done.append(one)
            elif found is not None:
                owned.append(f"{one} is owned by {found.owner_name}")
    if done or not owned:
        _tell(options, done, "is forgotten", otherwise="nothing of that is there any more")
    if owned:
        raise ConflictError(f"{'; '.join(owned)}: pause it, or stop that node, first")


# ---- what is meant, and what was done


@asynccontextmanager
async def _meant(options: Options, word: str) -> AsyncIterator[tuple[Database, list[str]]]:
    """The database, and the names that *word* means there."""
    from strandline.cli.connect import database
    from strandline.cluster import work_control

    async with database(options) as db:
        names = [one.name for one in await db.pool.run(work_control.list_work())]
        yield db, chosen_work(names, word)


async def _name_for_pin(db: Database, word: str, *, yes: bool) -> str:
    """The name that work is pinned to.

    Raises:
        Abort: No node has it, and it is not meant for later.
    """
    from strandline.errors import NotFound

    try:
        found = await chosen_node(db, word)
    except NotFound:
        gone = True
    else:
        word, gone = found.name, found.state in GONE
    if gone and not yes:
        complain(f"no node named {word} is here: the work runs nowhere until one joins")
        confirm(f"Pin it to {word}?")
    return word


async def _each(db: Database, names: list[str], op: Callable[[str], Op[bool]]) -> list[str]:
    return [one for one in names if await db.pool.run(op(one))]


def _channel(db: Database) -> str:
    from strandline.cluster import membership

    return membership.channel(db.settings.schema)


def _tell(
    options: Options, names: list[str], what: str, *, otherwise: str = "that is gone"
) -> None:
    from strandline.cli import output

    if options.json:
        output.write_json([{"name": one} for one in names])
        return
    for one in names:
        output.say(f"{output.plain(one)} {what}")
    if not names:
        output.say(otherwise)


# ---- how work looks


def state_of(work: WorkRow) -> str:
    """One word: running, moving, paused or unplaced.

    *Moving* is owned by one and meant for another or nobody; or meant for one and not yet claimed.
    """
    owned = work.owner is not None and work.owner_state not in GONE
    if work.paused_at is not None:
        return "moving" if owned else "paused"
    if work.target is None and not owned:
        return "unplaced"
    return "running" if owned and work.target == work.owner_name else "moving"


def why_unplaced(work: WorkRow, nodes: list[NodeRow]) -> str:
    """Why it runs nowhere: what the leader said, or why no leader has said anything."""
    if work.unplaced:
        return work.unplaced
    here = [one for one in nodes if one.state not in GONE]
    if not here:
        return "no node has joined"
    if not any(one.is_leader for one in here):
        return "nobody leads at this moment"
    return "the leader has not placed it yet"


def _notes(work: WorkRow, nodes: list[NodeRow]) -> str:
    notes = []
    if work.paused_at is not None:
        notes.append(f"paused: {work.reason}" if work.reason else "paused")
    elif state_of(work) == "unplaced":
        notes.append(why_unplaced(work, nodes))
    elif state_of(work) == "moving":
        gone = work.owner is not None and work.owner_state in GONE
        notes += [f"{work.owner_name} is {work.owner_state}"] if gone else []
        notes += [f"to {work.target}"] if work.target else ["to be given up"]
    notes += [f"pinned to {work.pinned_to}"] if work.pinned_to is not None else []
    notes += [f"failed {work.failures} times"] if work.failures else []
    notes += [f"avoids {work.avoid}"] if work.avoid else []
    return "; ".join(notes)


def _fields(work: WorkRow, nodes: list[NodeRow]) -> dict[str, Any]:
    state = state_of(work)
    more = {
        "state": state,
        "unplaced": why_unplaced(work, nodes) if state == "unplaced" else None,
        "avoid": [one for one in work.avoid.split(", ") if one],
    }
    return {name: more[name] if name in more else getattr(work, name) for name in WORK_FIELDS}


def _nothing(
    options: Options, known: list[WorkRow], *, unplaced: bool, owner: NodeRow | None
) -> str:
    if owner is not None:
        return f"node {owner.name} owns nothing"
    if unplaced and known:
        return f"all {len(known)} are placed or paused"
    start = f"`strandline node {options.app or 'module:app'}` starts one"
    return f"there is no work: a node declares it when it joins; {start}"
