"""`strandline queues`: what waits in them, their limits and pauses."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from strandline.cli.command import Options, command, complain, confirm, group

if TYPE_CHECKING:
    from strandline.app.queue_desk import QueueDesk
    from strandline.jobs.queues import QueueSettings, QueueState

commands = group("Queues: what waits in them, limits, pauses.")

SETTINGS_FIELDS = (
    *("name", "state", "concurrency", "at_most", "per_key", "rate", "rate_seconds"),
    *("paused_at", "paused_reason", "set_by"),
)
FIELDS = (*SETTINGS_FIELDS, "available", "scheduled", "running", "oldest")
CHANGED_FIELDS = ("name", "changed")

Name = Annotated[str, typer.Argument(metavar="QUEUE", help="Its name.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@command(commands, "list", json=FIELDS)
async def list_queues(options: Options) -> None:
    """List queues that have settings or jobs. Counts of what waits stop at 10,000."""
    from strandline.cli import output

    async with _desk(options) as queues:
        found = await queues.list()
    if options.json:
        output.write_json([_fields(one, FIELDS) for one in found])
        return
    if not found:
        output.say("no queue has settings or jobs")
        return
    output.table(
        ["queue", "state", ">available", ">oldest", ">scheduled", ">running", "limits", "notes"],
        [
            (
                one.name,
                output.styled(state_of(one), "yellow" if one.is_paused else "green"),
                _counted(one.available),
                output.short(one.oldest),
                _counted(one.scheduled),
                output.number(one.running),
                limits_of(one),
                one.paused_reason,
            )
            for one in found
        ],
    )


@command(commands, "pause", json=CHANGED_FIELDS)
async def pause(
    options: Options,
    *,
    name: Name,
    reason: Annotated[str, typer.Option(help="Why, for the others.")],
) -> None:
    """Let nothing of a queue be fetched until it is resumed. What runs goes on."""
    async with _desk(options) as queues:
        await queues.pause(name, reason)
    _tell(options, name, done=True, what="is paused; `strandline queues resume` ends that")


@command(commands, "resume", json=CHANGED_FIELDS)
async def resume(options: Options, *, name: Name) -> None:
    """Let a paused queue be fetched again."""
    async with _desk(options) as queues:
        done = await queues.resume(name)
    _tell(options, name, done=done, what="is no longer paused", otherwise="was not paused")


@command(commands, "set", json=SETTINGS_FIELDS)
async def set_limits(
    options: Options,
    *,
    name: Name,
    concurrency: Annotated[
        int | None, typer.Option(help="Jobs at once on each node; 0: as the node says.")
    ] = None,
    at_most: Annotated[
        int | None, typer.Option(help="Jobs at once on all nodes; 0: no limit.")
    ] = None,
    per_key: Annotated[
        int | None, typer.Option(help="Jobs at once of one key, on all nodes; 0: no limit.")
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(metavar="JOBS/SECONDS", help="So many may begin in so long; 0: no limit."),
    ] = None,
) -> None:
    """Set limits of a queue; those that are not named stay.

    What is set here is not changed by code any more, until `strandline queues forget`.
    """
    from strandline.cli import output

    given: dict[str, Any] = {
        what: value or None
        for what, value in (
            ("concurrency", concurrency),
            ("at_most", at_most),
            ("per_key", per_key),
        )
        if value is not None
    }
    if rate is not None:
        given["rate"] = _rate(rate)
    async with _desk(options) as queues:
        found = await queues.set(name, **given)
    if options.json:
        output.write_json(_fields(found, SETTINGS_FIELDS))
    else:
        output.say(output.plain(f"{name}: {limits_of(found) or 'no limits'}"))


@command(commands, "forget", json=CHANGED_FIELDS)
async def forget(options: Options, *, name: Name, yes: Yes = False) -> None:
    """Forget the settings and the pause of a queue. Its jobs stay.

    What code declares comes back when a node starts.
    """
    if not yes:
        complain(f"limits and pause of {name} will be gone; its jobs stay.")
        confirm("Forget them?")
    async with _desk(options) as queues:
        done = await queues.forget(name)
    _tell(options, name, done=done, what="has no settings any more", otherwise="had no settings")


@asynccontextmanager
async def _desk(options: Options) -> AsyncIterator[QueueDesk]:
    from strandline.app.queue_desk import QueueDesk
    from strandline.cli.connect import database

    async with database(options) as db:
        yield QueueDesk(db.pool, db.settings.schema)


def state_of(queue: QueueSettings) -> str:
    """One word: open or paused."""
    return "paused" if queue.is_paused else "open"


def limits_of(queue: QueueSettings) -> str:
    """Its limits in words."""
    parts = [f"{queue.concurrency} a node"] if queue.concurrency else []
    parts += [f"{queue.at_most} in all"] if queue.at_most else []
    parts += [f"{queue.per_key} a key"] if queue.per_key else []
    parts += [f"{queue.rate} in {queue.rate_seconds:g} s"] if queue.rate else []
    return ", ".join(parts)


def _rate(text: str) -> tuple[int, float] | None:
    from strandline.errors import InvalidInput

    if text.strip() == "0":
        return None
    found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+(?:\.\d+)?)\s*", text)
    if found is None:
        raise InvalidInput(f"--rate is JOBS/SECONDS, such as 100/60, or 0: {text!r}")
    return int(found[1]), float(found[2])


def _counted(count: int) -> str:
    from strandline.cli import output
    from strandline.jobs.queues import COUNTED

    return f"{output.number(count)}{'+' if count >= COUNTED else ''}"


def _fields(queue: QueueSettings | QueueState, names: tuple[str, ...]) -> dict[str, Any]:
    more = {"state": state_of(queue)}
    return {name: more[name] if name in more else getattr(queue, name) for name in names}


def _tell(options: Options, name: str, *, done: bool, what: str, otherwise: str = "") -> None:
    from strandline.cli import output

    if options.json:
        output.write_json({"name": name, "changed": done})
    else:
        output.say(output.plain(f"{name} {what if done else otherwise}"))
