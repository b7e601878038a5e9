"""The command tree of `strandline`."""

from __future__ import annotations

import traceback
from typing import Annotated

import typer

from strandline import termination
from strandline.cli import (
    config,
    cron,
    demo,
    doctor,
    events,
    gaps,
    health,
    jobs,
    letters,
    migrate,
    node,
    nodes,
    projections,
    queues,
    rebuilding,
    streams,
    telemetry,
    top,
    versions,
    work,
)
from strandline.cli.command import DatabaseUrl, Debug, Schema

app = typer.Typer(
    name="strandline",
    help="Event store, projections and jobs on PostgreSQL.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("strandline"))
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    *,
    database_url: DatabaseUrl = None,
    schema: Schema = None,
    debug: Debug = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Event store, projections and jobs on PostgreSQL.

    Exit codes: 0 done; 1 failed, or a check found a fault; 2 wrong usage or set-up; 3 the database
    cannot be reached; 4 not found; 5 somebody else was first; 130 interrupted.
    """
    context.obj = {"database_url": database_url, "schema": schema, "debug": debug}


for part in (demo, node, doctor, top, health, config):
    app.registered_commands.extend(part.commands.registered_commands)
for part in (rebuilding, versions):
    projections.commands.registered_commands.extend(part.commands.registered_commands)
for name, one in {
    "migrate": migrate,
    "streams": streams,
    "events": events,
    "projections": projections,
    "letters": letters,
    "jobs": jobs,
    "queues": queues,
    "cron": cron,
    "gaps": gaps,
    "nodes": nodes,
    "work": work,
    "telemetry": telemetry,
}.items():
    app.add_typer(one.commands, name=name)


def main() -> None:
    """Run the command line. A node leaves at its end, whatever thread or task still hangs."""
    code = 1
    try:
        app(prog_name="strandline")
    except SystemExit as end:
        if termination.present() is None:
            raise
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        if termination.present() is None:
            raise
        traceback.print_exc()
    if termination.present() is not None:
        termination.leave(code)
