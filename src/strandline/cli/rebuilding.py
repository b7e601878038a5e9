"""`strandline projections rebuild`, `rebuilds`, `cancel`, `verify` and `heal`."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from strandline.cli.command import FAILED, Options, command, complain, confirm, group

if TYPE_CHECKING:
    from strandline.app.healing import Healed
    from strandline.app.rebuild_progress import RebuildProgress
    from strandline.app.rebuilds import Rebuilt
    from strandline.app.verifying import Verified
    from strandline.cli.builds import Site
    from strandline.daemon.rebuild_plan import RebuildPlan

commands = group("Listed under `strandline projections`.")

PLAN_FIELDS = (
    *("label", "scope", "position", "events", "documents", "bytes", "parts", "letters"),
    *("seconds", "suppressed"),
)
REBUILDS_FIELDS = (
    *("number", "label", "purpose", "scope", "state", "reason", "position", "target", "rate"),
    *("seconds_left", "known_by", "requested_at", "started_at", "ended_at", "shards"),
)
VERIFY_FIELDS = (*("label", "scope", "checked", "differing", "repaired", "seconds", "differences"),)
DIFFERENCE_FIELDS = ("table", "tenant", "key", "kind", "live", "rebuilt")
HEAL_FIELDS = ("label", "positions", "how", "scopes", "reason")
_STYLES = {"done": "green", "failed": "red", "cancelled": "yellow"}
_HOW = {
    "rebuilt": "rebuilt",
    "called": "is called for them",
    "read": "had not passed them",
    "none": "NOT healed",
}

Name = Annotated[str, typer.Argument(help="The projection's name.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Tenant = Annotated[str | None, typer.Option(help="Only this tenant's documents.")]
Streams = Annotated[
    list[str] | None,
    typer.Option("--stream", help="Only this document of a single-stream projection; repeatable."),
]
Keys = Annotated[list[str] | None, typer.Option("--key", help="Only this document; repeatable.")]
Parts = Annotated[
    int | None, typer.Option(min=1, help="Shards to build by; as declared if not given.")
]


@command(commands, "rebuild", json=("projection", "number", "state", "position", "seconds"))
async def rebuild(
    options: Options,
    *,
    projection: Name,
    yes: Yes = False,
    wait: Annotated[
        bool,
        typer.Option("--wait/--no-wait", help="Until it has taken over, or leave it to nodes."),
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what it would do (--json: other fields).")
    ] = False,
    in_place: Annotated[
        bool,
        typer.Option("--in-place", help="Delete first: readers see it empty and growing."),
    ] = False,
    parts: Parts = None,
    on_error: Annotated[
        str, typer.Option(help="What becomes of events that fail in it: pause, skip or park.")
    ] = "pause",
    tenant: Tenant = None,
    stream: Streams = None,
    key: Keys = None,
) -> None:
    """Build a projection again from the first event, beside the one that serves.

    Readers see the old state until the new one takes its place. The nodes that run the projection
    build it; if there are none, this process does.
    """
    from strandline.cli.builds import opened, site
    from strandline.cli.connect import database

    part: dict[str, Any] = {"tenant": tenant, "streams": stream, "keys": key}
    async with database(options) as db:
        if dry_run:
            async with opened(db) as app:
                _write_plan(options, await app.plan_rebuild(projection, parts=parts, **part))
            return
        if not yes:
            complain(_warning(projection, in_place=in_place))
            confirm("Rebuild it?")
        begun = time.monotonic()
        async with site(db, projection, here=wait) as at:
            part |= {"parts": parts, "on_error": on_error}
            if in_place:
                done = await at.app.rebuild(at.projection, in_place=True, **part)
                done = replace(done, state="building" if at.is_elsewhere else "done")
            else:
                done = await at.app.rebuild(at.projection, wait=False, **part)
                if wait:
                    done = await at.ended(done)
            if wait:
                await at.caught_up()
        position = done.position if at.is_elsewhere else at.end
    _write_rebuilt(options, at, replace(done, position=position), time.monotonic() - begun)


@command(commands, "rebuilds", json=REBUILDS_FIELDS)
async def list_rebuilds(
    options: Options,
    *,
    ended: Annotated[int, typer.Option(min=0, help="Of those that are over, so many.")] = 10,
) -> None:
    """List builds, also those of `verify`: how far they are, and what they wait for."""
    from strandline.app.rebuild_progress import told
    from strandline.cli import output
    from strandline.cli.connect import database
    from strandline.daemon.rebuilds import progress

    async with database(options) as db:
        found = told(await db.pool.run(progress(ended=ended)))
    if options.json:
        output.write_json([output.fields_of(one, REBUILDS_FIELDS) for one in found])
        return
    headers = [">build", "projection", "purpose", "state", ">position", ">of", ">/s", ">left"]
    output.table([*headers, "scope"], [_build_row(one) for one in found])
    for one in found:
        if one.reason:
            output.say(output.plain(f"build {one.number}: {one.reason}"), style="yellow")
        for shard in one.shards:
            if shard.reason:
                output.say(output.plain(f"{shard.name} {shard.state}: {shard.reason}"), style="red")
    if not found:
        output.say("nothing is being built, nothing was")


@command(commands, "cancel", json=("projection", "cancelled"))
async def cancel(
    options: Options,
    *,
    projection: Annotated[
        str, typer.Argument(help="The projection's name; of code that is gone, its label.")
    ],
    reason: Annotated[str, typer.Option(help="For those who wait for it.")] = "cancelled",
) -> None:
    """End the build of a projection that is under way; what serves goes on (exit code 4: none is)."""
    from strandline.cli import output
    from strandline.cli.builds import opened
    from strandline.cli.connect import database
    from strandline.errors import NotFound

    async with database(options) as db, opened(db) as app:
        done = await app.cancel_rebuild(projection, reason=reason)
    if not done:
        raise NotFound(f"no build of {projection} is under way")
    if options.json:
        output.write_json([{"projection": projection, "cancelled": True}])
    else:
        output.say(f"the build of {projection} is cancelled")


@command(commands, "verify", json=VERIFY_FIELDS)
async def verify(
    options: Options,
    *,
    projection: Name,
    repair: Annotated[
        bool, typer.Option("--repair", help="Let what was built take over, if anything differs.")
    ] = False,
    limit: Annotated[int, typer.Option(min=0, max=1000, help="Differences to list.")] = 20,
    parts: Parts = None,
    tenant: Tenant = None,
    stream: Streams = None,
    key: Keys = None,
) -> None:
    """Compare a projection with what its events make of it, while everything goes on.

    The exit code is 1 if anything differs and was not repaired.
    """
    from strandline.cli.builds import site
    from strandline.cli.connect import database

    async with database(options) as db, site(db, projection) as at:
        found = await at.shown(
            at.app.verify(
                at.projection,
                repair=repair,
                parts=parts,
                tenant=tenant,
                streams=stream,
                keys=key,
                limit=limit,
                elsewhere=at.is_elsewhere,
            )
        )
        if repair:
            await at.caught_up()
    _write_verified(options, found)
    if not found.is_right:
        raise typer.Exit(FAILED)


@command(commands, "heal", app="argument", json=HEAL_FIELDS)
async def heal(options: Options) -> None:
    """Mend what lacks events that came late, in gaps that `force_after` had skipped.

    Does nothing the second time. The exit code is 1 if something could not be healed.
    """
    from strandline.cli import output
    from strandline.cli.builds import at_work, opened
    from strandline.cli.connect import database, need_app

    async with database(options) as db:
        is_elsewhere = bool(await at_work(db, need_app(db.app).registry.labels()))
        async with opened(db, alone=not is_elsewhere) as app:
            found = await app.heal(elsewhere=is_elsewhere)
    if options.json:
        output.write_json([output.fields_of(one, HEAL_FIELDS) for one in found])
    else:
        for one in found:
            output.say(output.plain(_healed(one)), style="red" if one.how == "none" else None)
        if not found:
            output.say("no late event is left to be healed")
    if any(one.how == "none" for one in found):
        raise typer.Exit(FAILED)


def _warning(name: str, *, in_place: bool) -> str:
    if in_place:
        return (
            f"{name} will be emptied and built again: readers see it empty and growing meanwhile."
        )
    return f"{name} will be built again beside what serves, which needs room for a second copy."


def _write_rebuilt(options: Options, at: Site, done: Rebuilt, seconds: float) -> None:
    from strandline.cli import output

    is_done, label = done.state == "done", at.projection.label
    if options.json:
        facts = {"projection": at.projection.name, "number": done.number, "state": done.state}
        position = done.position if is_done else 0
        output.write_json([{**facts, "position": position, "seconds": seconds}])
    elif is_done:
        told = f"{output.duration(seconds)}, {done.position / seconds:,.0f} positions/s"
        output.say(f"{label} is rebuilt up to position {done.position:,} ({told})")
    elif not done.number:
        output.say(f"{label} is empty and growing: {at.who} at it")
    else:
        hint = f"{at.who} at it" if at.is_elsewhere else "it begins when a node is started"
        output.say(f"build {done.number} of {label} is {done.state}: {hint}")


def _build_row(one: RebuildProgress) -> tuple[Any, ...]:
    from strandline.cli import output

    is_open = one.ended_at is None
    return (
        str(one.number),
        one.label,
        one.purpose,
        output.styled(one.state, _STYLES.get(one.state, "dim")),
        output.number(one.position),
        output.number(one.target),
        output.number(one.rate) if is_open else "",
        output.short(one.seconds_left) if is_open else "",
        one.scope,
    )


def _write_plan(options: Options, plan: RebuildPlan) -> None:
    from strandline.cli import output

    if options.json:
        output.write_json([output.fields_of(plan, PLAN_FIELDS)])
        return
    took = "unknown: it was never built" if plan.seconds is None else output.duration(plan.seconds)
    lines = [
        f"{plan.label}, {plan.scope}: nothing was changed; a rebuild would",
        f"  read {plan.events:,} events up to position {plan.position:,}, by {plan.parts} shard(s)",
        f"  replace {plan.documents:,} documents or rows ({plan.bytes / 1_048_576:,.1f} MiB with indexes)",
        f"  end {plan.letters:,} dead letter(s)",
        f"  take {took}",
        *(f"  not raise {one}" for one in plan.suppressed),
    ]
    for line in lines:
        output.say(output.plain(line))


def _write_verified(options: Options, found: Verified) -> None:
    from strandline.cli import output

    if options.json:
        listed = [
            output.fields_of(one, DIFFERENCE_FIELDS[:-2])
            | {"live": one.live, "rebuilt": one.rebuilt}
            for one in found.differences
        ]
        output.write_json([output.fields_of(found, VERIFY_FIELDS[:-1], differences=listed)])
        return
    for one in found.differences:
        where = f"{one.table} " if one.table else ""
        tenant = f" of {one.tenant}" if one.tenant not in ("", "default") else ""
        output.say(output.plain(f"{one.kind}: {where}{one.key or 'row'}{tenant}"), style="red")
        for what, side in (("live", one.live), ("events", one.rebuilt)):
            if side is not None:
                output.say(output.plain(f"  {what}: {side}"), style="dim")
    told = f"{found.label}: {found.checked:,} checked in {output.duration(found.seconds)}"
    if not found.differing:
        output.say(f"{told}, nothing is wrong")
    else:
        more = found.differing - len(found.differences)
        shown = f" ({more:,} more than are listed)" if more else ""
        mended = "; repaired" if found.repaired else "; --repair lets what was built take over"
        output.say(f"{told}, {found.differing:,} differ{shown}{mended}")


def _healed(one: Healed) -> str:
    events = f"{len(one.positions):,} late event(s)"
    scopes = f" ({'; '.join(one.scopes)})" if one.scopes else ""
    reason = f": {one.reason}" if one.reason else ""
    return f"{one.label}: {events}, {_HOW[one.how]}{scopes}{reason}"
