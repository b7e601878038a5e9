"""The command `strandline`: listens for signals first if it is to be a node, then imports the rest."""

from __future__ import annotations

import os
import sys

from strandline import termination

TYPE_CHECKING = False  # as type checkers know it; `typing` itself is slow to import
if TYPE_CHECKING:
    from collections.abc import Sequence

NODES = ("node", "up")  # commands that run until a signal
VALUED = ("--database-url", "--schema")  # options before the command that are followed by a value


def main() -> None:
    """Run the command line."""
    if chosen_command(sys.argv[1:]) in NODES:
        termination.install(hard=seconds("STRANDLINE_STOP_HARD", 28.0))
    from strandline.cli.main import main as run

    run()


def chosen_command(words: Sequence[str]) -> str:
    """The command among *words*; empty if there is none."""
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            return word
        if word in VALUED:
            next(rest, None)
    return ""


def seconds(variable: str, default: float) -> float:
    """The setting, as far as it is known this early; what is wrong with it is told later."""
    try:
        return max(0.1, float(os.environ.get(variable, default)))
    except ValueError:
        return default


if __name__ == "__main__":
    main()
