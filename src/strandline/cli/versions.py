"""`strandline projections retire` and `rewind`: what is done to a version, or a subscription, as a whole."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from strandline.cli.command import Options, command, complain, confirm, group

commands = group("Listed under `strandline projections`.")


@command(commands, "retire", json=("label", "heir", "effects_after"))
async def retire(
    options: Options,
    *,
    label: Annotated[str, typer.Argument(help="The old version, e.g. orders:v1.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for others.")] = 30.0,
    force: Annotated[
        bool,
        typer.Option("--force", help="Also if side effects are left that nobody raises then."),
    ] = False,
) -> None:
    """Drop what an old version of a projection has written; nobody runs it any more.

    Nodes that still run it stop doing so. The version that the App has is never retired.
    """
    from strandline.app import versions
    from strandline.cli import output
    from strandline.cli.connect import database

    async with database(options) as db:
        if not yes:
            complain(f"{label} will be dropped: its tables, its shards, its dead letters.")
            confirm("Retire it?")
        done = await versions.retire(db.pool, db.requests, label, timeout=timeout, force=force)
    if options.json:
        output.write_json(
            [{"label": done.label, "heir": done.heir, "effects_after": done.effects_after}]
        )
        return
    output.say(f"{done.label} is retired")
    if done.heir:
        output.say(f"{done.heir} raises side effects beyond position {done.effects_after:,}")


@command(commands, "rewind", json=("subscription", "position", "shards", "letters"))
async def rewind(
    options: Options,
    *,
    subscription: Annotated[str, typer.Argument(help="The subscription's name.")],
    to: Annotated[
        str,
        typer.Option(
            metavar="PLACE",
            help="beginning, present, a position, or a time such as 2030-01-31T12:00:00+00:00.",
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for batches under way.")] = 60.0,
) -> None:
    """Send a subscription to another place of the log, while nodes run it or not.

    Everything beyond that place is handled (again). Of a time: everything recorded then or later; a time
    without a zone is in UTC.
    """
    from strandline.app import versions
    from strandline.cli import output
    from strandline.cli.connect import database, need_app

    place = _place(to)
    async with database(options) as db:
        registry = need_app(db.app).registry
        if not yes:
            complain(f"{subscription} will handle every event beyond {to} (again).")
            confirm("Rewind it?")
        done = await versions.rewind(
            db.pool, registry, db.settings, subscription, place, timeout=timeout
        )
    if options.json:
        facts = {"position": done.position, "shards": done.shards, "letters": done.letters}
        output.write_json([{"subscription": subscription, **facts}])
        return
    output.say(f"{subscription} goes on behind position {done.position:,}")
    if done.letters:
        output.say(f"{done.letters} open dead letters beyond it are superseded")


def _place(text: str) -> int | datetime | str:
    """What *text* means; what means nothing is refused later, in the same words as anywhere."""
    if text.isdecimal():
        return int(text)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return text
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
