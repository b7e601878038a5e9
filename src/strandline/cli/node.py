"""`strandline node` and `strandline up`: be a node until told to stop."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from strandline import termination
from strandline.cli.command import Options, command, complain, group
from strandline.errors import SetupError
from strandline.telemetry.journal import Journal

if TYPE_CHECKING:
    from strandline.app import App
    from strandline.cluster.shutdown_report import ShutdownReport
    from strandline.settings import Settings
    from strandline.telemetry.signals import Notice

T = TypeVar("T")

commands = group("Nodes.")

log = Journal("strandline.node")

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
LogFormatOption = Annotated[
    str | None,
    typer.Option(metavar="console|json", help="The log on stderr: lines for people, or JSON."),
]
OpsPortOption = Annotated[
    int | None,
    typer.Option(metavar="PORT", help="Port of health checks and /metrics; 0: any free, -1: none."),
]
OpsHostOption = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Where it listens; 0.0.0.0 for probes from outside."),
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
    ops_port: OpsPortOption = None,
    ops_host: OpsHostOption = None,
    log_format: LogFormatOption = None,
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
        labels=label,
        never_lead=never_lead,
        node_name=name,
        node_capacity=capacity,
        pulse=pulse or None,
        mode=mode or None,
        queues=queues,
        ops_port=ops_port,
        ops_host=ops_host,
        log_format=log_format,
    )
    log_to_stderr(app.settings.log_level, app.settings.log_format)
    raise typer.Exit(_run(app, lambda: _announce(app)).exit_code)


@command(commands, "up", app="argument", json=("url", "folder", "app"))
def up(
    options: Options,
    *,
    name: Annotated[
        str, typer.Option(help="Names the server's folder when there is no MODULE:APP.")
    ] = "app",
    log_format: LogFormatOption = None,
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
    if log_format is not None:
        app.settings = replace(app.settings, log_format=log_format)
    log_to_stderr(app.settings.log_level if runs else "WARNING", app.settings.log_format)
    opened = app
    report = _run(opened, lambda: _tell(opened, options, runs=runs), runs=runs)
    raise typer.Exit(report.exit_code)


def _run(app: App, announce: Callable[[], None], *, runs: bool = True) -> ShutdownReport:
    from strandline.telemetry.otlp import exporting

    with exporting(app.name, app.node_name) if runs else nullcontext():
        return run_until_done(_live(app, announce, runs=runs))


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
            log.tell("event_loop_stopped", error=error)
            told = termination.present() or termination.install()
            told.ask(f"event loop stopped: {type(error).__name__}")
    return task.result()


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def log_to_stderr(level: str, log_format: str = "console") -> None:
    """Write the log of strandline to stderr; the root logger is left alone.

    Raises:
        SetupError: There is no such level.
    """
    from strandline.telemetry.log_format import formatter

    known = logging.getLevelNamesMapping()
    if level.upper() not in known:
        raise SetupError(f"setting log_level={level!r}: one of {', '.join(known)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(log_format))
    logger = logging.getLogger("strandline")
    logger.addHandler(handler)
    logger.setLevel(level.upper())


def _with_options(
    settings: Settings, *, labels: list[str] | None, never_lead: bool, **typed: Any
) -> Settings:
    """*settings* with what was typed in their place; None was not typed."""
    given = {name: value for name, value in typed.items() if value is not None}
    given.setdefault("pulse", settings.pulse or "process")
    if labels:
        given["node_labels"] = ",".join(labels)
    if never_lead:
        given["leader_priority"] = -1
    return replace(settings, **given)


def _announce(app: App) -> None:
    shards, jobs = len(app.registry.shards()), len(list(app.kinds.names))
    if app.settings.log_format == "json":
        log.tell("node_up", node=app.node_name, shards=shards, kinds=jobs)
        return
    more = f" and {jobs} kinds of jobs" if jobs else ""
    complain(
        f"node {app.node_name} is up, its code runs {shards} shards{more};"
        f" SIGTERM or Ctrl-C stops it{_at(app)}"
    )


def _at(app: App) -> str:
    return f"\nhealth checks and metrics are at {app.ops.url}" if app.ops.url else ""


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
