"""`strandline streams`: one stream, all streams, and events as they come."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from strandline.cli.command import Options, command, group

if TYPE_CHECKING:
    from strandline.cli.connect import Database
    from strandline.events.event import RecordedEvent, StreamState

commands = group("Streams and their events.")

EVENT_FIELDS = (
    *("position", "stream", "version", "type", "recorded_at", "tenant", "id", "data", "metadata"),
)
STREAM_FIELDS = ("tenant", "id", "type", "version", "created_at", "archived_at")
PAGE = 1000
SHORT = 68  # characters of JSON that stay on one line

Tenant = Annotated[str, typer.Option(help="The stream's tenant.")]


@command(commands, "show", json=EVENT_FIELDS)
async def show(
    options: Options,
    *,
    stream: Annotated[str, typer.Argument(help="The stream's id.")],
    tenant: Tenant = "default",
    first: Annotated[int, typer.Option("--from", min=1, help="First version.")] = 1,
    last: Annotated[int | None, typer.Option("--to", min=1, help="Last version.")] = None,
    at: Annotated[
        datetime | None, typer.Option(help="As it was at this time (UTC).", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Events at the most.")] = PAGE,
    backwards: Annotated[bool, typer.Option("--backwards", help="The last event first.")] = False,
) -> None:
    """Show a stream: its state, and its events with version, position, type, time and data."""
    from datetime import UTC

    from strandline.cli import output
    from strandline.cli.connect import database
    from strandline.events import read
    from strandline.events.codec import EventTypes

    moment = at.replace(tzinfo=UTC) if at is not None and at.tzinfo is None else at
    async with database(options) as db:
        state = await db.pool.run(read.stream_state(stream, tenant=tenant))
        if state is None:
            raise await _missing(db, stream, tenant)
        events = await db.pool.run(
            read.read_stream(
                stream,
                types=EventTypes(),
                tenant=tenant,
                from_version=first,
                to_version=last,
                as_of=moment,
                backwards=backwards,
                limit=limit,
                unknown="keep",
            )
        )
    if options.json:
        output.write_json([event_fields(event) for event in events])
        return
    output.say(_headline(state), style="bold")
    for event in events:
        output.say()
        write_event(event)
    if len(events) == limit:
        output.say()
        output.say(f"{limit} events shown; --from, --to and --limit show others", style="dim")


@command(commands, "list", json=STREAM_FIELDS)
async def list_streams(
    options: Options,
    *,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    stream_type: Annotated[str | None, typer.Option("--type", help="Only of this type.")] = None,
    after: Annotated[
        str, typer.Option(metavar="ID", help="Begin after this id (needs --tenant).")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, help="Streams at the most.")] = 50,
) -> None:
    """List streams by tenant and id, a page at a time."""
    from strandline.cli import output
    from strandline.cli.connect import database
    from strandline.errors import InvalidInput
    from strandline.events import inspect

    if after and tenant is None:
        raise InvalidInput("--after goes with --tenant: the same id may exist in several tenants")
    async with database(options) as db:
        rows = await db.pool.run(
            inspect.list_streams(
                tenant=tenant, stream_type=stream_type, after=(tenant or "", after), most=limit
            )
        )
    if options.json:
        output.write_json([output.fields_of(row, STREAM_FIELDS) for row in rows])
        return
    several = len({row.tenant for row in rows}) > 1
    output.table(
        ["stream", *(["tenant"] if several else []), "type", ">version", "created (UTC)"],
        [
            (
                f"{row.id}{' (archived)' if row.is_archived else ''}",
                *([row.tenant] if several else []),
                row.type,
                output.number(row.version),
                output.moment(row.created_at),
            )
            for row in rows
        ],
        gives="stream",
    )
    if len(rows) == limit:
        last = rows[-1]
        more = f"--tenant {last.tenant} --after {last.id}"
        output.say(f"more with {output.plain(more)}", style="dim")


@command(commands, "tail", json=EVENT_FIELDS)
async def tail(
    options: Options,
    *,
    event_type: Annotated[
        list[str] | None, typer.Option("--type", help="Only this type; may be repeated.")
    ] = None,
    stream: Annotated[str | None, typer.Option(help="Only this stream.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    after: Annotated[
        int | None,
        typer.Option("--from", min=0, help="Begin after this position; 0 for all events."),
    ] = None,
) -> None:
    """Follow new events until Ctrl-C, each once and in order of positions.

    An event is shown when it is settled: when none below it can still appear. `--json` writes one
    object a line.
    """
    from strandline.cli import output
    from strandline.cli.connect import database

    async with database(options) as db, until_told() as told:
        async for event in _following(db, told, after, event_type, tenant):
            if stream is not None and event.stream != stream:
                continue
            if options.json:
                output.write_json_line(event_fields(event))
            else:
                write_event_line(event)


async def _following(
    db: Database,
    told: asyncio.Event,
    after: int | None,
    types: list[str] | None,
    tenant: str | None,
) -> AsyncIterator[RecordedEvent[Any]]:
    """Settled events after *after* (None: after the present), for ever."""
    from strandline.events import read
    from strandline.events.codec import EventTypes
    from strandline.events.inspect import WINDOW, log_extent
    from strandline.postgres.listener import Listener

    moved = asyncio.Event()
    listener = Listener(db.settings.direct_url or db.url, db.settings)
    listener.on("appended", lambda _: moved.set())
    listener.on("mark", lambda _: moved.set())
    listener.start()
    try:
        async with settling(db):
            at = (await db.pool.run(log_extent())).highest if after is None else after
            while not told.is_set():
                moved.clear()
                mark = (await db.pool.run(log_extent())).mark
                while at < mark and not told.is_set():
                    end = min(mark, at + WINDOW)
                    page = await db.pool.run(
                        read.read_page(
                            types=EventTypes(),
                            after=at,
                            up_to=end,
                            limit=PAGE,
                            names=types,
                            tenant=tenant,
                            unknown="keep",
                        )
                    )
                    for event in page:
                        yield event
                    at = page[-1].position if len(page) == PAGE else end
                await _either(moved, told, db.settings.poll_interval)
    finally:
        await listener.stop()


@asynccontextmanager
async def settling(db: Database) -> AsyncIterator[None]:
    """Move the high-water mark, in case no node runs; harmless where one does."""
    from strandline.events.high_water import HighWater
    from strandline.telemetry.signals import Signals

    detector = HighWater(db.pool, db.settings, Signals(), on_moved=lambda _: None)
    detector.start()
    try:
        yield
    finally:
        await detector.stop()


@asynccontextmanager
async def until_told() -> AsyncIterator[asyncio.Event]:
    """An event that Ctrl-C and SIGTERM set."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for one in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(one, told.set)
    try:
        yield told
    finally:
        for one in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(one)


async def _either(first: asyncio.Event, second: asyncio.Event, timeout: float) -> None:
    waits = [asyncio.ensure_future(one.wait()) for one in (first, second)]
    await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


async def _missing(db: Database, stream: str, tenant: str) -> Exception:
    from strandline.errors import StreamNotFound
    from strandline.events import inspect

    others = await db.pool.run(inspect.tenants_of_stream(stream))
    hint = f"; tenant {', '.join(others)} has one (--tenant)" if others else ""
    return StreamNotFound(f"there is no stream {stream!r} of tenant {tenant!r}{hint}")


# ---- how an event looks


def event_fields(event: RecordedEvent[Any]) -> dict[str, Any]:
    """An event read without classes, as ``--json`` writes it."""
    from strandline.cli.output import fields_of, raw

    return fields_of(
        event, EVENT_FIELDS[:-2], data=raw(event.data.json), metadata=raw(event.raw_metadata)
    )


def write_event(event: RecordedEvent[Any]) -> None:
    """An event over several lines; JSON that does not fit a line is indented."""
    import msgspec

    from strandline.cli import output

    output.say(
        output.plain(
            f"version {event.version}  position {event.position}"
            f"  {output.moment(event.recorded_at)}  {event.type}"
        ),
        style="cyan",
    )
    for label, json in (("", event.data.json), ("metadata ", event.raw_metadata)):
        if json:
            text = json if len(json) <= SHORT else msgspec.json.format(json, indent=2)
            output.say("  " + (label + text).replace("\n", "\n  "))


def write_event_line(event: RecordedEvent[Any]) -> None:
    """An event on one line, cut where the terminal ends."""
    from rich.text import Text

    from strandline.cli import output

    console = output.console()
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(f"{event.position} ", style="cyan")
    line.append(output.moment(event.recorded_at)[11:] + " ", style="dim")
    line.append(output.plain(f"{event.stream}@{event.version} "))
    line.append(output.plain(event.type) + " ", style="bold")
    line.append(output.plain(event.data.json))
    console.print(line, soft_wrap=not console.is_terminal)


def _headline(state: StreamState) -> str:
    from strandline.cli import output

    kind = f", type {state.type}" if state.type else ""
    tenant = f", tenant {state.tenant}" if state.tenant != "default" else ""
    end = f", archived {output.moment(state.archived_at)}" if state.archived_at else ""
    return output.plain(
        f"{state.id}: version {state.version}{kind}{tenant},"
        f" created {output.moment(state.created_at)}{end}"
    )
