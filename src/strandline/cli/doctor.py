"""`strandline doctor`: looks at everything that can be wrong, and says what cures it."""

from __future__ import annotations

from typing import Annotated

import typer

from strandline.cli.command import Options, command, group

commands = group("Doctor.")


@command(commands, "doctor", app="argument", json=("check", "outcome", "finding", "cure"))
async def doctor(
    options: Options,
    *,
    sample: Annotated[
        int, typer.Option(min=0, help="Positions at the end of the log searched for odd types.")
    ] = 50_000,
) -> None:
    """Check server, tables, numbering, high-water mark, jobs; with MODULE:APP its shards and types.

    Each finding is ok, warn or fail, with the command or setting that cures it. Exit code 1 if one
    fails.
    """
    from strandline.cli import output
    from strandline.cli.checks import examined
    from strandline.cli.finding import FAIL, OK, WARN

    found = await examined(options, sample=sample)
    if options.json:
        fields = ("check", "outcome", "finding", "cure")
        output.write_json([output.fields_of(one, fields) for one in found])
    else:
        marks = {OK: ("ok  ", "green"), WARN: ("warn", "yellow"), FAIL: ("FAIL", "red")}
        for one in found:
            _write(*marks[one.outcome], f"{one.check}: {one.finding}", one.cure)
        counts = {kind: sum(one.outcome == kind for one in found) for kind in (OK, WARN, FAIL)}
        output.say(f"{counts[OK]} ok, {counts[WARN]} to look at, {counts[FAIL]} failed")
    if any(one.outcome == FAIL for one in found):
        raise typer.Exit(1)


def _write(mark: str, style: str, text: str, cure: str) -> None:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from strandline.cli import output

    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_row(Text(mark, style=style), Text(output.plain(text), overflow="fold"))
    output.emit(grid)
    if cure:
        hint = Text(f"cure: {output.plain(cure)}", style="bold", overflow="fold")
        output.emit(Padding(hint, (0, 0, 0, 5)))
