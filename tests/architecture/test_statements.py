"""Every block of every .sql beside a module, prepared on a real PostgreSQL."""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import types
import typing
from collections.abc import Callable, Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from strandline.postgres.statements import SqlFile, Statement, columns
from strandline.projections.slice import WHOLE

SOURCE = Path(__file__).parents[2] / "src"
FILES = sorted(
    path for path in (SOURCE / "strandline").rglob("*.sql") if path.parent.name != "schema"
)
HEADER = re.compile(r"^-- name: (\w+)", re.MULTILINE)
PLACEHOLDER = re.compile(r"\{(\w+)\}")

# What stands for the {names} of a file's blocks, besides {schema}. Tables that they name are made
# first, by the block that makes them in earnest.
EXAMPLES: dict[str, dict[str, str]] = {
    "strandline/daemon/checkpoint.sql": {"table": '{schema}."doc_example_v1"'},
    "strandline/daemon/comparing.sql": {
        "live": '{schema}."doc_example_v1"',
        "built": '{schema}."doc_example_v1"',
        "columns": 'd."tenant" AS k1, d."id" AS k2',
        "key_columns": 'd."tenant", d."id"',
        "key_columns_of_f": 'f."tenant", f."id"',
        "same": "l.k1 = b.k1 AND l.k2 = b.k2",
        "order": "coalesce(l.k1, b.k1), coalesce(l.k2, b.k2)",
        "names": "ARRAY['tenant', 'id']::text[]",
        "tenant": 'd."tenant"',
        "key": 'd."id"::text',
        "beyond_low": '(d."tenant", d."id") > ($1, $1)',
        "up_to_high": '(d."tenant", d."id") <= ($2, $2)',
    },
    "strandline/daemon/rebuild_plan.sql": {
        "live": '{schema}."doc_example_v1"',
        "regclass": """'{schema}."doc_example_v1"'""",
        "tenant": 'd."tenant"',
        "key": 'd."id"::text',
    },
    "strandline/daemon/retiring.sql": {"table": '"doc_example_v1"'},
    "strandline/daemon/exchange.sql": {
        "table": '{schema}."doc_example_v1"',
        "live": '{schema}."doc_example_v1"',
        "shadow": '{schema}."doc_example_v1"',
        "key": 'd."id"::text',
        "tables": '{schema}."doc_example_v1"',
        "schema_of": "public",
        "owner": "CURRENT_USER",
        "privilege": "SELECT",
        "grantee": "PUBLIC",
        "option": "",
    },
    "strandline/daemon/rebuilds.sql": {
        "shadow": "strandline",
        "mark": "'a mark'",
        "milliseconds": "300",
    },
    "strandline/events/read.sql": {"order": "ASC"},
    "strandline/jobs/looking.sql": {"beyond": ">", "order": "ASC"},
    "strandline/postgres/pool.sql": {"milliseconds": "60000"},
    "strandline/projections/lifecycles.sql": {"table": '"doc_example_v1"'},
    "strandline/projections/documents.sql": {
        "table": '{schema}."doc_example_v1"',
        "key": '"doc_example_v1_pkey"',
        "index": '"doc_example_v1_0_idx"',
        "field": "data->>'owner'",
        "condition": "data->>'owner' = 'Ada'",
        "order": "id",
        "limit": "10",
    },
}
TABLES = [
    ("strandline/projections/documents.sql", "create_documents"),
]


def _rows_of_a_table() -> Any:
    """A real table projection."""
    from dataclasses import make_dataclass

    from strandline.events.codec import EventTypes
    from strandline.projections import table_rules as sl
    from strandline.projections.table import TableRows
    from strandline.projections.table_declaration import Table

    types = EventTypes()
    deposited = make_dataclass("Deposited", [("account", str), ("amount", int)])
    closed = make_dataclass("Closed", [("account", str)])
    types.register(deposited, "deposited")
    types.register(closed, "closed")

    class Balances(Table):
        account = sl.column(str, key="account")
        balance = sl.column(int, default=0)
        largest = sl.column(int)
        rules = (
            sl.on(deposited, balance=sl.add("amount"), largest=sl.greatest("amount")),
            sl.on(closed, delete=True),
        )
        indexes = ("balance",)

    definition = Balances()
    definition.named("example", 1, "async")
    definition.bind(types, {})
    return TableRows(definition)


def _of_a_table() -> dict[str, Statement[Any]]:
    """The statements of a real table projection, by the name of their block."""
    rows = _rows_of_a_table()
    made = [*_driven(rows.create()), *_driven(rows.empty()), *_driven(rows.drop()), rows.fold]
    made += _driven(rows.query(None, (), tenant="default"))
    made += _driven(rows.count(None, (), tenant="default"))
    return {one.name: one for one in made}


def _of_its_faults() -> dict[str, Statement[Any]]:
    """The statements about what fails in it."""
    faults = _rows_of_a_table().faults
    made = [*_driven(faults.find(0, 1)), *_driven(faults.failing_rows(1))]
    made += _driven(faults.parked(0, 1, WHOLE, [("t", "[1]")]))
    return {one.name: one for one in made if one.name != "fold_events"}


def _driven(operation: Any) -> list[Statement[Any]]:
    """The statements of an operation, all of them if it takes no rows for an answer."""
    found = []
    with contextlib.suppress(StopIteration, Exception):
        call = next(operation)
        while True:
            found.append(call.statement)
            call = operation.send(())
    return found


# Blocks whose {names} are filled in by more code than an example could show: the real thing.
REAL: dict[str, Callable[[], dict[str, Statement[Any]]]] = {
    "strandline/projections/table.sql": _of_a_table,
    "strandline/projections/table_faults.sql": _of_its_faults,
}
IN_A_SAVEPOINT = {
    "undo_part": "part",
    "keep_part": "part",
    "undo_trial": "trial",
    "end_trial": "trial",
}
IN_AN_EMPTY_DATABASE = {"create_migrations_table", "create_shadow"}  # a migrated one has it already

PYTHON_TYPES: dict[Any, set[str]] = {
    int: {"int2", "int4", "int8"},
    str: {"text", "name", "varchar", "bpchar"},
    bool: {"bool"},
    float: {"float4", "float8"},
    datetime: {"timestamptz"},
    date: {"date"},
    UUID: {"uuid"},
    bytes: {"bytea"},
}


def _module_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def _file_of(path: Path) -> SqlFile:
    name = _module_of(path)
    assert path.with_suffix(".py").exists(), f"{path} has no module beside it"
    found = [
        one for one in vars(importlib.import_module(name)).values() if isinstance(one, SqlFile)
    ]
    assert len(found) == 1, f"{name} opens its .sql {len(found)} times"
    return found[0]


def _names() -> list[Any]:
    """File and name of every block; read from the text, so that collecting imports nothing."""
    return [
        pytest.param(path, name, id=f"{_module_of(path).removeprefix('strandline.')}.{name}")
        for path in FILES
        for name in HEADER.findall(path.read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_every_block_is_used_and_told_apart(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    file = _file_of(path)

    headers = re.findall(r"^\s*--\s*name\b.*$", text, re.MULTILINE)
    plans = re.findall(r"^\s*--\s*plan\b.*$", text, re.MULTILINE)

    assert len(headers) == len(file.blocks), "a header is misspelt, or a name stands twice"
    assert len(plans) == sum(one.plan is not None for one in file.taken.values()), (
        "a plan line is misspelt"
    )
    assert set(file.blocks) == set(file.taken), "a block is not used"


@pytest.mark.parametrize(("path", "name"), _names())
async def test_a_block_fits_what_it_declares(path: Path, name: str, database_url: str) -> None:
    taken = _file_of(path).taken
    assert name in taken, "it is not used"
    file = str(path.relative_to(SOURCE))
    connection = await _with_tables(database_url)
    try:
        real = REAL[file]() if file in REAL else {}
        statement = real.get(name) or _filled(taken[name], EXAMPLES.get(file, {}))
        sql = statement.sql("strandline")
        if statement.rows == "none" and not statement.parameters:
            if name in IN_AN_EMPTY_DATABASE:
                made = "" if name == "create_shadow" else "CREATE SCHEMA strandline; "
                sql = f"DROP SCHEMA strandline CASCADE; {made}{sql}"
            elif name in IN_A_SAVEPOINT:
                sql = f"SAVEPOINT strandline_{IN_A_SAVEPOINT[name]}; {sql}"
            await _tried(connection, sql)  # may be a command that cannot be prepared
            return
        prepared = await connection.prepare(sql)
        await _check_parameters(connection, statement, prepared)
        _check_columns(statement, prepared)
        await _check_plan(connection, statement, sql)
    finally:
        await connection.close()


async def _with_tables(url: str) -> Any:
    """A connection to a database with the tables that the examples name."""
    connection: Any = await asyncpg.connect(url)
    made = [_filled(_file_of(SOURCE / path).taken[name], EXAMPLES[path]) for path, name in TABLES]
    made += [
        made["create_table"]
        for made in (filled() for filled in REAL.values())
        if "create_table" in made
    ]
    for one in made:
        await connection.execute(one.sql("strandline"))
    return connection


def _filled(statement: Statement[Any], examples: dict[str, str]) -> Statement[Any]:
    names = set(PLACEHOLDER.findall(f"{statement.text} {statement.plan}")) - {"schema"}
    unknown = names - set(examples)
    assert not unknown, f"{statement.name}: say in EXAMPLES what stands for {sorted(unknown)}"
    return statement.about(**{name: examples[name] for name in names})


async def _tried(connection: Any, sql: str) -> None:
    transaction = connection.transaction()
    await transaction.start()
    try:
        with contextlib.suppress(asyncpg.DependentObjectsStillExistError):  # of the example
            await connection.execute(sql)
    finally:
        await transaction.rollback()


async def _check_parameters(connection: Any, statement: Statement[Any], prepared: Any) -> None:
    found = [one.oid for one in prepared.get_parameters()]
    declared = [
        await connection.fetchval("SELECT to_regtype($1)::oid", one.type)
        for one in statement.parameters
    ]
    names = [f"{one.name} {one.type}" for one in statement.parameters]
    wanted = [await connection.fetchval("SELECT $1::oid::regtype::text", oid) for oid in found]
    assert found == declared, f"declared {names}, PostgreSQL reads {wanted}"


def _check_columns(statement: Statement[Any], prepared: Any) -> None:
    attributes = prepared.get_attributes()
    if statement.rows == "none":
        assert all(one.type.name == "void" for one in attributes), "it answers rows"
        return
    assert attributes, "it answers no rows"
    # asyncpg gives JSON as text, psycopg decodes it: only a cast reads the same everywhere
    assert not [one.name for one in attributes if one.type.name in ("json", "jsonb")]
    if statement.row is tuple:
        return
    assert [one.name for one in attributes] == columns(statement.row)
    hints = typing.get_type_hints(statement.row)
    for one in attributes:
        assert _fits(hints[one.name], one.type), (
            f"{one.name}: {one.type.name} is no {hints[one.name]}"
        )


def _fits(hint: Any, kind: Any) -> bool:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(one, kind) for one in typing.get_args(hint) if one is not type(None))
    if typing.get_origin(hint) in (list, tuple):
        return bool(kind.kind == "array")
    known = PYTHON_TYPES.get(hint)
    return known is None or kind.name in known


async def _check_plan(connection: Any, statement: Statement[Any], sql: str) -> None:
    """Plan it without knowing any value; this also checks what EXPLAIN can see of it."""
    kinds = ", ".join(one.type for one in statement.parameters)
    await connection.execute("SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off")
    await connection.execute(f"PREPARE block{f'({kinds})' if kinds else ''} AS {sql}")
    nulls = ", ".join("NULL" for _ in statement.parameters)
    given = f"({nulls})" if nulls else ""
    plan = json.loads(await connection.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE block{given}"))
    if statement.plan is not None:
        wanted = statement.plan.strip('"')
        used = set(_indexes(plan))
        assert wanted in used, f"the plan uses {sorted(used) or 'no index'}, not {wanted}"


def _indexes(plan: Any) -> Iterator[str]:
    if isinstance(plan, dict):
        if "Index Name" in plan:
            yield plan["Index Name"]
        yield from plan.get("Conflict Arbiter Indexes", ())
        plan = list(plan.values())
    if isinstance(plan, list):
        for one in plan:
            yield from _indexes(one)
