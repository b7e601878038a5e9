"""`strandline doctor`: looks at everything that can be wrong, and says what cures it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from strandline.cli.command import Options, command, group

if TYPE_CHECKING:
    from strandline.survey.finding import Finding

commands = group("Doctor.")

FIELDS = ("check", "outcome", "finding", "why", "cure", "runbook")
MARKS = {"ok": ("ok  ", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "red")}


@command(commands, "doctor", app="argument", json=FIELDS)
async def doctor(
    options: Options,
    *,
    sample: Annotated[
        int, typer.Option(min=0, help="Positions at the end of the log searched for odd types.")
    ] = 50_000,
) -> None:
    """Check server, tables, settings, mark, nodes, shards, letters, jobs; with MODULE:APP its types.

    Each finding is ok, warn or fail, with the reason, and the command or setting that cures it. Exit
    code 1 if one fails.
    """
    from strandline.cli import output
    from strandline.cli.checks import examined
    from strandline.cli.surveying import fields_of
    from strandline.survey.finding import FAIL, OK, WARN

    found = await examined(options, sample=sample)
    if options.json:
        output.write_json([fields_of(one) for one in found])
    else:
        for one in found:
            _write(one)
        counts = {kind: sum(one.outcome == kind for one in found) for kind in (OK, WARN, FAIL)}
        output.say(f"{counts[OK]} ok, {counts[WARN]} to look at, {counts[FAIL]} failed")
    if any(one.outcome == FAIL for one in found):
        raise typer.Exit(1)


def _write(one: Finding) -> None:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from strandline.cli import output

    mark, style = MARKS[one.outcome]
    grid = Table.grid(padding=(0, 1, 0, 0))
    text = Text(output.plain(f"{one.name}: {one.what}"), overflow="fold")
    grid.add_row(Text(mark, style=style), text)
    output.emit(grid)
    if one.outcome == "ok":
        return
    lines = [(one.why, ""), (f"cure: {one.cure}" if one.cure else "", "bold")]
    lines.append((f"more: docs/operate/runbooks/{one.runbook}.md" if one.runbook else "", "dim"))
    for line, style in lines:
        if line:
            told = Text(output.plain(line), style=style, overflow="fold")
            output.emit(Padding(told, (0, 0, 0, 5)))
