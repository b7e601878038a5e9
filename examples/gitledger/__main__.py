"""``python -m examples.gitledger REPO [--verify]``: a repository's history as a ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from examples.gitledger.run import main as run


def main(
    repo: Annotated[Path, typer.Argument(help="A git repository; a bare one will do.")] = Path(),
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare every read model with git; 1 if one differs.")
    ] = False,
) -> None:
    """Event-source the history of REPO and show its read models."""
    raise typer.Exit(run(repo, verify=verify))


if __name__ == "__main__":
    typer.run(main)
