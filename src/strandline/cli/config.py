"""`strandline config`: every setting, its value, where that came from, and why it exists."""

from __future__ import annotations

import os
import re
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from strandline.cli.command import Options, command, group

if TYPE_CHECKING:
    pass

commands = group("Settings.")

FIELDS = ("name", "value", "source", "default", "reason")


@command(commands, "config", app="argument", json=FIELDS)
def config(
    options: Options,
    *,
    toml: Annotated[
        Path | None,
        typer.Option(help="Read [tool.strandline] of this file.", exists=True, dir_okay=False),
    ] = None,
) -> None:
    """Show every setting: its value, where that came from, and why it exists.

    Arguments win over the environment, that over TOML. With MODULE:APP the settings of that App:
    what it sets in code or by its own TOML file has the source `app`. Passwords are not shown.
    """
    from rich.text import Text

    from strandline.cli import output

    rows = settings_rows(options, toml)
    if options.json:
        output.write_json(rows)
        return
    for row in rows:
        style = "dim" if row["source"] == "default" else "green"
        output.emit(
            Text.assemble(
                (row["name"], "bold"),
                f" = {output.plain(_shown(row['value']))}  ",
                (f"[{row['source']}]", style),
                overflow="fold",
            )
        )
        output.emit(Text(f"    {row['reason']}"))


def settings_rows(options: Options, toml: Path | None) -> list[dict[str, Any]]:
    """All settings in order of declaration, as ``--json`` writes them."""
    from strandline.cli.connect import chosen_app
    from strandline.settings import PREFIX, Settings, load

    arguments = {"database_url": options.database_url, "schema": options.schema}
    app = chosen_app(options)
    without = load(environment={}, toml=toml)
    outside = load(toml=toml)
    settings = app.settings if app is not None else load(arguments, toml=toml)
    rows = []
    for one in fields(Settings):
        value, default = getattr(settings, one.name), one.default
        if arguments.get(one.name) is not None:
            source = "argument"
        elif app is not None and value != getattr(outside, one.name):
            source = "app"
        elif PREFIX + one.name.upper() in os.environ:
            source = "environment"
        elif getattr(without, one.name) != default:
            source = f"TOML ({toml})"
        else:
            source = "default"
        rows.append(
            {
                "name": one.name,
                "value": hidden(value),
                "source": source,
                "default": default,
                "reason": one.metadata["reason"],
            }
        )
    return rows


def hidden(value: Any) -> Any:
    """*value* without the password, if it is a URL or DSN that has one."""
    if not isinstance(value, str):
        return value
    value = re.sub(r"(?<=://)([^:/@\s]*):[^@\s]*@", r"\1:***@", value)
    return re.sub(r"((?:^|[?&\s])(?:ssl)?password=)[^&\s]*", r"\1***", value, flags=re.IGNORECASE)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if value == "":
        return "(empty)"
    return f"{value:,}" if isinstance(value, int) else str(value)
