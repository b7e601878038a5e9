"""`strandline jobs`: what waits, runs, is dead or has ended, and steering it."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from strandline.cli.command import Options, command, group
from strandline.cli.job_choice import (
    AllOption,
    FingerprintOption,
    Ids,
    KeyOption,
    KindOption,
    QueueOption,
    StateOption,
    TagOption,
    TenantOption,
    Yes,
    ask,
    chosen,
    job_desk,
    refuse_unknown,
    tell,
)
from strandline.cli.job_shown import FIELDS, STYLES, errors, fields, write_table

if TYPE_CHECKING:
    from strandline.cli.connect import Database

commands = group("Jobs: what waits, runs, is dead or has ended.")

COUNT_FIELDS = ("queue", "state", "count", "oldest", "is_estimate")
CHANGED_FIELDS = ("changed",)
CANCELLED_FIELDS = ("changed", "asked")
ENQUEUED_FIELDS = ("id", "is_new")


@command(commands, "list", json=FIELDS)
async def list_jobs(
    options: Options,
    *,
    state: StateOption = None,
    queue: QueueOption = None,
    kind: KindOption = None,
    tag: TagOption = None,
    tenant: TenantOption = None,
    key: KeyOption = None,
    fingerprint: FingerprintOption = None,
    newest: Annotated[bool, typer.Option("--newest", help="The newest first.")] = False,
    after: Annotated[
        int | None, typer.Option(help="Jobs behind this id, in the order of the list.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Jobs at the most.")] = 50,
) -> None:
    """List jobs by id, the oldest first: live ones, dead ones, and what is kept of the others."""
    from strandline.cli import output

    async with job_desk(options) as (_, jobs):
        found = await jobs.list(
            state=state.value if state else None,
            queue=queue,
            kind=kind,
            tag=tag,
            tenant=tenant,
            key=key,
            fingerprint=fingerprint,
            after=after,
            limit=limit,
            newest_first=newest,
        )
    if options.json:
        output.write_json([fields(one) for one in found])
        return
    if not found:
        output.say("there are no such jobs")
        return
    write_table(found)
    if len(found) == limit:
        output.say(f"more with --after {found[-1].id}", style="dim")


@command(commands, "show", json=FIELDS)
async def show(
    options: Options, *, number: Annotated[int, typer.Argument(metavar="ID", help="Of the job.")]
) -> None:
    """Show all of one job: arguments, what failed with its stack, progress, result."""
    from strandline.cli import output

    async with job_desk(options) as (_, jobs):
        found = await jobs.get(number)
    if options.json:
        output.write_json(fields(found))
        return
    for name in FIELDS:
        value = getattr(found, name)
        if name != "errors" and value not in (None, ""):
            shown = output.moment(value) if isinstance(value, datetime) else value
            output.say(output.plain(f"{name}: {shown}"))
    for error in errors(found):
        output.say()
        head = f"attempt {error.get('attempt')}, {error.get('at')}: {error.get('class')}"
        output.say(output.plain(f"{head}: {error.get('message')}"), style="red")
        for line in str(error.get("stack") or "").splitlines():
            output.say(output.plain(line), style="dim")


@command(commands, "counts", json=COUNT_FIELDS)
async def counts(options: Options) -> None:
    """Count jobs by queue and state. Of very many a sample is counted; `~` marks that.

    Since when: of waiting jobs the oldest has been enqueued or due, of others it has ended.
    """
    from strandline.cli import output

    async with job_desk(options) as (_, jobs):
        found = await jobs.counts()
    if options.json:
        output.write_json([output.fields_of(one, COUNT_FIELDS) for one in found])
        return
    if not found:
        output.say("there are no jobs")
        return
    output.table(
        ["queue", "state", ">jobs", "since (UTC)"],
        [
            (
                one.queue,
                output.styled(one.state, STYLES.get(one.state, "")),
                f"{'~' if one.is_estimate else ''}{output.number(one.count)}",
                output.moment(one.oldest),
            )
            for one in found
        ],
    )


@command(commands, "retry", json=CHANGED_FIELDS)
async def retry(
    options: Options,
    *,
    ids: Ids = None,
    state: StateOption = None,
    queue: QueueOption = None,
    kind: KindOption = None,
    tag: TagOption = None,
    tenant: TenantOption = None,
    key: KeyOption = None,
    fingerprint: FingerprintOption = None,
    attempts: Annotated[
        int, typer.Option(min=1, max=10_000, help="A dead job has so many from now on.")
    ] = 1,
    everything: AllOption = False,
) -> None:
    """Have dead jobs tried again; with ids or --state also those that wait for their time."""
    chosen(
        ids,
        everything=everything,
        state=state,
        queue=queue,
        kind=kind,
        tag=tag,
        tenant=tenant,
        key=key,
        fingerprint=fingerprint,
    )
    async with job_desk(options) as (_, jobs):
        count = await jobs.retry(
            ids or None,
            state=state.value if state else None,
            queue=queue,
            kind=kind,
            tag=tag,
            tenant=tenant,
            key=key,
            fingerprint=fingerprint,
            attempts=attempts,
            all=everything,
        )
        if not count:
            await refuse_unknown(jobs, ids)
    tell(options, "may run now", count)


@command(commands, "cancel", json=CANCELLED_FIELDS)
async def cancel(
    options: Options,
    *,
    ids: Ids = None,
    reason: Annotated[str, typer.Option(help="Why; kept with the jobs.")],
    state: StateOption = None,
    queue: QueueOption = None,
    kind: KindOption = None,
    tag: TagOption = None,
    tenant: TenantOption = None,
    key: KeyOption = None,
    everything: AllOption = False,
    yes: Yes = False,
) -> None:
    """Cancel live jobs: those that wait at once, those that run are told to end.

    It is asked first unless ids are given.
    """
    which = chosen(
        ids,
        everything=everything,
        state=state,
        queue=queue,
        kind=kind,
        tag=tag,
        tenant=tenant,
        key=key,
    )
    if not ids and not yes:
        ask("cancelled", which)
    async with job_desk(options) as (_, jobs):
        done = await jobs.cancel(
            ids or None,
            reason=reason,
            state=state.value if state else None,
            queue=queue,
            kind=kind,
            tag=tag,
            tenant=tenant,
            key=key,
            all=everything,
        )
        if not done.done and not done.asked:
            await refuse_unknown(jobs, ids)
    tell(options, f"are cancelled; {done.asked:,} run and are told to end", done.done, done.asked)


@command(commands, "discard", json=CHANGED_FIELDS)
async def discard(
    options: Options,
    *,
    ids: Ids = None,
    reason: Annotated[str, typer.Option(help="Why; kept with the jobs.")],
    queue: QueueOption = None,
    kind: KindOption = None,
    tag: TagOption = None,
    tenant: TenantOption = None,
    key: KeyOption = None,
    fingerprint: FingerprintOption = None,
    everything: AllOption = False,
    yes: Yes = False,
) -> None:
    """Give dead jobs up for good. What waits for them in a flow is cancelled, their keys are free."""
    which = chosen(
        ids,
        everything=everything,
        queue=queue,
        kind=kind,
        tag=tag,
        tenant=tenant,
        key=key,
        fingerprint=fingerprint,
    )
    if not yes:
        ask("discarded", which)
    async with job_desk(options) as (_, jobs):
        count = await jobs.discard(
            ids or None,
            reason=reason,
            queue=queue,
            kind=kind,
            tag=tag,
            tenant=tenant,
            key=key,
            fingerprint=fingerprint,
            all=everything,
        )
        if not count:
            await refuse_unknown(jobs, ids)
    tell(options, "were discarded", count)


@command(commands, "enqueue", json=ENQUEUED_FIELDS)
async def enqueue(
    options: Options,
    *,
    kind: Annotated[str, typer.Argument(metavar="KIND", help="The job's name.")],
    args: Annotated[
        str, typer.Option(help="Its arguments, a JSON object by name; `-` reads it from stdin.")
    ] = "{}",
    queue: Annotated[str | None, typer.Option(help="Where it waits.")] = None,
    priority: Annotated[int | None, typer.Option(min=1, max=9, help="1 runs first.")] = None,
    delay: Annotated[float | None, typer.Option(min=0, help="Seconds from now.")] = None,
    key: Annotated[str | None, typer.Option(help="What it is ordered or limited by.")] = None,
    unique: Annotated[str | None, typer.Option(help="One job of this key at a time.")] = None,
    max_attempts: Annotated[int | None, typer.Option(min=1, help="In all.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose it is.")] = None,
) -> None:
    """Enqueue a job.

    With the App named, its arguments are checked and its own options count. Without, it is stored as
    it is given.
    """
    from strandline.app.job_desk import enqueue_by_name
    from strandline.cli import output

    is_new: bool | None
    text = _arguments(sys.stdin.read() if args == "-" else args)
    async with job_desk(options) as (db, _):
        if db.app is None:
            op = enqueue_by_name(
                kind,
                text,
                queue=queue,
                priority=priority,
                delay=delay,
                key=key,
                unique_key=unique,
                max_attempts=max_attempts,
                tenant=tenant,
            )
            number, is_new = await db.pool.run(op), None
        else:
            call = _call(db, kind, text).with_(
                queue=queue,
                priority=priority,
                delay=delay,
                key=key,
                unique=unique,
                max_attempts=max_attempts,
                tenant=tenant,
            )
            ref = await db.app.enqueue(call)
            number, is_new = ref.id, ref.is_new
    if options.json:
        output.write_json({"id": number, "is_new": is_new})
    else:
        output.say(f"job {number} {'is there already' if is_new is False else 'is enqueued'}")


def _arguments(text: str) -> str:
    import msgspec

    from strandline.errors import InvalidInput

    try:
        msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise InvalidInput(f"--args is no JSON object such as '{{\"to\": 3}}': {error}") from error
    return text


def _call(db: Database, kind: str, args: str) -> Any:
    import msgspec

    from strandline.errors import EventFailure, InvalidInput

    assert db.app is not None
    job = db.app.kinds.get(kind)
    try:
        given, named = db.app.kinds.decode(kind, args)
    except (EventFailure, msgspec.MsgspecError, TypeError) as error:
        raise InvalidInput(f"these are no arguments of {kind}: {error}") from error
    return job.call(*given, **named)
