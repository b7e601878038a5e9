"""`strandline gaps`: numbers without an event, settled and open, and who holds them."""

from __future__ import annotations

from typing import Annotated

import typer

from strandline.cli.command import Options, command, complain, confirm, group

commands = group("Gaps in the numbering, and who holds up the high-water mark.")

SETTLED_FIELDS = ("first", "last", "numbers", "kind", "settled_at", "watched", "facts")
LIVE_FIELDS = ("first", "last", "mark", "highest", "holders")
HOLDER_FIELDS = (
    *("pid", "application", "user", "state", "age", "client", "query", "prepared", "cure"),
)


@command(commands, "list", json=SETTLED_FIELDS)
async def list_settled(
    options: Options,
    *,
    after: Annotated[int, typer.Option(min=0, help="Gaps that begin after this position.")] = 0,
    forced: Annotated[
        bool, typer.Option("--forced", help="Only those that were skipped without proof.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="Gaps at the most.")] = 50,
) -> None:
    """List settled gaps: rolled_back is proved, forced was skipped by `force_after`."""
    from strandline.cli import output
    from strandline.cli.connect import database
    from strandline.events.gaps import list_gaps

    async with database(options) as db:
        found = await db.pool.run(list_gaps(limit, after, forced=forced))
    if options.json:
        output.write_json([output.fields_of(gap, SETTLED_FIELDS) for gap in found])
        return
    output.table(
        [">first", ">last", ">numbers", "kind", "settled (UTC)", ">waited", "late events"],
        [
            (
                str(gap.first),
                str(gap.last),
                output.number(gap.numbers),
                output.styled(gap.kind, "red" if gap.kind == "forced" else "green"),
                output.moment(gap.settled_at),
                output.duration(gap.facts.get("waited")),
                output.number((gap.facts.get("late") or {}).get("events")),
            )
            for gap in found
        ],
    )
    if not found:
        done = "forced" if forced else "settled"
        output.say(f"no gap has been {done}" + (f" after position {after:,}" if after else ""))
    elif len(found) == limit:
        output.say(f"more with --after {found[-1].first}", style="dim")
    if any(gap.facts.get("late") for gap in found):
        output.say(
            "late events: read models that had passed their gap lack them;"
            " `strandline projections heal MODULE:APP` mends those",
            style="yellow",
        )


@command(commands, "live", json=LIVE_FIELDS)
async def live(
    options: Options,
    *,
    limit: Annotated[int, typer.Option(min=1, help="Gaps at the most.")] = 50,
) -> None:
    """Show open gaps above the high-water mark, and the transactions that may still fill them.

    Which transaction owns which number is not known; one that is not listed owns none.
    """
    from strandline.cli import output
    from strandline.cli.connect import database
    from strandline.events.gaps import live_gaps
    from strandline.events.inspect import log_extent

    async with database(options) as db:
        extent = await db.pool.run(log_extent())
        found = await db.pool.run(live_gaps(limit))
    if options.json:
        holders = [output.fields_of(one, HOLDER_FIELDS) for one in found.holders]
        shared = {"mark": extent.mark, "highest": extent.highest, "holders": holders}
        output.write_json([{"first": g.first, "last": g.last, **shared} for g in found.gaps])
        return
    output.say(f"mark {extent.mark:,}, highest position {extent.highest:,}", style="bold")
    if not found.gaps:
        output.say("no gap is open")
    else:
        output.table([">first", ">last"], [(str(gap.first), str(gap.last)) for gap in found.gaps])
    if found.holders:
        output.say("transactions that may still fill a gap:")
    elif found.gaps:
        output.say("nobody holds them: a node settles them at its next look")
    for holder in found.holders:
        output.say(output.plain(f"- {holder.who}"))
        output.say(output.plain(f"  end it with: {holder.cure}"), style="dim")


@command(commands, "cancel", json=("pid", "ended"))
async def cancel(
    options: Options,
    *,
    pid: Annotated[int, typer.Argument(help="The backend, as `gaps live` shows it.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """End a backend that holds up the high-water mark; its transaction is rolled back.

    A backend that holds no lock on `streams` is left alone (exit code 4).
    """
    from strandline.cli import output
    from strandline.cli.connect import database
    from strandline.errors import NotFound
    from strandline.events.gaps import cancel_holder, holders

    async with database(options) as db:
        holder = next((one for one in await db.pool.run(holders()) if one.pid == pid), None)
        if holder is None:
            raise NotFound(
                f"pid {pid} holds no lock on streams of this database: it was left alone"
            )
        if not yes:
            complain(output.plain(holder.who))
            confirm("End this backend? Its transaction is lost.")
        ended = await db.pool.run(cancel_holder(pid))
    if not ended:
        raise NotFound(f"pid {pid} has ended its transaction by itself")
    if options.json:
        output.write_json([{"pid": pid, "ended": True}])
    else:
        output.say(f"ended pid {pid}; its transaction is rolled back")
