"""What every command has: the shared options, one event loop, errors as exit codes."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

F = TypeVar("F", bound=Callable[..., Any])

USAGE, UNAVAILABLE, NOT_FOUND, CONFLICT, FAILED = 2, 3, 4, 5, 1
INTERRUPTED = 130

DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        metavar="URL",
        help="PostgreSQL to use; else STRANDLINE_DATABASE_URL, else the app's embedded server.",
        show_default=False,
    ),
]
Schema = Annotated[
    str | None,
    typer.Option(
        "--schema", metavar="NAME", help="PostgreSQL schema of the tables.", show_default=False
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.", show_default=False)]
Json = Annotated[
    bool, typer.Option("--json", help="Write JSON and nothing else to stdout.", show_default=False)
]
AppOption = Annotated[
    str | None,
    typer.Option(
        "--app",
        metavar="MODULE:APP",
        envvar="STRANDLINE_APP",
        help="Where the App is declared; the working directory is searched too.",
        show_default=False,
        show_envvar=False,
    ),
]
AppArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODULE:APP]",
        envvar="STRANDLINE_APP",
        help="Where the App is declared, e.g. `shop.events:app` (or STRANDLINE_APP).",
        show_default=False,
        show_envvar=False,
    ),
]


@dataclass(frozen=True, slots=True)
class Options:
    """What a command was asked besides its own arguments."""

    app: str | None = None
    database_url: str | None = None
    schema: str | None = None
    json: bool = False
    debug: bool = False


def command(
    commands: typer.Typer,
    name: str,
    *,
    app: str = "option",
    database: bool = True,
    json: tuple[str, ...] | None = None,
) -> Callable[[F], F]:
    """Register ``function(options, **own)`` as command *name* of *commands*.

    Args:
        commands: The group it is listed in.
        name: What is typed.
        app: How MODULE:APP is given: ``"argument"``, ``"option"``, or ``""`` for not at all.
        database: Whether it takes ``--database-url`` and ``--schema``.
        json: The fields of each object that ``--json`` writes; None if it has no such option.
    """

    def register(function: F) -> F:
        shared = _shared(app, database=database, json=json is not None)
        own = list(inspect.signature(function).parameters.values())[1:]
        hints = get_type_hints(function, include_extras=True)

        def run(context: typer.Context, **given: Any) -> None:
            chosen = {one: given.pop(one) for one in shared}
            before = (context.find_root().obj or {}) if context.find_root() else {}
            asked = {one: chosen.get(one) or before.get(one) for one in _names()}
            options = Options(**{one: value for one, value in asked.items() if value is not None})
            with reported(debug=options.debug):
                outcome = function(options, **given)
                if inspect.iscoroutine(outcome):
                    run_async(outcome)

        parameters = [_keyword(one.name, hints[one.name], one.default) for one in own]
        if app == "argument":  # an argument stands before the others in the usage line
            parameters.insert(0, _keyword("app", AppArgument, None))
        parameters += [
            _keyword(one, kind, False if kind in (Json, Debug) else None)
            for one, kind in shared.items()
            if not (one == "app" and app == "argument")
        ]
        context = _keyword("context", typer.Context, inspect.Parameter.empty)
        run.__signature__ = inspect.Signature([context, *parameters])  # type: ignore[attr-defined]  # what Typer reads
        run.__annotations__ = {one.name: one.annotation for one in [context, *parameters]}
        run.__name__ = function.__name__
        run.__doc__ = function.__doc__
        run.json_fields = json  # type: ignore[attr-defined]  # for the reference and its test
        commands.command(name)(run)
        return function

    return register


def group(help_text: str) -> typer.Typer:
    """A group of commands."""
    return typer.Typer(help=help_text, no_args_is_help=True, rich_markup_mode=None)


def run_async(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run *coroutine* in an event loop of its own."""
    import asyncio

    return asyncio.run(coroutine)


@contextmanager
def reported(*, debug: bool) -> Iterator[None]:
    """Turn errors into one line on stderr and an exit code.

    Raises:
        Exit: With the code.
    """
    from strandline.errors import StrandlineError

    try:
        yield
        sys.stdout.flush()
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:  # `| head` has seen enough; Python would complain at its own end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(FAILED) from None
    except typer.Abort:
        complain("aborted: nothing was changed")
        raise typer.Exit(FAILED) from None
    except StrandlineError as error:
        if debug:
            raise
        complain(f"error: {error}")
        raise typer.Exit(exit_code(error)) from error
    except Exception as error:
        if _is_usage(error) or debug:
            raise
        complain(f"error: {type(error).__name__}: {error} (--debug shows the traceback)")
        raise typer.Exit(FAILED) from error


def exit_code(error: BaseException) -> int:
    """The exit code that tells scripts what kind of error it was."""
    from strandline import errors

    kinds: list[tuple[tuple[type[BaseException], ...], int]] = [
        ((errors.SetupError, errors.InvalidInput), USAGE),
        ((errors.Unavailable,), UNAVAILABLE),
        ((errors.NotFound,), NOT_FOUND),
        ((errors.ConflictError, errors.OwnershipLost), CONFLICT),
    ]
    return next((code for kind, code in kinds if isinstance(error, kind)), FAILED)


def confirm(question: str) -> None:
    """Ask on stderr, so that stdout stays clean.

    Raises:
        Abort: The answer is not yes, or nobody is there to answer.
    """
    print(f"{question} [y/N]: ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    if not answer:
        complain("nobody answers; --yes goes on without asking")
    if answer.strip().lower() not in ("y", "yes"):
        raise typer.Abort


def complain(text: str) -> None:
    """Write lines to stderr; what a name from the database holds cannot move the cursor."""
    from strandline.cli.output import plain

    lines = text.strip().split("\n")
    print("\n".join(map(plain, lines)), file=sys.stderr, flush=True)


def _shared(app: str, *, database: bool, json: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if app:
        found["app"] = AppArgument if app == "argument" else AppOption
    if json:
        found["json"] = Json
    if database:
        found |= {"database_url": DatabaseUrl, "schema": Schema}
    return {**found, "debug": Debug}


def _names() -> list[str]:
    return [one.name for one in fields(Options)]


def _keyword(name: str, kind: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _is_usage(error: Exception) -> bool:
    """Whether it is the command line library's own, which it writes by itself."""
    return hasattr(error, "exit_code") and hasattr(error, "format_message")
