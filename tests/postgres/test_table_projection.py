"""Table projections on PostgreSQL: pages, deletions, defaults, failures, lookups."""

from __future__ import annotations

import json
from datetime import date
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import psycopg
import pytest
from tables import (
    AT,
    COLUMNS,
    TYPES,
    Closed,
    Everything,
    Joined,
    Noted,
    Presence,
    Restarted,
    Simple,
    Stored,
    bound,
    events,
    record,
    store,
)

from strandline.errors import ApplyFailed, InvalidDefinition, InvalidInput
from strandline.events.codec import EventTypes
from strandline.postgres.operations import AsyncpgSession, BlockingSession
from strandline.projections.table import TableRows
from strandline.projections.table_declaration import Table
from strandline.projections.table_faults import Fault
from strandline.projections.table_rules import (
    add,
    column,
    on,
)
from strandline.projections.table_values import (
    STREAM,
    bucket,
)


async def folded(
    url: str, table: type[Table], *given: Any, pages: tuple[int, ...] = ()
) -> list[Any]:
    """The rows after *given*, folded in pages that end at *pages*."""
    stored = events(*given)
    rows = bound(table)
    connection: Any = await asyncpg.connect(url)
    try:
        session = AsyncpgSession(connection, "strandline")
        await store(connection, *map(record, stored))
        await session.run(rows.create())
        edges = [0, *pages, len(stored)]
        for floor, ceiling in zip(edges, edges[1:], strict=False):
            await session.run(rows.apply(floor, ceiling))
        return await session.run(rows.query(None, (), tenant="t"))
    finally:
        await connection.close()


async def test_events_before_a_deletion_have_no_effect_and_later_ones_begin_anew(
    database_url: str,
) -> None:
    rows = await folded(
        database_url,
        Everything,
        Noted("a", 5, note="old"),
        Noted("b", 1),
        Closed("a"),
        Noted("a", 2),
        Closed("b"),
    )

    assert [(row.account, row.total, row.first_note, row.events) for row in rows] == [
        ("a", 2, None, 1)
    ]


async def test_a_row_of_an_earlier_page_is_deleted(database_url: str) -> None:
    rows = await folded(
        database_url, Everything, Noted("a", 5), Noted("b", 1), Closed("a"), pages=(2,)
    )

    assert [row.account for row in rows] == ["b"]


async def test_a_page_applied_to_another_tenant_leaves_this_one_alone(database_url: str) -> None:
    connection: Any = await asyncpg.connect(database_url)
    session = AsyncpgSession(connection, "strandline")
    rows = bound(Simple)
    mine, theirs = events(Noted("a", 1), Noted("a", 2))
    await store(connection, record(mine), record(Stored(2, "u", "s", 2, AT, theirs.event)))
    await session.run(rows.create())

    await session.run(rows.apply(0, 2))

    assert (await session.run(rows.find("a", tenant="t"))).total == 8
    assert (await session.run(rows.find("a", tenant="u"))).total == 9
    assert await session.run(rows.find("a", tenant="v")) is None
    await connection.close()


async def test_only_the_events_at_the_positions_count(database_url: str) -> None:
    connection: Any = await asyncpg.connect(database_url)
    session = AsyncpgSession(connection, "strandline")
    rows = bound(Simple)
    await store(connection, *map(record, events(Noted("a", 1), Noted("a", 2), Noted("a", 4))))
    await session.run(rows.create())

    await session.run(rows.apply_positions([]))
    await session.run(rows.follow([(1, "t"), (3, "t")]))

    assert (await session.run(rows.find("a", tenant="t"))).total == 12
    assert rows.wants(["Other", "Noted"])
    assert not rows.wants(["Closed"])
    await connection.close()


def test_a_blocking_session_runs_it_too(database_url: str) -> None:
    rows = bound(Everything)
    with psycopg.connect(database_url) as connection:
        session = BlockingSession(connection, "strandline")
        with connection.cursor() as cursor:
            for one in events(Noted("a", 3, tags=["x"]), Closed("b")):
                cursor.execute(
                    f"INSERT INTO strandline.events ({', '.join(COLUMNS)})"
                    " VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
                    record(one),
                )
        session.run(rows.create())

        session.run(rows.apply_positions([1, 2]))

        found = session.run(rows.query({"tags": ["x"]}, (), tenant="t"))
        assert [(row.account, row.total, row.tags) for row in found] == [("a", 3, ["x"])]


async def test_a_missing_field_is_what_the_class_declares_as_its_default(database_url: str) -> None:
    class Members(Table):
        id = column(str, key="id")
        points = column(int, default=0)
        city = column(str)
        rules = (on(Joined, points=add("points"), city="address.city"),)

    types = EventTypes()
    types.register(Joined, "joined")
    rows = bound(Members, types)
    connection: Any = await asyncpg.connect(database_url)
    session = AsyncpgSession(connection, "strandline")
    data = [
        {"id": "missing"},
        {"id": "null", "points": None, "address": None},
        {"id": "inner", "address": {}},
        {"id": "inner null", "address": {"city": None}},
    ]
    for number, one in enumerate(data, 1):
        await store(connection, (number, number, AT, uuid4(), "t", "s", "joined", json.dumps(one)))
    await session.run(rows.create())

    await session.run(rows.apply(0, 9))

    found = await session.run(rows.query(None, (), tenant="t"))
    assert {row.id: (row.points, row.city) for row in found} == {
        "missing": (5, "Oslo"),
        "null": (0, None),
        "inner": (5, "Rome"),
        "inner null": (5, None),
    }
    await connection.close()


async def test_events_stored_under_an_alias_are_folded_too(database_url: str) -> None:
    types = EventTypes()
    types.register(Noted, "noted", aliases=["jotted", "it's {schema}"])
    rows = bound(Presence, types_with(types, Restarted, Closed))
    connection: Any = await asyncpg.connect(database_url)
    session = AsyncpgSession(connection, "strandline")
    for number, name in enumerate(["noted", "jotted", "it's {schema}", "other"], 1):
        await store(
            connection, (number, number, AT, uuid4(), "t", "s", name, json.dumps({"account": name}))
        )
    await session.run(rows.create())

    await session.run(rows.apply(0, 9))

    found = await session.run(rows.query(None, (), tenant="t"))
    assert {row.account for row in found} == {"noted", "jotted", "it's {schema}"}
    await connection.close()


def types_with(types: EventTypes, *classes: type[Any]) -> EventTypes:
    for cls in classes:
        types.register(cls, cls.__name__)
    return types


async def test_a_value_that_does_not_fit_is_told_with_projection_column_and_position(
    database_url: str,
) -> None:
    rows = bound(Simple)
    connection: Any = await asyncpg.connect(database_url)
    session = AsyncpgSession(connection, "strandline")
    good = map(record, events(*[Noted("a", 1)] * 9))
    await store(
        connection, *good, (10, 10, AT, uuid4(), "t", "s", "Noted", '{"account":"a","amount":"x"}')
    )
    await session.run(rows.create())

    with pytest.raises(ApplyFailed, match='simple:v1: invalid input syntax for type bigint: "x"'):
        await session.run(rows.apply(0, 10))

    assert await session.run(rows.find_fault(0, 9)) is None
    assert await session.run(rows.find_fault(0, 10)) == Fault(
        10, "total", 'invalid input syntax for type bigint: "x"'
    )
    assert await session.run(rows.find("a", tenant="t")) is None
    await connection.close()


async def test_a_sum_out_of_range_fails_as_the_projections_fault(database_url: str) -> None:
    with pytest.raises(ApplyFailed, match="simple:v1: bigint out of range"):
        await folded(database_url, Simple, Noted("a", 2**63 - 1), Noted("a", 1))


async def test_a_key_too_long_for_an_index_fails_as_the_projections_fault(
    database_url: str,
) -> None:
    key = "".join(uuid4().hex for _ in range(300))

    with pytest.raises(ApplyFailed, match="presence:v1: index row"):
        await folded(database_url, Presence, Noted(key))


async def test_a_table_declared_differently_wants_a_new_version(database_url: str) -> None:
    class Other(Table):
        account = column(str, key="account")
        total = column(Decimal, default=0)
        rules = (on(Noted, total=add("amount")),)

    connection: Any = await asyncpg.connect(database_url)
    session = AsyncpgSession(connection, "strandline")
    await session.run(bound(Simple).create())
    await session.run(bound(Simple).create())
    changed = Other()
    changed.named("simple", 1, "async")
    changed.bind(TYPES, None)

    with pytest.raises(
        InvalidDefinition, match=r"simple:v1: .* \(at, events, last, total\): raise the"
    ):
        await session.run(TableRows(changed).create())
    await connection.close()


async def test_rows_are_found_by_columns_and_by_sql(database_url: str) -> None:
    class Ledger(Table):
        stream = column(str, key=STREAM)
        day = column(date, key=bucket("day"))
        amount = column(int, default=0)
        who = column(UUID)
        indexes = ("amount", "who, day")
        rules = (on(Noted, amount=add("amount")),)

    connection: Any = await asyncpg.connect(database_url)
    session = AsyncpgSession(connection, "strandline")
    rows = bound(Ledger)
    await store(connection, *map(record, events(*[Noted("a", n) for n in range(1, 7)])))
    await session.run(rows.create())
    await session.run(rows.apply(0, 6))

    def run(*given: Any, **options: Any) -> Any:
        return session.run(rows.query(*given, tenant="t", **options))

    assert len(await run(None, ())) == 5
    assert (await run({"stream": "s1", "who": None}, ()))[0].stream == "s1"
    found = await run('"amount" > $1 AND stream = $2', (1, "s1"), order_by="amount DESC", limit=1)
    assert [(row.stream, row.day, row.amount) for row in found] == [("s1", date(2024, 12, 29), 4)]
    assert (await session.run(rows.find(("s1", date(2024, 12, 29)), tenant="t"))).amount == 4
    assert await session.run(rows.count({"stream": "s2"}, (), tenant="t")) == 2
    with pytest.raises(InvalidInput, match="no column 'what'"):
        await run({"what": 1}, ())
    with pytest.raises(InvalidInput, match=r"has the key \(stream, day\), not 's1'"):
        await session.run(rows.find("s1", tenant="t"))
    indexes = await connection.fetch(
        "SELECT indexdef FROM pg_indexes WHERE tablename = 'table_ledger_v1' ORDER BY 1"
    )
    assert len(indexes) == 3
    await session.run(rows.empty())
    assert await run(None, ()) == []
    await session.run(rows.drop())
    assert await connection.fetchval("SELECT to_regclass('strandline.table_ledger_v1')") is None
    await connection.close()
