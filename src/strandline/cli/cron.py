"""`strandline cron`: what is enqueued again and again, and when."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from strandline.cli.command import Options, command, complain, confirm, group

if TYPE_CHECKING:
    from strandline.app.schedule_desk import Schedules
    from strandline.jobs.cron import ScheduleRow

commands = group("Cron: jobs that are enqueued again and again.")

FIELDS = (
    *("name", "state", "spec", "zone", "missed", "next_at", "last_at", "last_job", "fired"),
    *("paused_at", "set_by", "error", "job", "created_at"),
)
CHANGED_FIELDS = ("name", "state", "next_at")
RUN_FIELDS = ("name", "job")
NEXT_FIELDS = ("at", "local")
STYLES = {"active": "green", "paused": "yellow", "failing": "red"}

Name = Annotated[str, typer.Argument(metavar="NAME", help="As `list` shows it.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@command(commands, "list", json=FIELDS)
async def list_schedules(options: Options) -> None:
    """List the schedules: when they are due, when they were, what is wrong.

    Active; paused; or failing: the last try to fire it failed, and it is tried again.
    """
    from strandline.cli import output

    async with _desk(options) as schedules:
        found = await schedules.list()
    if options.json:
        output.write_json([_fields(one) for one in found])
        return
    if not found:
        output.say("there are no schedules: a program declares them when it starts")
        return
    output.table(
        ["schedule", "state", "spec", "zone", "next (UTC)", "last (UTC)", ">fired", "notes"],
        [
            (
                one.name,
                output.styled(state_of(one), STYLES[state_of(one)]),
                one.spec,
                one.zone,
                output.moment(one.next_at) if one.paused_at is None else "",
                output.moment(one.last_at),
                output.number(one.fired),
                one.error or "",
            )
            for one in found
        ],
    )


@command(commands, "pause", json=CHANGED_FIELDS)
async def pause(options: Options, *, name: Name) -> None:
    """Let a schedule rest until it is resumed."""
    async with _desk(options) as schedules:
        found = await schedules.pause(name)
    _tell(options, found, "is paused; `strandline cron resume` lets it go on")


@command(commands, "resume", json=CHANGED_FIELDS)
async def resume(options: Options, *, name: Name) -> None:
    """Let a schedule go on from its next moment; what was missed meanwhile is not made up for."""
    from strandline.cli import output

    async with _desk(options) as schedules:
        found = await schedules.resume(name)
    _tell(options, found, f"is due at {output.moment(found.next_at)} UTC")


@command(commands, "run", json=RUN_FIELDS)
async def run(options: Options, *, name: Name) -> None:
    """Enqueue a schedule's job now, besides its moments, also while it is paused."""
    from strandline.cli import output

    async with _desk(options) as schedules:
        job = await schedules.run(name)
    if options.json:
        output.write_json({"name": name, "job": job})
    else:
        output.say(output.plain(f"{name}: job {job} is enqueued"))


@command(commands, "next", json=NEXT_FIELDS)
async def next_moments(
    options: Options,
    *,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Of a schedule, as `list` shows it.")
    ] = None,
    spec: Annotated[
        str | None, typer.Option(help="A cron expression instead, such as '0 9 * * *'.")
    ] = None,
    zone: Annotated[str, typer.Option(help="The time zone of --spec.")] = "UTC",
    count: Annotated[int, typer.Option(min=1, max=1000, help="Moments.")] = 5,
) -> None:
    """Show when a schedule is due next; with --spec, when an expression would be, without a database."""
    from strandline.cli import output
    from strandline.errors import InvalidInput

    if (name is None) == (spec is None):
        raise InvalidInput("give either the NAME of a schedule or --spec")
    if spec is not None:
        found: Sequence[datetime] = _moments(spec, zone, count)
    else:
        assert name is not None
        async with _desk(options) as schedules:
            zone = (await schedules.get(name)).zone
            found = await schedules.next(name, count)
    local = [_local(one, zone) for one in found]
    if options.json:
        output.write_json(
            [{"at": one, "local": there} for one, there in zip(found, local, strict=True)]
        )
        return
    output.table(
        ["next (UTC)", zone],
        [
            (output.moment(one), there.strftime("%a %Y-%m-%d %H:%M:%S"))
            for one, there in zip(found, local, strict=True)
        ],
    )


@command(commands, "forget", json=("name",))
async def forget(options: Options, *, name: Name, yes: Yes = False) -> None:
    """Delete a schedule that no code declares any more; what declares it brings it back."""
    from strandline.cli import output

    async with _desk(options) as schedules:
        await schedules.get(name)
        if not yes:
            complain(f"{name} will not be fired any more.")
            confirm("Forget it?")
        await schedules.forget(name)
    if options.json:
        output.write_json({"name": name})
    else:
        output.say(output.plain(f"{name} is forgotten"))


@asynccontextmanager
async def _desk(options: Options) -> AsyncIterator[Schedules]:
    from strandline.app.schedule_desk import Schedules
    from strandline.cli.connect import database

    async with database(options) as db:
        yield Schedules(db.pool, db.settings)


def state_of(schedule: ScheduleRow) -> str:
    """One word: active, paused or failing."""
    if schedule.paused_at is not None:
        return "paused"
    return "failing" if schedule.error else "active"


def _moments(spec: str, zone: str, count: int) -> Sequence[datetime]:
    from strandline.jobs.moments import next_moment

    found = [next_moment(spec, zone, datetime.now(UTC))]
    while len(found) < count:
        found.append(next_moment(spec, zone, found[-1]))
    return found


def _local(moment: datetime, zone: str) -> datetime:
    from zoneinfo import ZoneInfo

    return moment.astimezone(ZoneInfo(zone))


def _fields(schedule: ScheduleRow) -> dict[str, Any]:
    from strandline.cli import output

    more = {"state": state_of(schedule), "job": output.raw(schedule.job)}
    return {name: more[name] if name in more else getattr(schedule, name) for name in FIELDS}


def _tell(options: Options, schedule: ScheduleRow, what: str) -> None:
    from strandline.cli import output

    if options.json:
        more = {"state": state_of(schedule)}
        output.write_json(output.fields_of(schedule, ("name", "next_at"), **more))
    else:
        output.say(output.plain(f"{schedule.name} {what}"))
