"""The package imports nothing slow by itself, and its names are there all the same."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import strandline
from strandline.__main__ import NODES, VALUED, chosen_command
from strandline.cli.main import app


def fresh(code: str) -> Any:
    """What *code* prints as JSON in a new process."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    return json.loads(done.stdout)


def test_the_package_imports_no_driver_and_no_event_loop() -> None:
    loaded = fresh("import sys, json, strandline; print(json.dumps(list(sys.modules)))")

    assert {one for one in loaded if one.startswith("strandline")} == {
        "strandline",
        "strandline.errors",
    }
    assert {"asyncpg", "asyncio", "typing", "msgspec", "typer"} & set(loaded) == set()


def test_a_node_hears_signals_before_the_rest_is_imported() -> None:
    code = """
import json, signal, sys, types
sys.argv = ["strandline", "--schema", "up", "node", "shop:app"]
rest = types.ModuleType("strandline.cli.main")
def main():
    handler = signal.getsignal(signal.SIGTERM)
    print(json.dumps([handler.__qualname__, list(sys.modules)]))
rest.main = main
cli = types.ModuleType("strandline.cli")
sys.modules |= {"strandline.cli": cli, "strandline.cli.main": rest}
from strandline.__main__ import main
main()
"""

    handler, loaded = fresh(code)

    assert handler == "Termination.handle"
    assert {"asyncpg", "asyncio", "typing", "typer"} & set(loaded) == set()


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["node", "shop:app"], "node"),
        (["--database-url", "node", "streams", "list"], "streams"),
        (["--database-url=x", "--debug", "up"], "up"),
        (["streams", "list", "node"], "streams"),
        (["--schema"], ""),
        ([], ""),
    ],
)
def test_the_command_is_found_without_the_command_line_library(
    words: list[str], command: str
) -> None:
    assert chosen_command(words) == command


def test_the_options_with_a_value_are_known() -> None:
    root: Any = get_command(app)

    valued = {
        name
        for one in root.params
        if not one.is_flag and not one.is_eager
        for name in one.opts
        if name.startswith("--")
    }

    assert valued == set(VALUED)
    assert set(NODES) <= set(root.commands)


def test_type_checkers_and_python_import_the_same_names() -> None:
    tree = ast.parse(Path(strandline.__file__).read_text(encoding="utf-8"))
    (block,) = [
        one
        for one in tree.body
        if isinstance(one, ast.If) and ast.unparse(one.test) == "TYPE_CHECKING"
    ]
    checked = {
        one.module: tuple(name.name for name in one.names)
        for one in block.body
        if isinstance(one, ast.ImportFrom)
    }

    assert checked == strandline._HOMES


def test_every_name_is_there_by_star_dir_and_attribute() -> None:
    code = """
import json
namespace = {}
exec("from strandline import *", namespace)
import strandline
assert all(namespace[name] is getattr(strandline, name) for name in strandline.__all__)
print(json.dumps([sorted(set(namespace) - {"__builtins__"}), dir(strandline)]))
"""

    star, listed = fresh(code)

    assert star == sorted(strandline.__all__)
    assert set(strandline.__all__) <= set(listed)
    assert [name for name in listed if name.startswith("_") and not name.startswith("__")] == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'strandline' has no attribute 'Nonsense'"):
        _ = strandline.Nonsense  # type: ignore[attr-defined]
    assert not hasattr(strandline, "TYPE_CHECKER")


def test_what_is_pickled_can_be_read_by_a_process_that_has_imported_nothing() -> None:
    import pickle

    values = [strandline.SingleStream, strandline.apply, strandline.WrongVersion, strandline.ANY]
    code = f"""
import pickle, json
values = pickle.loads({pickle.dumps(values)!r})
print(json.dumps([f"{{one.__module__}}.{{one.__name__}}" for one in values[:3]] + [repr(values[3])]))
"""

    assert fresh(code) == [
        "strandline.projections.single_stream.SingleStream",  # a value class stays at home
        "strandline.apply",
        "strandline.WrongVersion",
        repr(strandline.ANY),
    ]
