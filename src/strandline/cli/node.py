"""`strandline node` and `strandline up`: be a node until told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Annotated, Any

import typer

from strandline.cli.command import Options, command, complain, group
from strandline.errors import SetupError

if TYPE_CHECKING:
    from strandline.app import App

commands = group("Nodes.")


@command(commands, "node", app="argument")
def be_node(options: Options) -> None:
    """Run the App's projections and subscriptions until SIGTERM or Ctrl-C.

    Stops cleanly: every shard finishes its batch under way, within `stop_timeout` seconds. A
    database that cannot be reached at the start is an error (exit code 3); later outages are waited
    out.
    """
    from strandline.cli.connect import chosen_app, need_app

    app = need_app(chosen_app(options))
    log_to_stderr(app.settings.log_level)
    run_fast(live(app, lambda: _announce(app)))


@command(commands, "up", app="argument", json=("url", "folder", "app"))
def up(
    options: Options,
    *,
    name: Annotated[
        str, typer.Option(help="Names the server's folder when there is no MODULE:APP.")
    ] = "app",
) -> None:
    """Start an embedded PostgreSQL server and, with MODULE:APP, a node; until Ctrl-C.

    The server is private to this user, keeps its data in a folder of its own, and is shared with
    other processes of the same App. With a database URL set no server is started, only the node.
    """
    from strandline.app import App
    from strandline.cli.connect import chosen_app

    app = chosen_app(options)
    runs = app is not None
    if app is None:
        given = {"database_url": options.database_url, "schema": options.schema}
        app = App(name, **given)
        if app.settings.database_url:
            raise SetupError(
                "there is nothing to start: the database is set already; name your App"
                " (`strandline up MODULE:APP`) to run its node"
            )
    log_to_stderr(app.settings.log_level if runs else "WARNING")
    opened = app
    run_fast(live(opened, lambda: _tell(opened, options, runs=runs), runs=runs))


async def live(app: App, announce: Callable[[], Awaitable[None]], *, runs: bool = True) -> None:
    """Open *app*, run its shards if *runs*, until a signal; then stop and close."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)
    for one in signals:
        loop.add_signal_handler(one, told.set)
    try:
        opening = asyncio.ensure_future(app.open())
        waiting = asyncio.ensure_future(told.wait())
        await asyncio.wait({opening, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not opening.done():  # told to stop before the database answered
            opening.cancel()
            await asyncio.wait({opening})
            return
        opening.result()
        try:
            if runs:
                await app.start()
            await announce()
            await waiting
            await app.stop()
        finally:
            await app.close()
    finally:
        for one in signals:
            loop.remove_signal_handler(one)


def run_fast(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run *coroutine* on uvloop, or on asyncio where there is none."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(coroutine)
    else:
        uvloop.run(coroutine)


def log_to_stderr(level: str) -> None:
    """Write the log of strandline to stderr.

    Raises:
        SetupError: There is no such level.
    """
    known = logging.getLevelNamesMapping()
    if level.upper() not in known:
        raise SetupError(f"setting log_level={level!r}: one of {', '.join(known)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logger = logging.getLogger("strandline")
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    # What is tried again is logged by us; stamina's own words would come without context.
    logging.getLogger("stamina").addHandler(logging.NullHandler())


async def _announce(app: App) -> None:
    complain(
        f"node {app.node_name} runs {len(app.registry.shards())} shards; SIGTERM or Ctrl-C stops it"
    )


async def _tell(app: App, options: Options, *, runs: bool) -> None:
    from strandline.cli import output
    from strandline.postgres.embedded import Embedded

    own = not app.settings.database_url
    folder = (
        str(Embedded(app.settings.embedded_folder(app.name), app=app.name).folder) if own else None
    )
    if options.json:
        facts = {"url": app.url, "folder": folder, "app": options.app if runs else None}
        output.write_json_line(facts)
        return
    if own:
        output.say(f"PostgreSQL is up in {folder}")
        output.say("Other commands and programs reach it with")
        output.console().print(
            f"  export STRANDLINE_DATABASE_URL={app.url}", markup=False, soft_wrap=True
        )
    reference = options.app or "MODULE:APP"
    shards = len(app.registry.shards())
    if runs:
        output.say(f"Node {app.node_name} runs {shards} shards. In another terminal:")
    else:
        output.say("No node runs, for no App was named. In another terminal:")
        output.say(f"  strandline node {reference}")
    output.say(f"  strandline projections list {reference}")
    output.say("  strandline events list")
    output.say(f"  strandline doctor {reference}")
    output.say("Ctrl-C stops it.")
    sys.stdout.flush()
