"""Renders docs/reference/cli.md from the command tree: `python -m strandline.cli.reference`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import typer

TOP = """# Command line

Made from the commands themselves by `make docs`; a test keeps it in step.

`strandline COMMAND --help` shows the same. `strandline --install-completion` teaches the shell to
complete commands and options. `MODULE:APP` names your App, e.g. `shop.events:app`; the environment
variable `STRANDLINE_APP` does so once for all. The module alone is enough if it has one App.

**Which database.** `--database-url`, else `STRANDLINE_DATABASE_URL` or what the App sets, else the
App's embedded server. A command that only looks never makes a new server: `strandline up` does.

**JSON.** With `--json` a command writes an array of objects to stdout and nothing else (`streams tail`,
`nodes log --follow` and `up`: one object a line). The fields are stable; new ones may be added. Times are ISO 8601 in UTC,
lengths of time seconds. Logs, questions and progress go to stderr.

**Exit codes.** 0 done; 1 failed, or a check found a fault; 2 wrong usage or set-up; 3 the database
cannot be reached; 4 not found; 5 somebody else was first; 130 interrupted.

Every command takes `--debug`, which shows tracebacks. Commands that use the database take
`--database-url URL` and `--schema NAME`, here or before the command. Colours follow the terminal and
`NO_COLOR`.
"""

EVERYWHERE = {"--help", "--debug", "--database-url", "--schema", "--json", "--app"}


def markdown() -> str:
    """The page."""
    from strandline.cli.main import app

    tree = typer.main.get_command(app)
    return TOP + "".join(_pages(tree, "strandline"))


def _pages(command: Any, path: str) -> Iterator[str]:
    for name, one in sorted(getattr(command, "commands", {}).items()):
        if getattr(one, "commands", None):
            yield from _pages(one, f"{path} {name}")
        else:
            yield _page(one, f"{path} {name}")


def _page(command: Any, path: str) -> str:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option"]
    usage = " ".join([path, *(_placeholder(one) for one in arguments)])
    lines = [f"\n## `{usage}`\n", _reflowed(inspect.cleandoc(command.help or ""))]
    items = [f"- `{_placeholder(one)}`: {one.help}" for one in arguments if one.help]
    items += [_option(one) for one in options if not EVERYWHERE.intersection(one.opts)]
    if any("--app" in one.opts for one in options):
        items.append("- `--app MODULE:APP`: Where the App is declared (or `STRANDLINE_APP`).")
    if items:
        lines += ["", *items]
    shape = getattr(inspect.unwrap(command.callback), "json_fields", None)
    if shape:
        lines += ["", "`--json`: " + ", ".join(f"`{one}`" for one in shape) + "."]
    return "\n".join(lines) + "\n"


def _placeholder(one: Any) -> str:
    found = one.metavar or one.name.upper()
    return str(found)


def _option(one: Any) -> str:
    names = ", ".join([*one.opts, *one.secondary_opts])
    value = "" if one.is_flag else f" {one.metavar or one.name.upper()}"
    default = ""
    if not one.is_flag and one.default not in (None, "", ()) and not callable(one.default):
        default = f" Default: {one.default}."
    return f"- `{names}{value}`: {one.help}{default}"


def _reflowed(text: str) -> str:
    """Paragraphs as they are, without the hard blanks the help formatter leaves."""
    return re.sub(r"[ \t]+\n", "\n", text)


if __name__ == "__main__":
    print(markdown(), end="")
