"""`strandline events`: the log over all streams."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from strandline.cli.command import Options, command, group
from strandline.cli.streams import EVENT_FIELDS, event_fields, write_event

if TYPE_CHECKING:
    from strandline.cli.connect import Database
    from strandline.events.event import RecordedEvent
    from strandline.events.inspect import Extent, TypeCount

commands = group("Events of all streams, by position.")

SAMPLE = 100_000  # positions `types` counts unless told otherwise


@command(commands, "list", json=EVENT_FIELDS)
async def list_events(
    options: Options,
    *,
    after: Annotated[
        int | None, typer.Option(min=0, help="Begin after this position (backwards: before it).")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Events at the most.")] = 20,
    event_type: Annotated[
        list[str] | None, typer.Option("--type", help="Only this type; may be repeated.")
    ] = None,
    stream_type: Annotated[str | None, typer.Option(help="Only of streams of this type.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    backwards: Annotated[bool, typer.Option("--backwards", help="The last event first.")] = False,
) -> None:
    """List events by position.

    There is no index on types: a filter looks through the log until it has found enough.
    """
    from strandline.cli import output
    from strandline.cli.connect import database
    from strandline.events.inspect import log_extent

    async with database(options) as db:
        extent = await db.pool.run(log_extent())
        low, high = after or 0, extent.highest
        if backwards:
            low, high = 0, extent.highest if after is None else after - 1
        filters = {"names": event_type, "stream_type": stream_type, "tenant": tenant}
        found = await _searched(db, (low, high), filters, limit=limit, backwards=backwards)
    if options.json:
        output.write_json([event_fields(event) for event in found])
        return
    _write_table(found, extent)
    if len(found) == limit:
        output.say(f"more with --after {found[-1].position}", style="dim")


@command(commands, "show", json=EVENT_FIELDS)
async def show(
    options: Options,
    *,
    name: Annotated[str, typer.Argument(metavar="POSITION|ID", help="Its position, or its id.")],
) -> None:
    """Show one event whole. An id that several tenants have shows them all."""
    from strandline.cli import output
    from strandline.cli.connect import database
    from strandline.errors import InvalidInput, NotFound
    from strandline.events import inspect

    try:
        wanted = int(name) if name.isdecimal() else UUID(name)
    except ValueError:
        raise InvalidInput(f"{name!r} is neither a position nor an event id (a UUID)") from None
    async with database(options) as db:
        if isinstance(wanted, UUID):
            positions = await db.pool.run(inspect.positions_of_id(wanted))
        else:
            positions = [wanted]
        found: list[RecordedEvent[Any]] = []
        for position in positions:
            found += await _between(db, position - 1, position, {}, limit=1)
        if not found:
            raise NotFound(await _absent(db, wanted))
    if options.json:
        output.write_json([event_fields(event) for event in found])
        return
    for event in found:
        output.say(output.plain(f"{event.stream} (tenant {event.tenant})"), style="bold")
        output.say(f"id {event.id}")
        write_event(event)


@command(commands, "types", app="argument", json=("type", "events", "first", "last", "registered"))
async def types(
    options: Options,
    *,
    last: Annotated[
        int, typer.Option(min=1, help="Count in so many positions at the end of the log.")
    ] = SAMPLE,
    everything: Annotated[bool, typer.Option("--all", help="Count the whole log.")] = False,
) -> None:
    """Count the stored events of each type; with MODULE:APP tell which it does not register.

    Counts the last 100,000 positions unless told otherwise: counting reads every event.
    """
    from strandline.cli import output
    from strandline.cli.connect import database
    from strandline.events.inspect import log_extent

    async with database(options) as db:
        highest = (await db.pool.run(log_extent())).highest
        low = 0 if everything else max(0, highest - last)
        counts = await counted_types(db, low, highest)
    known = db.app.registry.types.decoders if db.app is not None else None
    rows = [
        output.fields_of(
            count,
            ("type", "events", "first", "last"),
            registered=None if known is None else count.type in known,
        )
        for count in counts
    ]
    if options.json:
        output.write_json(rows)
        return
    _write_types(rows)
    if low:
        output.say(f"counted after position {low:,}; --all counts the whole log", style="dim")


async def counted_types(db: Database, low: int, high: int) -> list[TypeCount]:
    """Events of each type in ``low < position <= high``, window by window."""
    from strandline.cli import output
    from strandline.events import inspect

    found: list[TypeCount] = []
    with output.progress("counting", high - low) as bar:
        for start, end in inspect.windows(low, high):
            found += await db.pool.run(inspect.count_types(start, end))
            bar.at(end - low)
    return inspect.added(found)


async def _searched(
    db: Database,
    between: tuple[int, int],
    filters: dict[str, Any],
    *,
    limit: int,
    backwards: bool,
) -> list[RecordedEvent[Any]]:
    from strandline.cli import output
    from strandline.events.inspect import windows

    low, high = between
    found: list[RecordedEvent[Any]] = []
    with output.progress("searching", max(0, high - low)) as bar:
        for count, (start, end) in enumerate(windows(low, high, backwards=backwards), 1):
            left = limit - len(found)
            found += await _between(db, start, end, filters, limit=left, backwards=backwards)
            if len(found) >= limit:
                break
            bar.at(min(count * (end - start), high - low))
    return found


async def _between(
    db: Database,
    low: int,
    high: int,
    filters: dict[str, Any],
    *,
    limit: int,
    backwards: bool = False,
) -> list[RecordedEvent[Any]]:
    from strandline.events import read
    from strandline.events.codec import EventTypes

    return await db.pool.run(
        read.read_page(
            types=EventTypes(),
            after=max(low, 0),
            up_to=max(high, 0),
            limit=limit,
            backwards=backwards,
            unknown="keep",
            **filters,
        )
    )


async def _absent(db: Database, wanted: int | UUID) -> str:
    """Why there is no such event."""
    from strandline.events.gaps import list_gaps
    from strandline.events.inspect import log_extent

    if isinstance(wanted, UUID):
        return f"there is no event with id {wanted}"
    extent = await db.pool.run(log_extent())
    if wanted > extent.highest:
        return f"there is no event at position {wanted}: the highest is {extent.highest}"
    if wanted > extent.mark:
        return f"there is no event at position {wanted} yet: it may still appear (see `gaps live`)"
    for gap in await db.pool.run(list_gaps(1, max(0, wanted - 1))):
        if gap.first == wanted:
            return f"there is no event at position {wanted}: {gap.kind} (see `gaps list`)"
    return f"there is no event at position {wanted}: its transaction was rolled back"


def _write_table(found: list[RecordedEvent[Any]], extent: Extent) -> None:
    from strandline.cli import output

    several = len({event.tenant for event in found}) > 1
    output.table(
        [">position", "time (UTC)", *(["tenant"] if several else []), "stream", "type", "data"],
        [
            (
                str(event.position),
                output.moment(event.recorded_at),
                *([event.tenant] if several else []),
                f"{event.stream}@{event.version}",
                event.type,
                event.data.json,
            )
            for event in found
        ],
        gives="data",
        cut=True,
    )
    if any(event.position > extent.mark for event in found):
        output.say(
            f"the high-water mark is at {extent.mark:,}: events above it are not settled"
            " (a node settles them)",
            style="yellow",
        )


def _write_types(rows: list[dict[str, Any]]) -> None:
    from strandline.cli import output

    headers = ["type", ">events", ">first", ">last"]
    named = any(row["registered"] is not None for row in rows)
    marks = {True: output.styled("yes", "green"), False: output.styled("NO", "red"), None: ""}
    output.table(
        [*headers, *(["registered"] if named else [])],
        [
            (
                row["type"],
                *(output.number(row[name]) for name in ("events", "first", "last")),
                *([marks[row["registered"]]] if named else []),
            )
            for row in rows
        ],
    )
    if any(row["registered"] is False for row in rows):
        output.say(
            "types that are not registered stop the projections that read them:"
            ' register a class or an alias with @app.event("...")',
            style="yellow",
        )
