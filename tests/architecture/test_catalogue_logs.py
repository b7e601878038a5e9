"""What is logged stands in the catalogue, and what stands there is logged."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from strandline.cli.main import app as cli
from strandline.telemetry.catalogue import (
    ATTRIBUTES,
    LOG_EVENTS,
    LOG_FIELDS,
    LOG_GROUPS,
    LogEvent,
)
from strandline.telemetry.journal import RESERVED

SOURCE = Path(__file__).parents[2] / "src/strandline"
OF_TELL = {"level", "trace"}  # arguments, not fields
MAY_USE_LOGGERS = {"telemetry/journal.py", "cli/node.py"}
MADE_FROM_ERRORS = {"error_text"}  # the journal's own
COMMAND = re.compile(r"`strandline ([^`]+)`")
ALL = [one for group in LOG_GROUPS.values() for one in group]


@dataclass(frozen=True)
class Told:
    """One call of a journal in the source."""

    place: str
    events: tuple[str, ...]
    fields: frozenset[str]


def shown_in(event: LogEvent) -> list[str]:
    """Names of the fields in the message."""
    return re.findall(r"%\((\w+)\)", event.message)


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "Journal(" in text or "logging" in text:
            yield str(path.relative_to(SOURCE)), ast.parse(text)


def journals(tree: ast.Module) -> set[str]:
    """Names of the journals of a module."""
    return {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign) and _calls(node.value, "Journal")
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _calls(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name


def _is_tell(node: ast.AST, names: set[str]) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and node.attr == "tell"
        and isinstance(node.value, ast.Name)
        and node.value.id in names
    )


def _literals(node: ast.expr) -> tuple[str, ...]:
    if isinstance(node, ast.IfExp):
        return _literals(node.body) + _literals(node.orelse)
    assert isinstance(node, ast.Constant) and isinstance(node.value, str), ast.unparse(node)
    return (node.value,)


def told_in(place: str, tree: ast.Module) -> list[Told]:
    """Every call of a journal; fails where the event or a field cannot be read off."""
    names, found, seen = journals(tree), [], 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in names and isinstance(node.ctx, ast.Load):
            seen += 1
        if not isinstance(node, ast.Call):
            continue
        args = node.args
        if args and _is_tell(args[0], names):  # passed on: `_quietly(log.tell, "event", ...)`
            args = args[1:]
        elif not _is_tell(node.func, names):
            continue
        where = f"{place}:{node.lineno}"
        assert len(args) == 1, f"{where}: one event, and keywords"
        assert all(one.arg for one in node.keywords), f"{where}: fields are written out"
        fields = frozenset(one.arg or "" for one in node.keywords) - OF_TELL
        found.append(Told(where, _literals(args[0]), fields))
    assert seen == len(found), f"{place}: a journal is used for something else than `tell`"
    return found


TOLD = [one for place, tree in trees() for one in told_in(place, tree)]


def test_every_event_that_is_told_is_in_the_catalogue() -> None:
    unknown = [(one.place, name) for one in TOLD for name in one.events if name not in LOG_EVENTS]

    assert unknown == []


def test_every_event_of_the_catalogue_is_told_somewhere() -> None:
    told = {name for one in TOLD for name in one.events}

    assert sorted(set(LOG_EVENTS) - told) == []


def test_the_fields_that_are_told_are_those_of_the_catalogue() -> None:
    wrong = [
        (one.place, name, sorted(one.fields), sorted(wanted))
        for one in TOLD
        for name in one.events
        if name in LOG_EVENTS
        and one.fields != (wanted := {*shown_in(LOG_EVENTS[name]), *LOG_EVENTS[name].fields})
    ]

    assert wrong == []


def test_nothing_is_logged_past_the_journal() -> None:
    past = [
        f"{place}:{node.lineno}"
        for place, tree in trees()
        if place not in MAY_USE_LOGGERS
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "logging"
        and node.attr in {"getLogger", "debug", "info", "warning", "error", "exception", "log"}
    ]

    assert past == []


def test_every_field_is_described_once() -> None:
    used = {name for one in ALL for name in (*shown_in(one), *one.fields)} | MADE_FROM_ERRORS

    assert sorted(used - set(ATTRIBUTES) - set(LOG_FIELDS)) == []
    assert sorted(set(LOG_FIELDS) & set(ATTRIBUTES)) == []
    assert sorted(set(LOG_FIELDS) - used) == []
    assert [one.name for one in LOG_FIELDS.values() if not one.meaning] == []


def test_no_field_has_the_name_of_something_else_of_a_record() -> None:
    assert sorted({name for one in ALL for name in (*shown_in(one), *one.fields)} & RESERVED) == []


def test_the_names_of_events_are_words_and_come_once() -> None:
    assert [name for name in LOG_EVENTS if not re.fullmatch(r"[a-z]+(_[a-z]+)*", name)] == []
    assert [name for name, times in Counter(one.name for one in ALL).items() if times > 1] == []


@pytest.mark.parametrize("event", ALL, ids=lambda one: one.name)
def test_a_message_is_a_template_that_can_be_filled_in(event: LogEvent) -> None:
    holes = re.findall(r"%\((\w+)\)[#0 +-]?\d*(?:\.\d+)?([sdrgfx])", event.message)

    assert event.message
    assert event.message.count("%") == len(holes), "every % begins %(name)"
    assert event.severity > 0
    assert not set(event.fields) & {name for name, _ in holes}, "shown, so no further field"
    values: dict[str, Any] = {name: "x" if how in "sr" else 1 for name, how in holes}
    assert event.message % values


def test_every_command_that_a_meaning_names_exists() -> None:
    root = typer.main.get_command(cli)
    words = [
        found.split()
        for one in ALL
        for text in (one.message, one.meaning)
        for found in COMMAND.findall(text)
    ]

    assert words
    assert [found for found in words if not _exists(root, found)] == []


def _exists(command: click.Command, words: list[str]) -> bool:
    for word in words:
        if not isinstance(command, click.Group):
            return True  # what is left are arguments
        found = command.commands.get(word)
        if found is None:
            return False
        command = found
    return not isinstance(command, click.Group)
