"""What can be set, raised or typed stands in the reference, and the reference is up to date."""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from strandline import errors
from strandline.settings import PREFIX, Settings

DOCS = Path(__file__).parents[2] / "docs"


def _generator() -> Any:
    """docs/generate.py, which is no part of any package."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR = _generator()
PAGES = GENERATOR.PAGES


@pytest.mark.parametrize("page", sorted(PAGES))
def test_a_generated_page_is_up_to_date(page: str) -> None:
    made = PAGES[page]()

    assert made == (DOCS / page).read_text(encoding="utf-8"), "run `make docs`"


def test_the_numbers_of_the_readme_are_the_recorded_ones() -> None:
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")

    assert GENERATOR.with_numbers(readme) == readme, "run `make docs`"


def test_the_numbers_of_job_queues_are_those_of_the_last_run() -> None:
    page = (DOCS / "compare/jobs.md").read_text(encoding="utf-8")

    assert GENERATOR.with_job_numbers(page) == page, "run `make docs`"


def test_every_setting_is_described() -> None:
    page = (DOCS / "reference/settings.md").read_text(encoding="utf-8")

    for one in fields(Settings):
        assert one.metadata["reason"], f"{one.name} has no reason"
        assert f"`{one.name}`" in page
        assert f"`{PREFIX}{one.name.upper()}`" in page


def test_every_error_is_described_and_stands_in_the_tree() -> None:
    page = (DOCS / "reference/errors.md").read_text(encoding="utf-8")
    tree = errors.__doc__ or ""

    for name, cls in _errors():
        assert inspect.getdoc(cls), f"{name} has no docstring"
        assert f"`{name}`" in page
        assert re.search(rf"^[\s│├└─]*{name}\b", tree, re.MULTILINE), f"{name} is not in the tree"


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    drawn = dict(_drawn(errors.__doc__ or ""))
    real = {name: cls.__mro__[1].__name__ for name, cls in _errors()}
    real["StrandlineError"] = ""

    assert drawn == real


def test_every_command_is_described() -> None:
    page = (DOCS / "reference/cli.md").read_text(encoding="utf-8")

    missing = [path for path in _commands() if path not in page]

    assert missing == []


def _errors() -> list[tuple[str, type[Any]]]:
    return [
        (name, one)
        for name, one in vars(errors).items()
        if isinstance(one, type) and issubclass(one, errors.StrandlineError)
    ]


def _drawn(tree: str) -> Iterator[tuple[str, str]]:
    """Name and parent of every error in the drawing."""
    above: list[str] = []
    for line in tree.splitlines():
        found = re.match(
            r"^    (?P<indent>(?:[│ ]   )*)(?P<branch>[├└]── )?(?P<name>[A-Z]\w+)", line
        )
        if found:
            depth = len(found["indent"]) // 4 + bool(found["branch"])
            del above[depth:]
            yield found["name"], above[-1] if above else ""
            above.append(found["name"])


def _commands() -> list[str]:
    import typer

    from strandline.cli.main import app

    return list(_below(typer.main.get_command(app), "strandline"))


def _below(command: Any, path: str) -> Iterator[str]:
    inner = getattr(command, "commands", None)
    if not inner:
        yield path
        return
    for name, one in sorted(inner.items()):
        if not one.hidden:
            yield from _below(one, f"{path} {name}")
