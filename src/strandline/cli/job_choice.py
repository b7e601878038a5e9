"""How jobs are chosen on the command line, and the desk that does something with them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from strandline.cli.command import Options, complain, confirm
from strandline.errors import InvalidInput, JobNotFound

if TYPE_CHECKING:
    from strandline.app.job_desk import Jobs
    from strandline.cli.connect import Database


class State(StrEnum):
    """What a job is."""

    AVAILABLE = "available"
    SCHEDULED = "scheduled"
    RETRYABLE = "retryable"
    RUNNING = "running"
    BLOCKED = "blocked"
    DEAD = "dead"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    DISCARDED = "discarded"


Ids = Annotated[
    list[int] | None, typer.Argument(metavar="[ID]...", help="Of jobs, as `list` shows them.")
]
QueueOption = Annotated[str | None, typer.Option("--queue", help="Of this queue.")]
KindOption = Annotated[str | None, typer.Option("--kind", help="Of this kind.")]
TagOption = Annotated[str | None, typer.Option("--tag", help="With this tag.")]
TenantOption = Annotated[str | None, typer.Option("--tenant", help="Of this tenant.")]
KeyOption = Annotated[str | None, typer.Option("--key", help="Of this key.")]
StateOption = Annotated[State | None, typer.Option("--state", help="In this state.")]
FingerprintOption = Annotated[
    str | None, typer.Option("--fingerprint", help="Dead jobs that failed like this.")
]
AllOption = Annotated[bool, typer.Option("--all", help="Every one.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@asynccontextmanager
async def job_desk(options: Options) -> AsyncIterator[tuple[Database, Jobs]]:
    """The jobs of the chosen database; through the App, open, if one is named."""
    from strandline.app.job_desk import Jobs
    from strandline.cli.connect import database
    from strandline.jobs.control import Control
    from strandline.jobs.waking import Wakes
    from strandline.postgres.listener import Notifier
    from strandline.telemetry.signals import Signals

    async with database(options) as db:
        if db.app is not None:
            db.app.settings = replace(db.app.settings, database_url=db.url, migrate_at_start=False)
            async with db.app as app:
                yield db, app.jobs
            return
        signals = Signals()
        notifier = Notifier(db.pool, db.settings)
        wakes = Wakes(db.pool, db.settings, signals)
        try:
            control = Control(db.pool, notifier, signals, on_available=wakes.enqueued)
            yield db, Jobs(db.pool, control)
        finally:
            await notifier.stop()
            await wakes.stop()


def chosen(ids: list[int] | None, *, everything: bool, **words: str | None) -> list[str]:
    """What was chosen, in words; none: all of them.

    Raises:
        InvalidInput: Nothing was, and not ``--all`` either.
    """
    found = [f"{len(ids)} by id"] if ids else []
    found += [f"{name} {value}" for name, value in words.items() if value is not None]
    if not found and not everything:
        raise InvalidInput(f"which jobs? Give ids, --{', --'.join(words)} or --all")
    return found


def ask(what: str, which: list[str]) -> None:
    """Ask whether jobs are to be *what*.

    Raises:
        Abort: They are not.
    """
    complain(f"jobs will be {what}: {', '.join(which) or 'all of them'}")
    confirm("Go on?")


async def refuse_unknown(jobs: Jobs, ids: list[int] | None) -> None:
    """Look why nothing has changed.

    Raises:
        JobNotFound: None of *ids* is a job.
    """
    error: JobNotFound | None = None
    for number in ids or ():
        try:
            await jobs.get(number)
        except JobNotFound as unknown:
            error = unknown
        else:
            return
    if error is not None:
        raise error


def tell(options: Options, what: str, changed: int, asked: int | None = None) -> None:
    """Tell how many it were."""
    from strandline.cli import output

    if options.json:
        more = {} if asked is None else {"asked": asked}
        output.write_json({"changed": changed, **more})
    else:
        output.say(f"{changed:,} {what}")
