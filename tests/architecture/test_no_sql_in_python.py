"""SQL lives in the .sql beside a module, where it is prepared and its plan is checked."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "strandline"

STATEMENT = re.compile(
    r"\A\s*(?:SELECT\s|INSERT\s+INTO\s|UPDATE\s+\S+\s+SET\b|DELETE\s+FROM\s|WITH\s+\w+\s+AS\b"
    r"|(?:CREATE|ALTER|DROP)\s+(?:OR\s+REPLACE\s+)?(?:UNIQUE\s+)?[A-Z]{3,}\s"
    r"|TRUNCATE\s|COPY\s|LISTEN\s|UNLISTEN\s|NOTIFY\s|EXPLAIN\s|LOCK\s+TABLE\s|SET\s+\w+\s*(?:=|TO\s)"
    r")"
)

# file: why SQL may stand in it. An entry that is no longer needed fails.
EXEMPT = {
    "cli/checks.py": "tells people what they may run; runs none of it",
    "survey/server_findings.py": "the same",
    "testing/database.py": "makes and drops whole databases, from outside any schema of ours",
}


def test_no_module_holds_an_sql_statement() -> None:
    found = {f"{path}:{line}": text for path, line, text in _statements() if path not in EXEMPT}

    assert found == {}


def test_every_exempt_module_still_holds_sql() -> None:
    holding = {path for path, _, _ in _statements()}

    assert set(EXEMPT) - holding == set()


def _statements() -> Iterator[tuple[str, int, str]]:
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = set(_docstrings(tree))
        for node in ast.walk(tree):
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and id(node) not in docstrings and STATEMENT.match(text):
                yield str(path.relative_to(SOURCE)), node.lineno, text[:60]


def _docstrings(tree: ast.AST) -> Iterator[int]:
    """Ids of the strings that stand alone as statements."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield id(node.value)
