"""Tables built a second time in a shadow: a user's own, and those of table projections."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar
from uuid import UUID, uuid4

import pytest
from tables import AT, Noted, bound, events, python_fold, record, store
from tables import Simple as SimpleTable
from tally import connected

from strandline.app import App
from strandline.daemon import exchange
from strandline.daemon.checkpoint import claim
from strandline.daemon.comparing import compare
from strandline.daemon.exchange import Names, filled_in
from strandline.daemon.feed import Page
from strandline.daemon.sql_batch import SqlProcessor
from strandline.errors import InvalidDefinition, RebuildFailed
from strandline.events.codec import EventTypes
from strandline.events.event import RecordedEvent
from strandline.postgres.operations import Op
from strandline.postgres.pools import Pool
from strandline.projections.shadow import LIVE, Swappable
from strandline.projections.sql_projection import OwnTables, Sql, Statements, Text, execute
from strandline.projections.sql_shadow import with_keys
from strandline.projections.table import TableRows
from strandline.settings import Settings

OWNER = UUID(int=7)
NAMES = Names("strandline", 7)


@dataclass(frozen=True)
class Ordered:
    id: str
    items: tuple[str, ...] = ()


class Orders(Sql):
    """Two tables bound to each other, with sequences and an index."""

    tables = ("orders", "items")
    setup: ClassVar[Text] = (
        """CREATE TABLE IF NOT EXISTS orders (
               id text PRIMARY KEY, number serial, items bigint NOT NULL)""",
        """CREATE TABLE IF NOT EXISTS items (
               id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
               "order" text NOT NULL REFERENCES orders (id), name text NOT NULL)""",
        "CREATE INDEX IF NOT EXISTS items_name_idx ON items (name)",
    )
    reset = "TRUNCATE orders, items"

    @execute
    def ordered(self, event: RecordedEvent[Ordered], sql: Statements) -> None:
        sql("INSERT INTO orders (id, items) VALUES ($1, $2)", event.data.id, len(event.data.items))
        for name in event.data.items:
            sql('INSERT INTO items ("order", name) VALUES ($1, $2)', event.data.id, name)


def types() -> EventTypes:
    made = EventTypes()
    made.register(Ordered, "ordered")
    return made


def own(projection: type[Sql] = Orders, place: str = LIVE) -> OwnTables:
    definition = projection()
    definition.named("orders", 1, "async")
    registered = types()
    definition.bind(registered, None)
    return OwnTables(definition, registered, place)


def page(*given: Ordered, floor: int = 0) -> Page:
    rows = [
        (number, "default", one.id, 1, "ordered", json.dumps({"id": one.id, "items": one.items}))
        + (AT, uuid4(), None)
        for number, one in enumerate(given, floor + 1)
    ]
    return Page(floor, floor + len(rows), rows)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Pool]:
    pool = Pool("work", url, 3, Settings(database_url=url))
    await pool.open()
    try:
        yield pool
    finally:
        await pool.close()


async def created(pool: Pool, model: Swappable) -> None:
    """Make its tables where they belong, as a build begins."""
    async with pool.transaction() as session:
        if model.place != LIVE:
            await session.connection.execute(f"CREATE SCHEMA {model.place}")
        await session.run(model.create())


async def applied(
    pool: Pool, tables: OwnTables, *pages: Page, shard: str = "orders:v1:all"
) -> None:
    processor = SqlProcessor(tables, pool, Settings())
    checkpoint = await pool.run(claim(shard, OWNER))
    for one in pages:
        await processor.commit(await processor.prepare(one), checkpoint)
        checkpoint = checkpoint.at(one.ceiling)


def exchanged(model: Swappable) -> Op[None]:
    pairs = filled_in(model.tables(), "strandline")
    yield from exchange._exchange(pairs, NAMES)


async def asked(url: str, *queries: str) -> list[Any]:
    async with connected(url) as other:
        return [[tuple(row) for row in await other.fetch(query)] for query in queries]


ORDERS = "SELECT id, items FROM orders ORDER BY id"
ITEMS = 'SELECT "order", name FROM items ORDER BY id'
LOG = [Ordered("a", ("nut", "bolt")), Ordered("b"), Ordered("c", ("nut",))]
INDEXES = """SELECT schemaname, tablename, indexname FROM pg_indexes
              WHERE tablename IN ('orders', 'items') ORDER BY 2, 3"""


async def test_a_build_of_own_tables_leaves_alone_what_serves_until_they_are_exchanged(
    database_url: str,
) -> None:
    live, shadow = own(), own(place=NAMES.place)
    async with opened(database_url) as pool:
        await created(pool, live)
        await applied(pool, live, page(Ordered("wrong", ("rust",))))
        before = await asked(database_url, ORDERS, ITEMS, INDEXES)
        await created(pool, shadow)

        await applied(pool, shadow, page(*LOG), shard="building:v1:all")

        assert await asked(database_url, ORDERS, ITEMS) == before[:2]
        async with pool.transaction() as session:
            await session.run(exchanged(shadow))
        found = await asked(database_url, ORDERS, ITEMS, INDEXES)
        assert found[0] == [("a", 2), ("b", 0), ("c", 1)]
        assert found[1] == [("a", "nut"), ("a", "bolt"), ("c", "nut")]
        assert found[2] == before[2]  # the indexes keep their names


async def test_after_the_exchange_the_same_handlers_go_on_with_the_new_tables(
    database_url: str,
) -> None:
    live, shadow = own(), own(place=NAMES.place)
    async with opened(database_url) as pool:
        await created(pool, live)
        await applied(pool, live, page(Ordered("wrong", ("rust",))))
        await created(pool, shadow)
        await applied(pool, shadow, page(*LOG), shard="building:v1:all")
        async with pool.transaction() as session:
            await session.run(exchanged(shadow))
            await session.connection.execute(f"DROP SCHEMA {NAMES.place} CASCADE")

        await pool.run(live.create())  # as at every start
        await applied(pool, live, page(Ordered("d", ("nut",)), floor=1))

        orders, items, numbers = await asked(
            database_url, ORDERS, ITEMS, "SELECT number FROM orders ORDER BY number"
        )
        assert orders[-1] == ("d", 1)
        assert items[-1] == ("d", "nut")
        assert numbers == [(1,), (2,), (3,), (4,)]  # their sequences came with them


async def test_who_may_read_a_table_may_read_the_one_that_takes_its_place(
    database_url: str,
) -> None:
    role = f"reader_{uuid4().hex[:8]}"
    live, shadow = own(), own(place=NAMES.place)
    async with opened(database_url) as pool, connected(database_url) as other:
        await created(pool, live)
        await other.execute(f"CREATE ROLE {role}; GRANT SELECT ON orders TO {role}")
        await other.execute(f"GRANT SELECT (name), UPDATE (name) ON items TO {role}")
        try:
            await created(pool, shadow)
            async with pool.transaction() as session:
                await session.run(exchanged(shadow))

            found = await other.fetchrow(
                """SELECT has_table_privilege($1, 'orders', 'SELECT') AS read,
                          has_table_privilege($1, 'orders', 'INSERT') AS write,
                          has_column_privilege($1, 'items', 'name', 'UPDATE') AS name,
                          has_column_privilege($1, 'items', 'order', 'SELECT') AS order""",
                role,
            )
            assert tuple(found) == (True, False, True, False)
        finally:
            await other.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.parametrize(
    ("hanging", "words"),
    [
        ("CREATE VIEW large AS SELECT * FROM orders WHERE items > 9", "large"),
        ("CREATE TABLE bills (id text REFERENCES orders (id))", "bills"),
        ("CREATE INDEX by_hand ON orders (items)", "by_hand"),
    ],
)
async def test_what_hangs_on_the_old_tables_refuses_the_exchange(
    database_url: str, hanging: str, words: str
) -> None:
    live, shadow = own(), own(place=NAMES.place)
    async with opened(database_url) as pool, connected(database_url) as other:
        await created(pool, live)
        await other.execute(hanging)
        await created(pool, shadow)

        with pytest.raises(RebuildFailed, match=words):
            async with pool.transaction() as session:
                await session.run(exchanged(shadow))

        assert await asked(database_url, ORDERS) == [[]]


# ---- what cannot be built elsewhere


def setup_of(*statements: str, names: Sequence[str] = ("orders",)) -> type[Sql]:
    class Own(Sql):
        tables = tuple(names)
        setup: ClassVar[Text] = statements

        @execute
        def ordered(self, event: Ordered, sql: Statements) -> None:
            sql("INSERT INTO orders VALUES ($1)", event.id)

    return Own


TABLE = "CREATE TABLE IF NOT EXISTS orders (id text PRIMARY KEY)"


@pytest.mark.parametrize(
    ("projection", "words"),
    [
        (setup_of("CREATE TABLE IF NOT EXISTS public.orders (id text)"), "has not made orders"),
        (setup_of(TABLE, names=("orders", "items")), "has not made items"),
        (setup_of(TABLE, "CREATE TABLE IF NOT EXISTS seen (id text)"), "table .*seen"),
        (setup_of(TABLE, "CREATE OR REPLACE VIEW few AS SELECT id FROM orders"), "view .*few"),
        (setup_of(TABLE, "CREATE SEQUENCE IF NOT EXISTS numbers"), "sequence .*numbers"),
        (setup_of(TABLE, "CREATE TYPE colour AS ENUM ('red')"), "type .*colour"),
    ],
)
async def test_a_setup_that_makes_other_things_than_its_tables_cannot_be_built_elsewhere(
    database_url: str, projection: type[Sql], words: str
) -> None:
    async with opened(database_url) as pool:
        with pytest.raises(InvalidDefinition, match=words):
            await created(pool, own(projection, NAMES.place))


async def test_a_sequence_goes_along_with_the_column_that_owns_it(database_url: str) -> None:
    projection = setup_of(
        "CREATE SEQUENCE IF NOT EXISTS numbers",
        """CREATE TABLE IF NOT EXISTS orders (
               id text PRIMARY KEY, number bigint NOT NULL DEFAULT nextval('numbers'))""",
        "ALTER SEQUENCE numbers OWNED BY orders.number",
    )
    live, shadow = own(projection), own(projection, NAMES.place)
    async with opened(database_url) as pool:
        await created(pool, live)
        await created(pool, shadow)
        async with pool.transaction() as session:
            await session.run(exchanged(shadow))
            await session.connection.execute(f"DROP SCHEMA {NAMES.place} CASCADE")

        await applied(pool, live, page(Ordered("a"), Ordered("b")))

        found = await asked(database_url, "SELECT id, number FROM orders ORDER BY id")
        assert found == [[("a", 1), ("b", 2)]]


@pytest.mark.parametrize("table", ["{}.orders", "other"])
async def test_a_build_whose_handlers_write_elsewhere_is_rolled_back(
    database_url: str, table: str
) -> None:
    [[(schema,)]] = await asked(database_url, "SELECT current_schema()")

    class Stray(Sql):
        tables = ("orders",)
        setup = TABLE

        @execute
        def ordered(self, event: Ordered, sql: Statements) -> None:
            sql(f"INSERT INTO {table.format(schema)} VALUES ($1)", event.id)

    live, shadow = own(Stray), own(Stray, NAMES.place)
    async with opened(database_url) as pool, connected(database_url) as other:
        await created(pool, live)
        await other.execute("CREATE TABLE other (id text)")
        await created(pool, shadow)

        with pytest.raises(InvalidDefinition, match=rf"write to (\w+\.)?{table.strip('{}.')}"):
            await applied(pool, shadow, page(*LOG), shard="building:v1:all")

        assert await asked(database_url, "SELECT id FROM orders", "SELECT id FROM other") == [
            [],
            [],
        ]


async def test_reading_other_tables_in_a_build_is_allowed(database_url: str) -> None:
    class Looking(Sql):
        tables = ("orders",)
        setup = "CREATE TABLE IF NOT EXISTS orders (id text REFERENCES customers (id))"

        @execute
        def ordered(self, event: Ordered, sql: Statements) -> None:
            sql("INSERT INTO orders SELECT id FROM customers WHERE id = $1", event.id)

    async with opened(database_url) as pool, connected(database_url) as other:
        await other.execute("CREATE TABLE customers (id text PRIMARY KEY)")
        await other.execute("INSERT INTO customers VALUES ('a')")
        shadow = own(Looking, NAMES.place)
        await created(pool, own(Looking))
        await created(pool, shadow)

        await applied(pool, shadow, page(*LOG), shard="building:v1:all")

        found = await asked(
            database_url, f"SELECT id FROM {NAMES.place}.orders", "SELECT id FROM orders"
        )
        assert found == [[("a",)], []]


@pytest.mark.parametrize(
    "names", ["orders", ("public.orders",), ('"orders"',), ("",), (7,)], ids=repr
)
def test_names_of_tables_that_cannot_work_are_refused(names: Any) -> None:
    class Bad(Sql):
        tables = names
        setup = TABLE

        @execute
        def ordered(self, event: Ordered, sql: Statements) -> None: ...

    with pytest.raises(InvalidDefinition, match="projection 'orders': .*tables"):
        own(Bad)


def test_without_tables_there_is_nothing_to_exchange() -> None:
    assert own(setup_of(TABLE, names=())).tables() == ()


async def test_making_the_tables_in_a_shadow_leaves_the_search_path_as_it_was(
    database_url: str,
) -> None:
    shadow = own(place=NAMES.place)
    async with opened(database_url) as pool, pool.transaction() as session:
        await session.connection.execute(f"CREATE SCHEMA {NAMES.place}")
        before = await session.connection.fetchval("SHOW search_path")

        await session.run(shadow.create())

        assert await session.connection.fetchval("SHOW search_path") == before


async def test_keys_of_own_tables_are_found_in_the_catalogue(database_url: str) -> None:
    projection = setup_of(
        'CREATE TABLE IF NOT EXISTS orders (a text, "B" int, c int, PRIMARY KEY (c, "B"))',
        "CREATE TABLE IF NOT EXISTS notes (note text)",
        names=("orders", "notes"),
    )
    live, shadow = own(projection), own(projection, NAMES.place)
    async with opened(database_url) as pool:
        await created(pool, live)
        await created(pool, shadow)

        found = await pool.run(with_keys(shadow.tables()))

    assert [pair.keys for pair in found] == [("c", "B"), ()]


async def test_own_tables_are_compared_by_their_keys(database_url: str) -> None:
    live, shadow = own(), own(place=NAMES.place)
    async with opened(database_url) as pool:
        await created(pool, live)
        await applied(pool, live, page(Ordered("a"), Ordered("x")))
        await created(pool, shadow)
        await applied(pool, shadow, page(Ordered("a"), Ordered("b")), shard="building:v1:all")

        found = await pool.run(compare(filled_in(shadow.tables(), "strandline")))

    assert [(one.table, one.key, one.kind) for one in found.differences] == [
        ("orders", "b", "missing"),
        ("orders", "x", "extra"),
    ]


# ---- table projections


async def test_a_table_projection_is_built_in_a_shadow_and_exchanged(database_url: str) -> None:
    class Simple(SimpleTable):
        indexes = ("total",)

    given = [Noted("a", 1), Noted("b", 2), Noted("a", 3)]
    live = bound(Simple)
    shadow = TableRows(live.projection, NAMES.place)
    where = "SELECT schemaname, indexname FROM pg_indexes WHERE tablename = 'table_simple_v1' ORDER BY 2"
    async with opened(database_url) as pool:
        await created(pool, live)
        before = await asked(database_url, where)
        async with connected(database_url) as other:
            await store(other, *map(record, events(*given)))
            await other.execute(
                "INSERT INTO strandline.table_simple_v1 VALUES ('t', 'wrong', 1, 1, 1, now())"
            )
        await created(pool, shadow)

        await pool.run(shadow.apply(0, 2))

        rows = await pool.run(live.query(None, (), tenant="t"))
        assert [row.account for row in rows] == ["wrong"]
        async with pool.transaction() as session:
            await session.run(exchanged(shadow))
        await pool.run(live.apply(2, 3))
        rows = await pool.run(live.query(None, (), tenant="t"))
        expected = python_fold(live, events(*given))
        assert {("t", row.account): row.total for row in rows} == {
            key: row["total"] for key, row in expected.items()
        }
        assert await asked(database_url, where) == before


# ---- on a node


async def test_own_tables_are_rebuilt_and_verified_beside_what_serves(database_url: str) -> None:
    app = App("shop", database_url)
    app.event("ordered")(Ordered)
    app.projection("orders")(Orders)
    async with app:
        for number in range(20):
            await app.append(f"s{number}", [Ordered(f"o{number:02}", ("nut",) * (number % 3))])
        await app.catch_up()
        clean = await asked(database_url, ORDERS, 'SELECT "order", name FROM items ORDER BY 1')
        async with connected(database_url) as other:
            await other.execute("UPDATE orders SET items = 99 WHERE id < 'o05'")

        found = await app.verify(Orders)
        await app.rebuild(Orders, timeout=30)

        assert {one.key for one in found.differences if one.table == "orders"} == {
            f"o{number:02}" for number in range(5)
        }
        assert (
            await asked(database_url, ORDERS, 'SELECT "order", name FROM items ORDER BY 1') == clean
        )
        await app.append("s99", [Ordered("o99", ("nut",))])
        await app.catch_up()
        assert (await asked(database_url, ORDERS))[0][-1] == ("o99", 1)
        schemas = "SELECT nspname FROM pg_namespace WHERE nspname LIKE '%~%'"
        assert await asked(database_url, schemas) == [[]]
