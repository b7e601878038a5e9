"""How entries of the node log are chosen, followed and shown."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from strandline.cli.command import Options

if TYPE_CHECKING:
    from rich.text import Text

    from strandline.cli.connect import Database
    from strandline.cluster.log import Entry

ENTRY_FIELDS = ("id", "at", "kind", "node", "name", "work", "epoch", "detail")
FIRST = ("work", "reason")  # facts that are told before the others, without their names
NAMED = 3  # names that are written out before the rest is counted
BACK = 200  # entries read again while following: one may show up after a later one
MOST = 10_000  # new entries at one look; the log has no more

BAD = ("node_dead", "leader_lost", "ownership_lost", "work_failed", "brake", "zombie_ended")
WORTH_A_LOOK = ("node_stalled", "work_avoided", "node_draining", "leader_requested", "work_paused")


async def log(
    options: Options,
    *,
    node: Annotated[
        str | None, typer.Option(metavar="NODE", help="Only of this node; a name: over restarts.")
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(help="Only this kind, or those that begin so (leader); may be repeated."),
    ] = None,
    work: Annotated[str | None, typer.Option(metavar="WORK", help="Only about this work.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Entries at the most, the newest.")] = 50,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new ones until Ctrl-C.")
    ] = False,
) -> None:
    """Show what happened to nodes, leaders, plans and owners.

    The newest last. With --follow, `--json` writes one object a line.
    """
    from strandline.cli import output
    from strandline.cli.connect import database
    from strandline.cli.streams import until_told
    from strandline.cluster.log import read

    async with database(options) as db:
        chosen = {"kinds": _kinds(kind), "work": work, **await _about(db, node)}
        found = list(reversed(await db.pool.run(read(limit, **chosen))))
        if not follow:
            _write_all(options, found)
            return
        for entry in found:
            _write_one(options, entry)
        async with until_told() as told:
            async for entry in _following(db, found, chosen, told):
                _write_one(options, entry)
                output.console().file.flush()


def entry_fields(entry: Entry) -> dict[str, Any]:
    """An entry as ``--json`` writes it."""
    from strandline.cli.output import fields_of, raw

    return fields_of(entry, ENTRY_FIELDS[:-1], detail=raw(entry.detail))


def write_entries(entries: list[Entry], *, named: bool = True) -> None:
    """Entries as a table; *named* with the node's name."""
    from strandline.cli import output

    output.table(
        ["time (UTC)", "what", *(["node"] if named else []), "details"],
        [
            (
                output.moment(one.at),
                output.styled(one.kind, _style(one.kind)),
                *([one.name] if named else []),
                told(one),
            )
            for one in entries
        ],
        gives="details",
    )


def told(entry: Entry) -> str:
    """The facts of an entry, in words."""
    parts = [entry.work] if entry.work else []
    parts += [f"epoch {entry.epoch}"] if entry.epoch is not None else []
    detail: Any = json.loads(entry.detail or "{}")
    if not isinstance(detail, Mapping):
        return "; ".join([*parts, str(detail)])
    if entry.kind == "shutdown":
        return "; ".join([*parts, *_shutdown(detail)])
    facts = [one for one in detail if detail[one] not in ("", None)]
    facts.sort(key=lambda one: FIRST.index(one) if one in FIRST else len(FIRST))
    parts += [_fact(one, detail[one]) for one in facts if not (one == "work" and entry.work)]
    return "; ".join(parts)


def _fact(name: str, value: Any) -> str:
    if isinstance(value, list | Mapping) and not value:
        return f"{_spaced(name)}: none"
    if isinstance(value, Mapping) and name != "work":
        inner = [_pair(key, one) for key, one in value.items()]
        return f"{_spaced(name)}: {_brief(inner)}"
    if name == "work" or isinstance(value, list | Mapping):
        names = _brief(list(value) if isinstance(value, list | Mapping) else [value])
        return names if name == "work" else f"{_spaced(name)}: {names}"
    if name == "reason":
        return str(value)
    if value is True:
        return _spaced(name)
    shown = f"{round(value, 2):g}" if isinstance(value, float) else str(value)
    return f"{_spaced(name)} {shown}"


def _pair(key: str, value: Any) -> str:
    if isinstance(value, list):
        return f"{key} ({_brief(value)})"
    return f"{key} → {'nobody' if value is None else value}"


def _brief(value: list[Any]) -> str:
    rest = len(value) - NAMED
    shown = ", ".join(str(one) for one in value[:NAMED])
    return shown + (f" and {rest} more" if rest > 0 else "")


def _shutdown(report: Mapping[str, Any]) -> list[str]:
    """A report in short: the result, and the steps that did not go well."""
    result, seconds = report.get("result", "ended"), float(report.get("seconds") or 0.0)
    steps = [one for one in report.get("steps") or [] if one.get("status") != "ok"]
    return [
        f"{report.get('reason') or 'stop'}: {result} in {seconds:.1f} s",
        *(f"{one.get('name')} {one.get('status')}" for one in steps),
    ]


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _style(kind: str) -> str:
    return "red" if kind in BAD else "yellow" if kind in WORTH_A_LOOK else ""


# ---- choosing


def _kinds(wanted: list[str] | None) -> list[str] | None:
    """The kinds meant: exactly, or by how they begin.

    Raises:
        InvalidInput: One means none.
    """
    from strandline.cluster.log import KINDS
    from strandline.errors import InvalidInput

    if not wanted:
        return None
    found = []
    for word in wanted:
        meant = [word] if word in KINDS else [one for one in KINDS if word and one.startswith(word)]
        if not meant:
            raise InvalidInput(f"there are no entries of kind {word!r}: {', '.join(KINDS)}")
        found += meant
    return found


async def _about(db: Database, word: str | None) -> dict[str, Any]:
    """What to ask the log for: a name over restarts, or one process start.

    The log may know nodes whose own rows are deleted already.
    """
    from strandline.cli.node_choice import chosen_node
    from strandline.errors import NotFound

    if word is None:
        return {}
    try:
        found = await chosen_node(db, word)
    except NotFound:
        try:
            return {"node": UUID(word)}
        except ValueError:
            return {"name": word}
    return {"name": found.name} if found.name.startswith(word) else {"node": found.id}


# ---- following


async def _following(
    db: Database, shown: list[Entry], chosen: dict[str, Any], ended: asyncio.Event
) -> AsyncIterator[Entry]:
    """Entries that come after *shown*, each once, until *ended*."""
    from strandline.cluster.log import read
    from strandline.postgres.listener import Listener

    changed = asyncio.Event()
    listener = Listener(db.settings.direct_url or db.url, db.settings)
    listener.on("cluster", lambda _: changed.set())
    listener.start()
    seen = {one.id for one in shown}
    newest = max(seen, default=0)
    first = min(seen, default=0)  # what is older was left out on purpose
    try:
        while not ended.is_set():
            changed.clear()
            after = max(first, newest - BACK)
            for entry in reversed(await db.pool.run(read(MOST, after=after, **chosen))):
                if entry.id not in seen:
                    seen.add(entry.id)
                    newest = max(newest, entry.id)
                    yield entry
            seen = {one for one in seen if one > newest - 2 * BACK}
            waits = [asyncio.ensure_future(one.wait()) for one in (changed, ended)]
            await asyncio.wait(
                waits,
                timeout=db.settings.poll_interval,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for wait in waits:
                wait.cancel()
    finally:
        await listener.stop()


# ---- writing


def _write_all(options: Options, entries: list[Entry]) -> None:
    from strandline.cli import output

    if options.json:
        output.write_json([entry_fields(one) for one in entries])
    elif entries:
        write_entries(entries)
    else:
        output.say(
            "the log has no such entry: nodes write it when they join, lead, claim and leave"
        )


def _write_one(options: Options, entry: Entry) -> None:
    from strandline.cli import output

    if options.json:
        output.write_json_line(entry_fields(entry))
        return
    console = output.console()
    console.print(_line(entry), soft_wrap=not console.is_terminal)


def _line(entry: Entry) -> Text:
    from rich.text import Text

    from strandline.cli import output

    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(output.moment(entry.at)[11:] + " ", style="dim")
    line.append(output.plain(entry.kind) + " ", style=_style(entry.kind) or "bold")
    line.append(output.plain(f"{entry.name} ") if entry.name else "", style="cyan")
    line.append(output.plain(told(entry)))
    return line
