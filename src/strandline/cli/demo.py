"""`strandline demo`: a repository's history into read models, on a server of its own, verified."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from strandline.cli.command import Options, command, group
from strandline.errors import SetupError

commands = group("Demo.")

NEXT = """
What to try next, in this folder:
  source .venv/bin/activate
  export STRANDLINE_APP=examples.gitledger.ledger:app
  strandline up                        the server and a node; then, in another terminal
  strandline projections list          where every read model is
  strandline streams tail              events as they come
  strandline gaps list                 numbers that no event has, and why that is proved
  strandline doctor                    what is wrong, in words
The code of it: examples/gitledger/ledger.py. How it works: docs/start/ten-minutes.md.
"""


@command(commands, "demo", app="")
def demo(
    options: Options,
    *,
    repo: Annotated[
        Path, typer.Option(help="A git repository; its history up to HEAD becomes events.")
    ] = Path(),
) -> None:
    """Event-source the history of a git repository, and check every read model against git.

    Starts an embedded PostgreSQL server (none with a database URL), imports, catches up, verifies.
    Exit code 1 if a read model differs from what git says.
    """
    sys.path.insert(0, str(Path.cwd()))
    try:
        ledger = importlib.import_module("examples.gitledger.run")
    except ModuleNotFoundError as error:
        raise SetupError(
            "the demo is part of the source: run it in a clone of strandline, where `make demo` is"
        ) from error
    told = ledger.main(repo, verify=True, database_url=options.database_url, next_steps=NEXT)
    raise typer.Exit(told)
