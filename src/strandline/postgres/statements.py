"""Loads named SQL blocks from the .sql file beside a module.

``events/read.py`` finds its SQL in ``events/read.sql``. A block starts with a line

    -- name: stream_state(tenant text, stream text) :one

which declares the parameters ``$1, $2 ...`` in order with their types, and whether ``:one``,
``:many`` or ``:none`` rows come back. Comment lines under it say what it does and what "no row"
means. A line ``-- plan: events_pkey`` names an index that the plan must use.
tests/architecture/test_statements.py prepares every block on PostgreSQL and checks all of that.

Tables are written ``{schema}.events``: the schema is a setting, and the caller's own connection
may have any ``search_path``. A block may have further ``{names}`` which ``about`` fills in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from importlib.resources import files
from typing import Any, Generic, TypeVar

Row = TypeVar("Row")

_HEADER = re.compile(
    r"^-- name: (?P<name>\w+)\((?P<parameters>[^)]*)\) :(?P<rows>one|many|none)$", re.MULTILINE
)
_PLAN = re.compile(r"^-- plan: (?P<index>\w+|\{\w+\})$", re.MULTILINE)
_PARAMETER = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|\$(\d+)""")
_COMMENT = re.compile(r"^\s*--.*\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A declared parameter of a block."""

    name: str
    type: str


@dataclass(frozen=True, slots=True, eq=False)
class Statement(Generic[Row]):
    """One SQL block and the class of its rows."""

    name: str
    text: str
    row: type[Row]
    rows: str
    parameters: tuple[Parameter, ...]
    plan: str | None
    rendered: dict[str, str] = field(default_factory=dict, repr=False)

    def sql(self, schema: str) -> str:
        """The text for tables in *schema*; rendered once."""
        text = self.rendered.get(schema)
        if text is None:
            text = self.rendered[schema] = self.text.replace("{schema}", quoted(schema))
        return text

    def about(self, **names: str) -> Statement[Row]:
        """The same block with ``{names}`` filled in by SQL fragments made by strandline itself."""
        text, plan = self.text, self.plan
        for name, fragment in names.items():
            text = text.replace("{" + name + "}", fragment)
            plan = plan and plan.replace("{" + name + "}", fragment)
        return Statement(self.name, text, self.row, self.rows, self.parameters, plan)


class Verbatim(Statement[tuple[Any, ...]]):
    """The user's own SQL: nothing in it is filled in."""

    def sql(self, schema: str) -> str:
        """The text, unchanged."""
        return self.text


def verbatim(text: str) -> Verbatim:
    """The user's own SQL as a statement."""
    return Verbatim("your SQL", text, tuple, "many", (), None)


class SqlFile:
    """The blocks of one .sql file, taken out by name."""

    def __init__(self, module: str) -> None:
        package, _, stem = module.rpartition(".")
        self.path = files(package).joinpath(f"{stem}.sql")
        parts = _HEADER.split(self.path.read_text(encoding="utf-8"))
        self.blocks = {
            name: (rows, parameters, body.strip())
            for name, parameters, rows, body in zip(
                parts[1::4], parts[2::4], parts[3::4], parts[4::4], strict=True
            )
        }
        self.taken: dict[str, Statement[Any]] = {}

    def one(self, name: str, row: type[Row]) -> Statement[Row]:
        """The block *name*, whose answer is one *row* or nothing."""
        return self._take(name, row, "one")

    def many(self, name: str, row: type[Row]) -> Statement[Row]:
        """The block *name*, whose answer is any number of rows."""
        return self._take(name, row, "many")

    def none(self, name: str) -> Statement[Any]:
        """The block *name*, which answers no rows."""
        return self._take(name, tuple, "none")

    def _take(self, name: str, row: type[Row], rows: str) -> Statement[Row]:
        if name not in self.blocks:
            raise ValueError(f"{self.path} has no block {name}")
        declared, parameters, text = self.blocks[name]
        if declared != rows:
            raise ValueError(f"{self.path}: {name} is :{declared}, not :{rows}")
        found = _PLAN.search(text)
        statement = Statement(
            name=name,
            text=_COMMENT.sub("", text + "\n").strip().rstrip(";"),
            row=row,
            rows=rows,
            parameters=_parameters(parameters),
            plan=found["index"] if found else None,
        )
        self.taken[name] = statement
        return statement


def _parameters(text: str) -> tuple[Parameter, ...]:
    pairs = (part.split(None, 1) for part in text.split(",") if part.strip())
    return tuple(Parameter(name, kind.strip()) for name, kind in pairs)


def columns(row: type[Any]) -> list[str]:
    """The column names that a row class, a dataclass, struct or named tuple, expects, in order."""
    names: tuple[str, ...] | None = getattr(row, "__struct_fields__", None)
    names = getattr(row, "_fields", names)
    return [one.name for one in fields(row)] if names is None else list(names)


def moved_up(sql: str, by: int = 1) -> str:
    """*sql* with every ``$n`` turned into ``$n+by``; texts and quoted names stay as they are."""
    return _PARAMETER.sub(lambda one: f"${int(one[1]) + by}" if one[1] else one[0], sql)


def quoted(name: str) -> str:
    """An SQL identifier, quoted."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """An SQL string constant, quoted."""
    return "'" + text.replace("'", "''") + "'"
