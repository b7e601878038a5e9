"""Table projections with rows that fail: put aside row by row."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from tables import (
    AT,
    TYPES,
    Everything,
    Ledger,
    Noted,
    Simple,
    Stored,
    Transferred,
    bound,
    events,
    python_fold,
    record,
    store,
)
from tabling import MOST, Shard, Totals, append_raw, logged, named, without
from tally import connected

from strandline.daemon.checkpoint import claim
from strandline.daemon.feed import Page
from strandline.errors import (
    ApplyFailed,
    CheckpointMoved,
    EventFailure,
    UnknownEventType,
)
from strandline.projections.failure_policy import Action, ErrorPolicy
from strandline.projections.slice import WHOLE
from strandline.projections.table import TableRows
from strandline.projections.table_declaration import Table
from strandline.projections.table_fold import Within
from strandline.projections.table_rules import add, column, on
from strandline.projections.table_values import bucket

# ---- parking


async def test_a_row_that_fails_is_parked_and_all_others_go_on(database_url: str) -> None:
    given = [Noted("a", MOST), Noted("b", 1), Noted("a", 1), Noted("b", 2), Noted("a", 5)]
    async with logged(database_url, *given) as pool:
        shard = await Shard.of(pool, named(Totals))

        count = await shard.to(5)

        assert count == 1
        assert shard.checkpoint.position == 5
        assert await shard.letters() == [
            ('["a"]', 3, "parked", "apply"),
            ('["a"]', 5, "parked", None),
        ]
        assert await shard.stored() == python_fold(shard.rows, without(events(*given), 3, 5))


async def test_skipped_it_is_left_out_and_later_events_of_the_row_go_on(database_url: str) -> None:
    given = [Noted("a", MOST), Noted("a", 1), Noted("a", -5)]
    async with logged(database_url, *given) as pool:
        shard = await Shard.of(pool, named(Totals), policy=ErrorPolicy(apply="skip"))

        await shard.to(2)
        await shard.to(3)

        assert await shard.letters() == [('["a"]', 2, "skipped", "apply")]
        assert await shard.stored() == python_fold(shard.rows, without(events(*given), 2))


async def test_of_an_event_with_several_rules_only_the_failing_row_is_put_aside(
    database_url: str,
) -> None:
    given = [Noted("a", MOST), Transferred("a", "b", 5), Transferred("b", "a", 7), Noted("b", 1)]
    async with logged(database_url, *given) as pool:
        shard = await Shard.of(pool, named(Totals))

        await shard.to(4)

        assert await shard.letters() == [
            ('["a"]', 2, "parked", "apply"),
            ('["a"]', 3, "parked", None),
        ]
        assert {key[1]: row["total"] for key, row in (await shard.stored()).items()} == {
            "a": MOST,
            "b": 13,
        }


async def test_both_rows_of_one_event_can_fail(database_url: str) -> None:
    given = [Noted("a", MOST), Noted("b", MOST), Transferred("a", "b", 5), Noted("c", 1)]
    async with logged(database_url, *given) as pool:
        shard = await Shard.of(pool, named(Totals))

        await shard.to(4)

        assert await shard.letters("key, position, status") == [
            ('["a"]', 3, "parked"),
            ('["b"]', 3, "parked"),
        ]
        assert {key[1] for key in await shard.stored()} == {"a", "b", "c"}


async def test_several_rows_of_one_page_are_parked_each_with_what_comes_behind(
    database_url: str,
) -> None:
    given: list[Any] = []
    for number in range(200):
        name = f"a{number % 20}"
        given.append(Noted(name, MOST if number in (7, 27, 53, 73, 99, 119) else 1))
    async with logged(database_url, *given) as pool:
        shard = await Shard.of(pool, named(Totals))

        count = await shard.to(200)

        waiting = [(key, position) for key, position, _, category in await shard.letters()]
        expected = []
        started: dict[str, int] = {}
        sums: dict[str, int] = {}
        for one in events(*given):
            name = one.event.account
            sums[name] = sums.get(name, 0) + one.event.amount
            if name in started or sums[name] > MOST:
                started.setdefault(name, one.position)
                expected.append((f'["{name}"]', one.position))
        assert waiting == expected
        assert count == len(started)
        done = without(events(*given), *(position for _, position in expected))
        assert await shard.stored() == python_fold(shard.rows, done)


async def test_parked_rows_of_two_tenants_are_told_apart(database_url: str) -> None:
    log = [
        Stored(1, "t", "s", 1, AT, Noted("a", MOST)),
        Stored(2, "t", "s", 2, AT, Noted("a", 1)),
        Stored(3, "u", "s", 1, AT, Noted("a", 1)),
        Stored(4, "u", "s", 2, AT, Noted("a", 2)),
        Stored(5, "t", "s", 3, AT, Noted("a", 3)),
    ]
    async with logged(database_url) as pool:
        async with connected(database_url) as other:
            await store(other, *map(record, log))
        shard = await Shard.of(pool, named(Totals))

        await shard.to(5)

        assert await shard.letters("tenant, key, position") == [
            ("t", '["a"]', 2),
            ("t", '["a"]', 5),
        ]
        assert await shard.stored() == python_fold(shard.rows, without(log, 2, 5))


# ---- finding out


async def test_a_sum_out_of_range_is_told_with_its_position(database_url: str) -> None:
    given = [Noted(f"a{number % 9}", 1) for number in range(60)]
    given[50] = Noted("a5", MOST)
    async with logged(database_url, *given) as pool:
        shard = await Shard.of(pool, named(Totals))

        with pytest.raises(ApplyFailed, match="out of range") as failure:
            await shard.once(60)

        assert failure.value.position == 51
        assert await shard.stored() == {}


async def test_a_sum_that_comes_back_into_range_within_a_page_is_no_failure(
    database_url: str,
) -> None:
    given = [Noted("a", MOST), Noted("a", 5), Noted("a", -9)]
    async with logged(database_url, *given) as pool:
        shard = await Shard.of(pool, named(Totals))

        assert await shard.to(3) == 0
        assert await shard.stored() == python_fold(shard.rows, events(*given))


async def test_a_bad_value_of_a_parked_row_is_not_blamed_for_another_failure(
    database_url: str,
) -> None:
    async with logged(database_url, Noted("a", 1), Noted("b", MOST)) as pool:
        for position in (3, 4):
            await append_raw(database_url, position, {"account": "a", "amount": "much"})
        async with connected(database_url) as other:
            await store(other, record(Stored(5, "t", "y", 5, AT, Noted("b", 1))))
        shard = await Shard.of(pool, named(Totals))
        await shard.to(3)

        with pytest.raises(ApplyFailed, match="out of range") as failure:
            await shard.once(5)

        assert failure.value.position == 5
        assert await shard.to(5) == 1
        assert await shard.letters("key, position, category") == [
            ('["a"]', 3, "apply"),
            ('["a"]', 4, None),
            ('["b"]', 5, "apply"),
        ]


async def test_an_event_whose_key_cannot_be_read_is_put_aside_whole(database_url: str) -> None:
    class Daily(Table):
        day = column("date", key=bucket("day", "at"))
        account = column(str, key="account")
        total = column(int, default=0)
        rules = (
            on(Noted, day=bucket("day", "at"), total=add("amount")),
            on(Noted, day=bucket("day"), total=add("amount")),
        )

    async with logged(database_url) as pool:
        for position, at in enumerate(["2024-01-01T00:00:00Z", "soon", "2024-01-02T00:00:00Z"], 1):
            await append_raw(database_url, position, {"account": "a", "amount": 1, "at": at})
        shard = await Shard.of(pool, named(Daily, "daily"))

        await shard.to(3)

        assert await shard.letters() == [("", 2, "skipped", "apply")]
        assert sorted(row["total"] for row in (await shard.stored()).values()) == [1, 1, 2]
        assert not shard.processor.parking

        await shard.replayed()

        assert await shard.letters("key, position, attempts") == [("", 2, 2)]
        async with connected(database_url) as other:
            await other.execute(
                """UPDATE strandline.events SET data = data || '{"at": "2024-01-01T00:00:00Z"}'"""
            )
        await shard.replayed()
        found = await shard.letters("attempts, error->>'message'")
        assert found[0][0] == 3
        assert "rebuild the table" in found[0][1]


async def test_a_value_without_a_row_that_fails_is_put_aside_without_a_key(
    database_url: str,
) -> None:
    async with logged(database_url, Noted("a", 1)) as pool:
        await append_raw(database_url, 2, {"account": None, "amount": "much"})
        shard = await Shard.of(pool, named(Totals))

        await shard.to(2)

        assert await shard.letters() == [("", 2, "skipped", "apply")]
        assert len(await shard.stored()) == 1
        await shard.replayed()
        assert await shard.letters() == []  # it is about no row


async def test_a_key_too_long_for_an_index_is_put_aside_under_a_short_name(
    database_url: str,
) -> None:
    key = "".join(uuid4().hex for _ in range(300))
    async with logged(database_url, Noted("a", 1), Noted(key, 1), Noted(key, 2)) as pool:
        shard = await Shard.of(pool, named(Totals))

        await shard.to(3)

        found = await shard.letters("position, length(key) < 300, category")
        assert found == [(2, True, "apply"), (3, True, None)]
        assert [key[1] for key in await shard.stored()] == ["a"]


async def test_equal_keys_have_one_name_however_they_are_written(database_url: str) -> None:
    class Odd(Table):
        price = column(Decimal, key="price")
        at = column(datetime, key="at")
        total = column(int, default=0)
        rules = (on(Noted, total=add("amount")),)

    async with logged(database_url) as pool:
        written = [("1.50", "2024-01-01T12:00:00Z"), ("1.5", "2024-01-01T13:00:00+01:00")]
        for position, (price, at) in enumerate(written * 2, 1):
            amount = MOST if position <= 2 else -1
            data = {"price": price, "at": at, "amount": amount}
            await append_raw(database_url, position, data)
        shard = await Shard.of(pool, named(Odd, "odd"))

        await shard.once(1)
        await shard.to(4)

        name = '[1.5, "2024-01-01T12:00:00"]'
        assert await shard.letters("key, position") == [(name, 2), (name, 3), (name, 4)]


# ---- letters, checkpoint and fence


async def test_letters_rows_and_checkpoint_are_one_transaction(database_url: str) -> None:
    given = [Noted("a", MOST), Noted("a", 1), Noted("b", 1), Noted("a", 2)]
    async with logged(database_url, *given) as pool:
        shard = await Shard.of(pool, named(Totals))
        await shard.to(2)
        before = (await shard.letters(), await shard.stored())
        batch = await shard.processor.prepare(Page(2, 4, ()))
        await pool.run(claim(shard.checkpoint.shard, uuid4()))  # another owner

        with pytest.raises(CheckpointMoved):
            await shard.processor.commit(batch, shard.checkpoint)

        assert (await shard.letters(), await shard.stored()) == before


async def test_a_batch_made_before_a_row_was_parked_leaves_that_row_alone(
    database_url: str,
) -> None:
    given = [Noted("a", MOST), Noted("a", 1), Noted("a", 2), Noted("b", 1)]
    async with logged(database_url, *given) as pool:
        shard = await Shard.of(pool, named(Totals))
        early = await shard.processor.prepare(Page(2, 4, ()))
        await shard.to(2)

        await shard.commit(early)

        assert await shard.letters("key, position") == [('["a"]', 2), ('["a"]', 3)]
        assert {key[1]: row["total"] for key, row in (await shard.stored()).items()} == {
            "a": MOST,
            "b": 1,
        }


async def test_a_new_owner_knows_what_is_parked(database_url: str) -> None:
    given = [Noted("a", MOST), Noted("a", 1), Noted("a", 2)]
    async with logged(database_url, *given) as pool:
        await (await Shard.of(pool, named(Totals))).to(2)

        other = await Shard.of(pool, named(Totals))
        await other.to(3)

        assert await other.letters("position, category") == [(2, "apply"), (3, None)]


# ---- unknown types


async def test_an_unknown_type_is_told_with_its_position_where_it_counts_as_a_failure(
    database_url: str,
) -> None:
    async with logged(database_url, Noted("a", 1), Noted("a", 2)) as pool:
        async with connected(database_url) as other:
            await other.execute("UPDATE strandline.events SET type = 'odd' WHERE position = 2")
        known = frozenset(TYPES.classes)
        strict = await Shard.of(pool, named(Totals), known=known)

        with pytest.raises(UnknownEventType) as failure:
            await strict.once(2)

        assert (failure.value.position, failure.value.event_type) == (2, "odd")
        strict.policy = ErrorPolicy(unknown_type="park")
        await strict.to(2)
        assert await strict.letters() == [("", 2, "skipped", "unknown_type")]
        assert [row["total"] for row in (await strict.stored()).values()] == [1]


async def test_unknown_types_are_passed_over_unless_they_count_as_failures(
    database_url: str,
) -> None:
    async with logged(database_url, Noted("a", 1), Noted("a", 2)) as pool:
        async with connected(database_url) as other:
            await other.execute("UPDATE strandline.events SET type = 'odd' WHERE position = 2")
        shard = await Shard.of(pool, named(Totals))

        await shard.once(2)

        assert [row["total"] for row in (await shard.stored()).values()] == [1]


# ---- parts of a table, places


async def test_a_wider_page_is_not_put_aside(database_url: str) -> None:
    async with logged(database_url, Noted("a", MOST), Noted("a", 1)) as pool:
        shard = await Shard.of(pool, named(Totals))
        error = ApplyFailed("totals:v1", "it fails", position=2)

        with pytest.raises(EventFailure, match="it fails"):
            await shard.processor.aside(Page(0, 2, ()), error, lambda _: Action.PARK)


async def test_a_build_of_a_part_folds_the_rows_of_that_part_alone(database_url: str) -> None:
    given = [Noted("a", 1), Noted("b", 2), Transferred("a", "b", 3), Noted("c", 4)]
    async with logged(database_url, *given) as pool:
        projection = named(Totals).projection
        tenant = TableRows(projection, '"shadow"', Within("t"))
        some = TableRows(projection, '"shadow"', Within("t", ('["b"]', '["c"]')))
        nobody = TableRows(projection, '"shadow"', Within("u"))
        found = []
        for rows in (tenant, some, nobody):
            async with pool.transaction() as session:
                await session.connection.execute("CREATE SCHEMA shadow")
                await session.run(rows.create())
                await session.run(rows.apply(0, 4))
                found.append(await session.run(rows.query(None, (), tenant="t")))
                await session.connection.execute("DROP SCHEMA shadow CASCADE")

    assert [[(row.account, row.total) for row in one] for one in found] == [
        [("a", 4), ("b", 5), ("c", 4)],
        [("b", 5), ("c", 4)],
        [],
    ]


def test_without_parked_rows_the_statement_is_the_plain_one() -> None:
    for table in (Everything, Simple, Ledger):
        rows = bound(table)

        plain = rows.fold_of(WHOLE)
        sparing = rows.fold_of(WHOLE, spared=True)

        assert "unnest" not in plain.text
        assert [one.name for one in plain.parameters] == ["floor", "ceiling", "positions"]
        assert len(sparing.parameters) == 5
        calls = list(rows.apply(0, 1))
        assert [(call.statement, len(call.arguments)) for call in calls] == [(plain, 3)]
