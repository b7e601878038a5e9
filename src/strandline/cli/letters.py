"""`strandline letters`: events that could not be processed, and what becomes of them."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from strandline.cli.command import Options, command, complain, confirm, group

if TYPE_CHECKING:
    from strandline.app.letters import Letters
    from strandline.daemon.letter_desk import DeadLetter

commands = group("Dead letters: events that could not be processed.")

FIELDS = (
    *("id", "label", "shard", "tenant", "key", "position", "stream", "version", "type", "status"),
    *("category", "error", "fingerprint", "attempts", "data", "reason", "retry_at"),
    *("created_at", "failed_at", "closed_at"),
)
GROUP_FIELDS = (
    *("label", "fingerprint", "category", "error_class", "message", "type", "count"),
    *("first_at", "last_at", "example"),
)
CHANGED_FIELDS = ("changed",)
_STYLES = {"parked": "red", "skipped": "yellow", "resolved": "green"}

Ids = Annotated[
    list[int] | None, typer.Argument(metavar="[ID]...", help="Of letters, as `list` shows them.")
]
ProjectionOption = Annotated[
    str | None,
    typer.Option(
        "--projection",
        metavar="NAME",
        help="Of this projection or subscription: its name, for all versions, or name:vN.",
    ),
]
StreamOption = Annotated[str | None, typer.Option("--stream", help="Of events of this stream.")]
FingerprintOption = Annotated[
    str | None, typer.Option("--fingerprint", help="That failed like this.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


class Status(StrEnum):
    """What became of a letter."""

    PARKED = "parked"
    SKIPPED = "skipped"
    RESOLVED = "resolved"
    DISCARDED = "discarded"
    SUPERSEDED = "superseded"


@command(commands, "list", json=FIELDS)
async def list_letters(
    options: Options,
    *,
    projection: ProjectionOption = None,
    status: Annotated[
        list[Status] | None,
        typer.Option(help="Repeat it for several; parked and skipped if none is given."),
    ] = None,
    stream: StreamOption = None,
    fingerprint: FingerprintOption = None,
    after: Annotated[int, typer.Option(min=0, help="Letters with ids after this one.")] = 0,
    limit: Annotated[int, typer.Option(min=1, help="Letters at the most.")] = 50,
) -> None:
    """List letters by id. One without a class of error waits behind another of its key."""
    from strandline.cli import output
    from strandline.daemon.letter_desk import OPEN

    async with _desk(options) as letters:
        found = await letters.list(
            projection,
            status=[one.value for one in status] if status else OPEN,
            stream=stream,
            fingerprint=fingerprint,
            after=after,
            limit=limit,
        )
    if options.json:
        output.write_json([_fields(one) for one in found])
        return
    if not found:
        output.say("there are no such letters")
        return
    output.table(
        [">id", "projection", "status", "key", ">position", "type", ">tries", "error"],
        [
            (
                str(one.id),
                one.label,
                output.styled(one.status, _STYLES.get(one.status, "dim")),
                one.key,
                str(one.position),
                one.type,
                output.number(one.attempts),
                _error(one).get("message", "waits"),
            )
            for one in found
        ],
        cut=True,
    )
    if len(found) == limit:
        output.say(f"more with --after {found[-1].id}", style="dim")


@command(commands, "groups", json=GROUP_FIELDS)
async def groups(options: Options, *, projection: ProjectionOption = None) -> None:
    """Count open letters by what they failed of, the most frequent first."""
    from strandline.cli import output

    async with _desk(options) as letters:
        found = await letters.groups(projection)
    if options.json:
        output.write_json([output.fields_of(one, GROUP_FIELDS) for one in found])
        return
    output.table(
        ["fingerprint", "projection", "type", ">letters", "last (UTC)", "error"],
        [
            (
                one.fingerprint,
                one.label,
                one.type,
                output.number(one.count),
                output.moment(one.last_at),
                one.message,
            )
            for one in found
        ],
    )
    if not found:
        output.say("no event has failed")


@command(commands, "show", json=FIELDS)
async def show(
    options: Options, *, number: Annotated[int, typer.Argument(metavar="ID", help="Of the letter.")]
) -> None:
    """Show all of one letter."""
    from strandline.cli import output

    async with _desk(options) as letters:
        found = await letters.get(number)
    if options.json:
        output.write_json(_fields(found))
        return
    told = {name: value for name, value in _fields(found).items() if name not in ("error", "data")}
    for name, value in (told | _error(found) | {"data": found.data}).items():
        if value not in (None, ""):
            output.say(output.plain(f"{name}: {value}"))


@command(commands, "retry", json=CHANGED_FIELDS)
async def retry(
    options: Options,
    *,
    ids: Ids = None,
    projection: ProjectionOption = None,
    stream: StreamOption = None,
    fingerprint: FingerprintOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Every letter.")] = False,
) -> None:
    """Have letters tried again by the nodes; of a parked key all in order.

    A letter that a projection of documents has skipped comes back by a rebuild of its document, for
    which the App must be named.
    """
    async with _desk(options) as letters:
        count = await letters.retry(
            ids or None,
            projection=projection,
            stream=stream,
            fingerprint=fingerprint,
            all=everything,
        )
    _tell(options, count, "will be tried again by the nodes that run them, or were rebuilt")


@command(commands, "edit", json=CHANGED_FIELDS)
async def edit(
    options: Options,
    *,
    number: Annotated[int, typer.Argument(metavar="ID", help="Of the letter.")],
    data: Annotated[
        str, typer.Option(help="JSON in the place of the event's data; `-` reads it from stdin.")
    ],
    reason: Annotated[str, typer.Option(help="Why; kept with the letter.")],
    keep: Annotated[bool, typer.Option("--keep", help="Do not have it tried at once.")] = False,
) -> None:
    """Put other data in the place of an event's, for this projection alone, and try it again.

    The App must be named: the data is checked against the event's class. The log stays as it is.
    """
    from strandline.cli.connect import need_app

    text = sys.stdin.read() if data == "-" else data
    async with _desk(options) as letters:
        need_app(letters.app)
        await letters.edit(number, text, reason=reason, retry=not keep)
    _tell(options, 1, "has other data" if keep else "has other data, and will be tried again")


@command(commands, "discard", json=CHANGED_FIELDS)
async def discard(
    options: Options,
    *,
    ids: Annotated[list[int], typer.Argument(metavar="ID...", help="Of letters.")],
    reason: Annotated[str, typer.Option(help="Why; kept with the letters.")],
    yes: Yes = False,
) -> None:
    """Give letters up for good: their events will never be applied. What waits behind them is tried."""
    if not yes:
        complain(f"{len(ids)} events will never be applied by their projections.")
        confirm("Discard them?")
    async with _desk(options) as letters:
        count = await letters.discard(ids, reason=reason)
    _tell(options, count, "were discarded")


@asynccontextmanager
async def _desk(options: Options) -> AsyncIterator[Letters]:
    """The letters of the chosen database; with the declarations of the App, if one is named."""
    from strandline.app.letters import Letters
    from strandline.cli.connect import database
    from strandline.projections.registry import Registry

    async with database(options) as db:
        if db.app is None:
            yield Letters(db.pool, db.settings.schema, Registry())
            return
        db.app.settings = replace(db.app.settings, database_url=db.url, migrate_at_start=False)
        async with db.app as app:
            yield app.letters


def _fields(letter: DeadLetter) -> dict[str, Any]:
    from strandline.cli import output

    told = {"error": output.raw(letter.error), "data": output.raw(letter.data)}
    return output.fields_of(letter, FIELDS) | told


def _error(letter: DeadLetter) -> dict[str, Any]:
    import msgspec

    found: dict[str, Any] = msgspec.json.decode(letter.error) if letter.error else {}
    return found


def _tell(options: Options, count: int, what: str) -> None:
    from strandline.cli import output

    if options.json:
        output.write_json({"changed": count})
    else:
        output.say(f"{count:,} {what}")
