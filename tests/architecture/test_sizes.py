"""Files and functions stay small enough to be read in one go."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"
FILE_LINES = 400
FUNCTION_LINES = 50  # its docstring not counted

# "path" or "path::function": why it may be longer. An entry that is no longer needed fails.
EXCEPTIONS: dict[str, str] = {}


def test_files_have_at_most_400_lines() -> None:
    long = {
        str(path.relative_to(SOURCE)): lines
        for path in sorted([*SOURCE.rglob("*.py"), *SOURCE.rglob("*.sql")])
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > FILE_LINES
        and path.name != "current.sql"
    }

    assert {name: lines for name, lines in long.items() if name not in EXCEPTIONS} == {}


def test_functions_have_at_most_50_lines() -> None:
    long = {name: lines for name, lines in _functions() if lines > FUNCTION_LINES}

    assert {name: lines for name, lines in long.items() if name not in EXCEPTIONS} == {}


def test_no_exception_has_become_needless() -> None:
    functions = dict(_functions())
    needless = [
        name
        for name in EXCEPTIONS
        if (functions.get(name, 0) <= FUNCTION_LINES if "::" in name else not _is_long(name))
    ]

    assert needless == []


def _is_long(name: str) -> bool:
    path = SOURCE / name
    return path.exists() and len(path.read_text(encoding="utf-8").splitlines()) > FILE_LINES


def _functions() -> Iterator[tuple[str, int]]:
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.relative_to(SOURCE)}::{node.name}", _lines(node)


def _lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node) is not None:
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines
