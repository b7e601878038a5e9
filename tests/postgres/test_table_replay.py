"""Parked rows of table projections: replayed in order, by the slice that has them."""

from __future__ import annotations

import random
from decimal import Decimal
from typing import Any

import pytest
from tables import (
    AT,
    TABLES,
    Closed,
    Noted,
    Restarted,
    Stored,
    Transferred,
    bound,
    events,
    python_fold,
    record,
    store,
)
from tabling import MOST, Mended, Shard, Totals, append_raw, logged, named
from tally import connected, holds

from strandline.app import App
from strandline.daemon import letters
from strandline.errors import InvalidInput
from strandline.projections.failure_policy import ErrorPolicy
from strandline.projections.slice import slices
from strandline.projections.table_declaration import Table
from strandline.projections.table_rules import add, column, on
from strandline.projections.table_values import POSITION, bucket

# ---- replay


async def test_replayed_after_a_fix_the_rows_are_those_of_a_clean_fold(database_url: str) -> None:
    given = [
        Noted("a", MOST),
        Noted("a", 1),
        Transferred("a", "b", 3),
        Restarted("a", 10),
        Noted("a", 2),
        Closed("a"),
        Transferred("b", "a", 4),
        Noted("c", MOST),
        Noted("c", 1),
        Noted("b", 7),
    ]
    async with logged(database_url, *given) as pool:
        shard = await Shard.of(pool, named(Totals))
        assert await shard.to(2) + await shard.to(10) == 2
        assert len(await shard.letters()) == 7

        mended = named(Mended)
        # As if the fixed rules had been there for the rows that are not parked, too.
        async with connected(database_url) as other:
            await other.execute("UPDATE strandline.table_totals_v1 SET total = 1 WHERE total > 99")
            await other.execute(
                "UPDATE strandline.table_totals_v1 SET total = 8 WHERE account = 'b'"
            )
        await shard.replayed(mended)

        assert await shard.letters() == []
        assert not shard.processor.parking
        assert await shard.stored() == python_fold(mended, events(*given))


async def test_events_that_come_during_the_wait_are_replayed_behind_the_others(
    database_url: str,
) -> None:
    given = [Noted("a", MOST), Noted("a", 1), Noted("a", -3), Noted("a", 1), Noted("a", -10)]
    async with logged(database_url, *given) as pool:
        shard = await Shard.of(pool, named(Totals))
        await shard.to(2)
        await shard.to(3)
        await shard.to(5)
        assert len(await shard.letters()) == 4

        await shard.replayed()  # all of them together are in range

        assert await shard.letters() == []
        assert await shard.stored() == python_fold(shard.rows, events(*given))


async def test_what_fails_again_stays_parked_with_all_behind_it(database_url: str) -> None:
    given = [Noted("a", MOST), Noted("a", 1), Noted("a", 2), Noted("b", 1)]
    async with logged(database_url, *given) as pool:
        shard = await Shard.of(pool, named(Totals))
        await shard.to(4)
        before = await shard.stored()

        await shard.replayed()

        assert await shard.letters("key, position, category, attempts, retry_at") == [
            ('["a"]', 2, "apply", 2, None),
            ('["a"]', 3, None, 0, None),
        ]
        assert ("t", '["a"]') in shard.processor.parking
        assert await shard.stored() == before


async def test_a_replay_touches_the_parked_row_alone(database_url: str) -> None:
    given = [Noted("a", MOST), Transferred("a", "b", 5), Noted("a", -9)]
    async with logged(database_url, *given) as pool:
        shard = await Shard.of(pool, named(Totals))
        await shard.to(2)
        await shard.to(3)

        await shard.replayed()

        assert await shard.letters() == []
        assert await shard.stored() == python_fold(shard.rows, events(*given))


async def test_events_that_are_about_another_row_by_now_are_not_lost(database_url: str) -> None:
    class Moved(Table):
        account = column(str, key="note")
        total = column(int, default=0)
        last = column(int)
        rules = (on(Noted, total=add("amount"), last=POSITION),)

    given = [Noted("a", MOST, note="z"), Noted("a", 1, note="z")]
    async with logged(database_url, *given) as pool:
        shard = await Shard.of(pool, named(Totals))
        await shard.to(2)

        await shard.replayed(named(Moved))

        assert await shard.letters("position, attempts") == [(2, 2)]
        found = await shard.letters("error->>'message'")
        assert "another row" in found[0][0]


async def test_an_event_that_the_new_rules_pass_over_is_resolved(database_url: str) -> None:
    class Deaf(Table):
        account = column(str, key="account")
        total = column(int, default=0)
        last = column(int)
        rules = (on(Restarted, total="amount", last=POSITION),)

    given = [Noted("a", MOST), Noted("a", 1), Restarted("a", 3)]
    async with logged(database_url, *given) as pool:
        shard = await Shard.of(pool, named(Totals))
        await shard.to(2)
        await shard.to(3)

        await shard.replayed(named(Deaf))

        assert await shard.letters() == []
        assert [row["total"] for row in (await shard.stored()).values()] == [3]


@pytest.mark.parametrize("table", TABLES, ids=lambda one: one.__name__)
async def test_any_log_with_bad_events_comes_to_a_clean_fold_once_they_are_mended(
    database_url: str, table: type[Table]
) -> None:
    chosen = random.Random(20)
    async with logged(database_url) as pool, connected(database_url) as other:
        for _ in range(8):
            await other.execute(
                "TRUNCATE strandline.events, strandline.dead_letters, strandline.shards"
            )
            log = [any_event(chosen, position) for position in range(1, 61)]
            await store(other, *map(record, log))
            bad = sorted(chosen.sample(range(1, 61), 5))
            kept = await other.fetch(
                "SELECT position, data FROM strandline.events WHERE position = ANY ($1)", bad
            )
            await other.execute(SPOIL, bad)
            rows = bound(table)
            shards = [await Shard.of(pool, rows, part) for part in slices(2)]
            await pool.run(rows.empty())

            for edge in sorted({*chosen.sample(range(1, 60), 4), 60}):
                for shard in shards:
                    await shard.to(edge)
            for row in kept:
                await other.execute(MEND, row["position"], row["data"])
            for shard in shards:
                await shard.replayed()

            assert await shards[0].letters() == []
            assert await shards[0].stored() == python_fold(rows, log)


SPOIL = """UPDATE strandline.events SET data = jsonb_set(data, '{amount}', '"much"')
            WHERE position = ANY ($1) AND data ? 'amount'"""
MEND = "UPDATE strandline.events SET data = $2 WHERE position = $1"


def any_event(chosen: random.Random, position: int) -> Stored:
    """Mostly sums; now and then a row begins anew, or ends."""
    name, other, amount = chosen.choice("abc"), chosen.choice("abcd"), chosen.randint(-50, 50)
    event = chosen.choice(
        [
            Noted(name, amount, Decimal(amount), note=other, at=AT, tags=[other]),
            Noted(name, amount, note=None),
            Transferred(name, other, amount),
            Transferred(name, other, amount),
            Restarted(name, amount),
            Closed(name) if position % 3 else Noted(name, amount),
        ]
    )
    return Stored(position, chosen.choice("tu"), "s", position, AT, event)


# ---- slices


async def test_each_slice_parks_and_replays_its_own_rows(database_url: str) -> None:
    given: list[Any] = [Noted(f"a{number}", MOST) for number in range(12)]
    given += [Transferred(f"a{number}", f"a{(number + 5) % 12}", 1) for number in range(12)]
    given += [Noted(f"a{number}", -9) for number in range(12)]
    async with logged(database_url, *given) as pool:
        shards = [await Shard.of(pool, named(Totals), part) for part in slices(3)]

        for shard in shards:
            await shard.to(24)
            await shard.to(36)

        everything = await shards[0].letters("key, position")
        assert len(everything) == len(set(everything)) == 36
        for shard in shards:
            await shard.replayed()
        assert await shards[0].letters() == []
        assert await shards[0].stored() == python_fold(shards[0].rows, events(*given))


async def test_an_event_whose_key_cannot_be_read_has_a_letter_of_each_slice(
    database_url: str,
) -> None:
    class Days(Table):
        day = column(str, key=bucket("day", "at"))
        total = column(int, default=0)
        rules = (on(Noted, total=add("amount")),)

    async with logged(database_url) as pool:
        for position in range(1, 9):
            at = f"2024-01-0{position}T00:00:00Z" if position != 4 else "soon"
            await append_raw(database_url, position, {"amount": 1, "at": at})
        shards = [await Shard.of(pool, named(Days, "days"), part) for part in slices(2)]

        for shard in shards:
            await shard.to(8)

        assert await shards[0].letters() == 2 * [("", 4, "skipped", "apply")]
        assert len(await shards[0].stored()) == 7


async def test_a_letter_belongs_to_the_slice_of_its_row_whoever_wrote_it(
    database_url: str,
) -> None:
    given: list[Any] = [Noted(f"a{number}", MOST) for number in range(8)]
    given += [Noted(f"a{number}", 1) for number in range(8)]
    async with logged(database_url, *given) as pool:
        whole = await Shard.of(pool, named(Totals))
        await whole.to(16)
        async with connected(database_url) as other:
            await other.execute("UPDATE strandline.dead_letters SET retry_at = now()")
        due = await pool.run(letters.due_letters("totals:v1", 0, 100))
        assert len(due) == 8

        owned = []
        for part in slices(3):
            shard = await Shard.of(pool, named(Totals), part)
            owned += [one.id for one in await shard.processor.owned(due)]

        assert sorted(owned) == sorted(one.id for one in due)


# ---- on a node


def table_app(url: str, *, on_error: ErrorPolicy | None = None, **settings: Any) -> App:
    app = App("tables", url, **{"failure_pause": 0.1, **settings})
    for cls in (Noted, Transferred, Restarted, Closed):
        app.event(cls.__name__)(cls)
    app.projection("totals", on_error=on_error)(Totals)
    return app


async def totals(app: App) -> dict[str, int]:
    return {row.account: row.total for row in await app.rows(Totals)}


async def no_letter(app: App) -> bool:
    return not await app.letters.list()


async def test_a_node_parks_a_row_and_drains_it_when_it_is_asked(
    database_url: str, impatient: None
) -> None:
    async with table_app(database_url) as app:
        await app.append("s", [Noted("a", MOST)])
        await app.start()
        await app.wait_for((await app.append("s", [Noted("b", 1)])).position)
        await app.append("s", [Noted("a", 1)])
        last = await app.append("s", [Noted("b", 2)])
        await app.wait_for(last.position)
        parked = await app.letters.list()
        last = await app.append("s", [Transferred("a", "b", -9)])
        await app.wait_for(last.position)

        assert [(one.key, one.status, one.category) for one in parked] == [
            ('["a"]', "parked", "apply")
        ]
        assert await totals(app) == {"a": MOST, "b": -6}
        assert await app.letters.retry(projection=Totals) == 1
        await holds(lambda: no_letter(app))
        assert await totals(app) == {"a": MOST - 8, "b": -6}


async def test_a_letter_of_a_table_takes_no_other_data(database_url: str, impatient: None) -> None:
    async with table_app(database_url) as app:
        await app.append("s", [Noted("a", MOST), Noted("a", 1)])
        await app.start()
        await app.wait_for(2)
        (parked,) = await app.letters.list()

        with pytest.raises(InvalidInput, match="totals:v1"):
            await app.letters.edit(parked.id, Noted("a", 0), reason="too much")


async def test_a_skipped_row_comes_back_by_a_rebuild_of_that_row_alone(
    database_url: str, impatient: None
) -> None:
    async with table_app(database_url, on_error=ErrorPolicy(apply="skip")) as app:
        await app.append("s", [Noted("a", MOST), Noted("a", 1), Noted("b", 1)])
        await app.start()
        await app.wait_for(3)
        (skipped,) = await app.letters.list()
        await app.wait_for((await app.append("s", [Noted("a", -9)])).position)
        assert await totals(app) == {"a": MOST - 9, "b": 1}
        async with connected(database_url) as other:
            await other.execute(
                "UPDATE strandline.table_totals_v1 SET total = 77 WHERE account = 'b'"
            )

        await app.letters.retry(skipped.id)

        assert await totals(app) == {"a": MOST - 8, "b": 77}
        assert await app.letters.list() == []


async def test_a_table_is_rebuilt_and_verified_beside_what_serves(database_url: str) -> None:
    async with table_app(database_url) as app:
        for number in range(30):
            await app.append(f"s{number % 3}", [Noted(f"a{number % 7}", number)])
        await app.catch_up()
        clean = await totals(app)
        async with connected(database_url) as other:
            await other.execute("UPDATE strandline.table_totals_v1 SET total = 0")

        found = await app.verify(Totals)
        await app.rebuild(Totals, parts=2, timeout=30)

        assert found.differing == 7
        assert {one.key for one in found.differences} == {f'["a{number}"]' for number in range(7)}
        assert await totals(app) == clean
        assert (await app.verify(Totals)).differing == 0
