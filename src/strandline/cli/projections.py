"""`strandline projections`: how far they are, looking at a document."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from strandline.cli.command import Options, command, group
from strandline.cli.shards import LIST_FIELDS

if TYPE_CHECKING:
    from strandline.cli.shards import Standing

commands = group("Projections and subscriptions of an App.")

QUIET = ("running", "claiming", "never_started")  # their reasons say nothing that is wrong

_STYLES = {"running": "green", "claiming": "dim", "inline": "dim", "live": "dim"} | dict.fromkeys(
    ("paused", "silent", "orphaned", "unplaced"), "red"
)


class By(StrEnum):
    """What a line of the list is."""

    SHARD = "shard"
    PROJECTION = "projection"


@command(commands, "list", app="argument", json=LIST_FIELDS)
async def list_projections(
    options: Options,
    *,
    by: Annotated[
        By, typer.Option(help="A line for each shard, or all of them in one.")
    ] = By.SHARD,
) -> None:
    """List projections and subscriptions with position, lag in events and in time, and rate.

    Lag in time is the age of the oldest event not yet applied. What nobody has started is shown as such.
    Of several shards in one line the worst state is shown, and how far the last of them is.
    """
    from strandline.cli import output
    from strandline.cli.connect import database
    from strandline.cli.shards import recuts, standings, together, trouble

    async with database(options) as db:
        survey, shards = await standings(db)
    found = shards if by is By.SHARD else together(shards)
    if options.json:
        rows = [output.fields_of(one, LIST_FIELDS) for one in found]
        output.write_json(rows)
        return
    output.table(
        ["projection", "state", ">position", ">lag", ">behind", ">ev/s", "node"],
        [_row(one) for one in found],
    )
    for one in found:
        if one.reason and one.state not in QUIET:
            for line in trouble(one, survey.taken_at):
                output.say(output.plain(line), style="red")
    for text in recuts(shards):
        output.say(output.plain(text), style="yellow")
    mark = survey.mark
    waits = f" (the mark waits at {mark.position:,})" if mark.difference else ""
    output.say(f"the log ends at position {mark.highest:,}{waits}", style="dim")


@command(commands, "show", json=("projection", "id", "tenant", "document"))
async def show(
    options: Options,
    *,
    projection: Annotated[str, typer.Argument(help="The projection's name.")],
    name: Annotated[str, typer.Argument(metavar="ID", help="The document's id.")],
    tenant: Annotated[str, typer.Option(help="The document's tenant.")] = "default",
) -> None:
    """Show one document of a projection; a live one is folded now."""
    import msgspec

    from strandline.cli import output
    from strandline.cli.connect import database, need_app
    from strandline.errors import DocumentNotFound
    from strandline.events.codec import encoded
    from strandline.projections.projection import Lifecycle

    async with database(options) as db:
        definition = need_app(db.app).registry.projection(projection)
        if definition.lifecycle is Lifecycle.LIVE:
            state, _ = await db.pool.run(db.requests.live(definition, name, tenant=tenant))
            if state is None:
                raise DocumentNotFound(f"{definition.label} has nothing for stream {name!r}")
        else:
            state = await db.pool.run(db.requests.get(definition, name, tenant=tenant))
    json = encoded(state, definition.label).decode()
    if options.json:
        facts = {"projection": definition.name, "id": name, "tenant": tenant}
        output.write_json([{**facts, "document": output.raw(json)}])
        return
    output.say(output.plain(f"{definition.label} {name}"), style="bold")
    output.say(msgspec.json.format(json, indent=2))


def _row(one: Standing) -> tuple[Any, ...]:
    from strandline.cli import output

    state = output.styled(one.state.replace("_", " "), _STYLES.get(one.state, "yellow"))
    if one.lag_events is None:
        return (one.title, state, "", "", "", "", None)
    behind = output.short(one.lag_seconds) if one.lag_events and one.lag_seconds else ""
    never = one.position is None
    return (
        one.title,
        state,
        "" if never else output.number(one.position),
        output.number(one.lag_events),
        behind,
        "" if never else output.number(one.rate),
        (one.node or "").rpartition("@")[2],  # host and process; the App is known
    )
