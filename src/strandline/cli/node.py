"""`strandline node` and `strandline up`: be a node until told to stop."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from strandline import termination
from strandline.cli.command import Options, command, complain, group
from strandline.errors import SetupError

if TYPE_CHECKING:
    from strandline.app import App
    from strandline.cluster.shutdown_report import ShutdownReport
    from strandline.settings import Settings
    from strandline.telemetry.signals import Notice

T = TypeVar("T")

commands = group("Nodes.")

log = logging.getLogger("strandline.node")

ModeOption = Annotated[
    str | None,
    typer.Option(
        metavar="cluster|follower|solo",
        help="Share the work, share it and never lead, or run everything here.",
    ),
]
QueuesOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME[=JOBS],...",
        help="Queues it works, with jobs at once; else those of the App's jobs. none: no queue.",
    ),
]


@command(commands, "node", app="argument")
def be_node(
    options: Options,
    *,
    name: Annotated[
        str | None, typer.Option(help="Stable name: a restarted node gets its work back.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="WORD", help="A label it offers; may be repeated.")
    ] = None,
    capacity: Annotated[
        float | None, typer.Option(metavar="NUMBER", help="Share of the work it takes; 1 is usual.")
    ] = None,
    never_lead: Annotated[
        bool, typer.Option("--never-lead", help="It never leads the cluster.")
    ] = False,
    pulse: Annotated[
        str | None,
        typer.Option(
            metavar="process|thread|loop",
            help="What speaks for it; process if nothing else is set.",
        ),
    ] = None,
    mode: ModeOption = None,
    queues: QueuesOption = None,
) -> None:
    """Run the App's projections, subscriptions and jobs until SIGTERM or Ctrl-C.

    Stops in bounded steps: it leaves the cluster, every shard finishes its batch under way, jobs end or
    are given back, within `stop_timeout` seconds in all. A second signal leaves `stop_fast` seconds, a third none.

    Exit codes: 0 stopped cleanly; 3 a step of the stop failed, or the database could not be reached
    at the start (later outages are waited out); 70 ended by force, since it hung; 75 declared dead,
    with `on_evicted=exit`; 1 ended by force, and even that was blocked; 130 third signal.
    """
    from strandline.cli.connect import chosen_app, need_app

    told = termination.present() or termination.install()
    if told.reason:  # told to stop during the imports
        raise typer.Exit(0)
    app = need_app(chosen_app(options))
    app.settings = _with_options(
        app.settings,
        name=name,
        labels=label,
        capacity=capacity,
        never_lead=never_lead,
        pulse=pulse,
        mode=mode,
        queues=queues,
    )
    log_to_stderr(app.settings.log_level)
    raise typer.Exit(run_until_done(_live(app, lambda: _announce(app))).exit_code)


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

    told = termination.present() or termination.install()
    if told.reason:
        raise typer.Exit(0)
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
    life = _live(opened, lambda: _tell(opened, options, runs=runs), runs=runs)
    raise typer.Exit(run_until_done(life).exit_code)


async def _live(app: App, announce: Callable[[], None], *, runs: bool = True) -> ShutdownReport:
    """Be a node, or only keep the server up, until told to stop; then stop and close."""

    def hear(notice: Notice) -> None:
        if notice.name == "started":
            announce()

    end = app.signals.listen(hear)
    try:
        return await (app.run() if runs else _keep_open(app, announce))
    finally:
        end()


async def _keep_open(app: App, announce: Callable[[], None]) -> ShutdownReport:
    from strandline.cluster.shutdown import Shutdown, Step
    from strandline.cluster.until_told import until_told

    settings = app.settings
    told = termination.install(hard=settings.stop_hard, fast=settings.stop_fast)
    shutdown = Shutdown(
        total=settings.stop_timeout,
        reserve=settings.stop_reserve,
        fast=settings.stop_fast,
        signals=app.signals,
        hurry=lambda: told.count,
    )
    told.last_words = shutdown.last_words
    shutdown.part(Step("close", app.close, cap=settings.stop_timeout))

    async def opened() -> None:
        await app.open()
        announce()

    return await until_told(opened, told.wait, shutdown, began=lambda: told.told_at)


def run_until_done(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run *coroutine* to its end, on uvloop, or on asyncio where there is none.

    Not ``asyncio.run``: that waits for every task and thread that is left. And what user code does
    to the loop, by ``sys.exit`` in a task or by ``loop.stop``, is a request to stop, not the end.
    """
    loop = _new_loop()
    asyncio.set_event_loop(loop)
    task = loop.create_task(coroutine, name="strandline:node")
    while not task.done():
        try:
            loop.run_until_complete(task)
        except (SystemExit, KeyboardInterrupt, RuntimeError) as error:
            if task.done():
                break
            log.warning("the event loop was stopped by %r: this node stops", error)
            told = termination.present() or termination.install()
            told.ask(f"event loop stopped: {type(error).__name__}")
    return task.result()


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


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


def _with_options(
    settings: Settings,
    *,
    name: str | None,
    labels: list[str] | None,
    capacity: float | None,
    never_lead: bool,
    pulse: str | None,
    mode: str | None,
    queues: str | None,
) -> Settings:
    """*settings* with what was typed in their place."""
    return replace(
        settings,
        node_name=settings.node_name if name is None else name,
        node_labels=",".join(labels) if labels else settings.node_labels,
        node_capacity=settings.node_capacity if capacity is None else capacity,
        leader_priority=-1 if never_lead else settings.leader_priority,
        pulse=pulse or settings.pulse or "process",
        mode=mode or settings.mode,
        queues=settings.queues if queues is None else queues,
    )


def _announce(app: App) -> None:
    shards, jobs = len(app.registry.shards()), len(list(app.kinds.names))
    more = f" and {jobs} kinds of jobs" if jobs else ""
    complain(
        f"node {app.node_name} is up, its code runs {shards} shards{more};"
        " SIGTERM or Ctrl-C stops it"
    )


def _tell(app: App, options: Options, *, runs: bool) -> None:
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
    if runs:
        output.say(f"Node {app.node_name} runs. In another terminal:")
    else:
        output.say("No node runs, for no App was named. In another terminal:")
        output.say(f"  strandline node {reference}")
    output.say(f"  strandline projections list {reference}")
    output.say("  strandline events list")
    output.say(f"  strandline doctor {reference}")
    output.say("Ctrl-C stops it.")
    sys.stdout.flush()
