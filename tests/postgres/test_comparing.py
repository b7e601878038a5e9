"""Live tables beside built ones: what is missing, extra and different, with both sides."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tally import connected

from strandline.daemon import comparing
from strandline.daemon.comparing import Compared, Difference, compare
from strandline.daemon.scope import EVERYTHING, Scope
from strandline.postgres.pools import Pool
from strandline.projections.shadow import Pair
from strandline.settings import Settings

DOCUMENTS = Pair('"live"."doc"', '"built"."doc"', ("tenant", "id"))


async def compared(url: str, pair: Pair, scope: Scope = EVERYTHING, listed: int = 100) -> Compared:
    pool = Pool("work", url, 2, Settings(database_url=url))
    await pool.open()
    try:
        return await pool.run(compare([pair], scope, listed=listed))
    finally:
        await pool.close()


async def made(url: str, *statements: str) -> None:
    async with connected(url) as connection:
        await connection.execute("CREATE SCHEMA live; CREATE SCHEMA built")
        for text in statements:
            for place in ("live", "built"):
                await connection.execute(text.replace("PLACE", place))


async def put(url: str, text: str) -> None:
    async with connected(url) as connection:
        await connection.execute(text)


async def documents(url: str) -> None:
    await made(
        url,
        "CREATE TABLE PLACE.doc (tenant text, id text, data jsonb, version bigint, position bigint,"
        " PRIMARY KEY (tenant, id))",
        """INSERT INTO PLACE.doc SELECT 'default', 'd' || n, jsonb_build_object('n', n), n, n
             FROM generate_series(1, 50) AS n""",
    )


async def test_nothing_is_wrong_when_nothing_is(database_url: str) -> None:
    await documents(database_url)
    await put(database_url, """UPDATE live.doc SET data = '{"n": 7.0}' WHERE id = 'd7'""")

    assert await compared(database_url, DOCUMENTS) == Compared(50, 0)


async def test_missing_extra_and_different_documents_are_listed_with_both_sides(
    database_url: str,
) -> None:
    await documents(database_url)
    await put(
        database_url,
        """DELETE FROM live.doc WHERE id = 'd1';
           DELETE FROM built.doc WHERE id = 'd2';
           UPDATE live.doc SET data = '{"n": 99}' WHERE id = 'd3';
           UPDATE live.doc SET version = 1 WHERE id = 'd4';
           INSERT INTO live.doc VALUES ('other', 'd5', '{}', 1, 1)""",
    )

    found = await compared(database_url, DOCUMENTS)

    assert (found.checked, found.differing) == (51, 5)
    assert [(one.tenant, one.key, one.kind) for one in found.differences] == [
        ("default", "d1", "missing"),
        ("default", "d2", "extra"),
        ("default", "d3", "differs"),
        ("default", "d4", "differs"),
        ("other", "d5", "extra"),
    ]
    missing, extra, differs, *_ = found.differences
    assert missing.live is None
    assert json.loads(missing.rebuilt or "") == {"data": {"n": 1}, "version": 1, "position": 1}
    assert extra.rebuilt is None
    assert json.loads(differs.live or "")["data"] == {"n": 99}
    assert Compared.parsed(found.json()) == found


async def test_only_the_first_are_listed_but_all_are_counted(database_url: str) -> None:
    await documents(database_url)
    await put(database_url, "DELETE FROM live.doc")

    found = await compared(database_url, DOCUMENTS, listed=3)

    assert (found.checked, found.differing, len(found.differences)) == (50, 50, 3)


async def test_what_is_beyond_the_scope_is_not_looked_at(database_url: str) -> None:
    await documents(database_url)
    await put(
        database_url, "DELETE FROM live.doc; INSERT INTO built.doc VALUES ('o', 'x', '{}', 1, 1)"
    )

    of_keys = await compared(database_url, DOCUMENTS, Scope("default", keys=("d1", "d3", "none")))
    of_tenant = await compared(database_url, DOCUMENTS, Scope("o"))

    assert (of_keys.checked, of_keys.differing) == (2, 2)
    assert (of_tenant.checked, of_tenant.differing) == (1, 1)


async def test_rows_of_any_columns_are_compared_by_their_key(database_url: str) -> None:
    await made(
        database_url,
        "CREATE TABLE PLACE.t (tenant text, day date, n bigint, raw json, at timestamptz,"
        " PRIMARY KEY (tenant, day, n))",
        """INSERT INTO PLACE.t VALUES ('default', '2024-01-02', 5, '{"a":1}', '2024-01-01Z'),
                                      ('default', '2024-01-03', 5, '{"a":1}', '2024-01-01Z')""",
    )
    await put(database_url, """UPDATE live.t SET raw = '{"a": 2}' WHERE day = '2024-01-03'""")

    found = await compared(database_url, Pair("live.t", "built.t", ("tenant", "day", "n")))

    assert (found.checked, found.differing) == (2, 1)
    assert [one.key for one in found.differences] == ['["2024-01-03", 5]']


async def test_tables_without_a_key_are_compared_row_by_row(database_url: str) -> None:
    await made(database_url, "CREATE TABLE PLACE.t (a int)", "INSERT INTO PLACE.t VALUES (1), (1)")
    pair = Pair("live.t", "built.t", ())
    assert await compared(database_url, pair) == Compared(2, 0)

    await put(database_url, "INSERT INTO live.t VALUES (1); INSERT INTO built.t VALUES (2)")
    found = await compared(database_url, pair)

    assert (found.checked, found.differing) == (4, 2)
    assert found.differences == (
        Difference("", "", "extra", '{"a": 1}', None),
        Difference("", "", "missing", None, '{"a": 2}'),
    )


async def test_long_documents_are_cut_in_the_list(database_url: str) -> None:
    await documents(database_url)
    await put(
        database_url,
        "UPDATE live.doc SET data = jsonb_build_object('x', repeat('y', 90000)) WHERE id = 'd1'",
    )

    (one,) = (await compared(database_url, DOCUMENTS)).differences

    assert len(one.live or "") == 2_000


async def test_large_tables_are_compared_piece_by_piece(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await documents(database_url)
    await put(
        database_url,
        """DELETE FROM live.doc WHERE id IN ('d1', 'd10', 'd9');
           INSERT INTO live.doc SELECT 'zz', n::text, '{}', 1, 1 FROM generate_series(1, 20) AS n""",
    )
    whole = await compared(database_url, DOCUMENTS)
    for rows in (1, 3, 7):
        monkeypatch.setattr(comparing, "PIECE", rows)

        assert await compared(database_url, DOCUMENTS) == whole
        assert len((await compared(database_url, DOCUMENTS, listed=4)).differences) == 4
    assert (whole.checked, whole.differing) == (70, 23)


async def test_pieces_end_at_keys_of_any_types(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "PIECE", 2)
    await made(
        database_url,
        "CREATE TABLE PLACE.t (day date, at timestamptz, n numeric, u uuid, PRIMARY KEY (day, at, n, u))",
        """INSERT INTO PLACE.t
           SELECT date '2024-01-01' + n % 3, timestamptz '2024-01-01Z' + n * interval '1 us', n / 3.0,
                  md5(n::text)::uuid FROM generate_series(1, 20) AS n""",
    )
    pair = Pair("live.t", "built.t", ("day", "at", "n", "u"))
    assert await compared(database_url, pair) == Compared(20, 0)

    await put(database_url, "DELETE FROM built.t WHERE n > 5")

    assert (await compared(database_url, pair)).differing == 5


def test_pairs_of_several_tables_name_theirs() -> None:
    def driven() -> Any:
        answers = iter([[], [(1, 1)], [("default", "k", "extra", "{}", None)], [], [(1, 0)]])
        operation = compare([DOCUMENTS, Pair('"live"."other"', '"built"."other"', ("id",))])
        try:
            next(operation)
            while True:
                operation.send(next(answers))
        except StopIteration as stop:
            return stop.value

    assert driven() == Compared(2, 1, (Difference("default", "k", "extra", "{}", None, "doc"),))
