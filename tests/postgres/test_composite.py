"""Composites: several projections, one read, one transaction, stages in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from banking import (
    Account,
    Accounts,
    Amounts,
    Bank,
    Closed,
    Deposited,
    Limits,
    Opened,
    Owners,
    Summary,
    bank_app,
    deposits,
)
from tally import connected, holds

import strandline as sl
from strandline.daemon.checkpoint import Checkpoint
from strandline.daemon.feed import FULL, Page, _rows
from strandline.postgres.operations import AsyncpgSession
from strandline.projections.slice import WHOLE
from strandline.telemetry.signals import Notice


async def test_members_hold_what_they_would_hold_alone(database_url: str) -> None:
    together = bank_app(database_url, ("bank", Bank), page_events=37, schema="together")
    alone = bank_app(
        database_url, ("accounts", Accounts), ("amounts", Amounts), schema="alone", page_events=37
    )
    async with together, alone:
        for app in (together, alone):
            await deposits(app, 500)
            await app.append("a3", Closed())
            await app.catch_up()

        for member in (Accounts, Amounts):
            found = dict(await together.query(member))
            assert found == dict(await alone.query(member))
            assert found


@pytest.mark.parametrize("page_events", [1, 7, 1000])
async def test_a_later_stage_holds_what_the_earlier_one_says_whatever_the_pages(
    database_url: str, page_events: int
) -> None:
    async with bank_app(database_url, ("bank", Bank), page_events=page_events) as app:
        await deposits(app, 100)
        await app.catch_up()
        await app.append("a3", Closed())
        await app.catch_up()

        wanted: dict[str, dict[str, int]] = {}
        for name, account in await app.query(Accounts):
            wanted.setdefault(account.owner, {})[name] = account.balance
        found = {key: one.balances for key, one in await app.query("owners")}
        assert found.pop("closed") == {"a3": 0}
        assert found["owner 1"].pop("a3") > 0, "told of before it was deleted"
        assert found == wanted


async def test_a_page_is_read_once_and_committed_once(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    plain = AsyncpgSession.run

    async def counted(self: AsyncpgSession, op: Any) -> Any:
        def noted() -> Any:
            try:
                call = next(op)
                while True:
                    asked.append(call.statement.name)
                    try:
                        rows = yield call
                    except BaseException as error:
                        call = op.throw(error)
                    else:
                        call = op.send(rows)
            except StopIteration as stop:
                return stop.value

        return await plain(self, noted())

    async with bank_app(database_url, ("bank", Bank), page_events=50) as app:
        await deposits(app, 500)
        batches = 0

        def hear(notice: Notice) -> None:
            nonlocal batches
            batches += notice.name == "batch_committed"

        app.signals.listen(hear)
        monkeypatch.setattr(AsyncpgSession, "run", counted)
        await app.catch_up()

    pages = [name for name in asked if name.endswith("_page")]
    assert 10 <= batches <= 13
    assert len(pages) <= batches + 1, "the last finds nothing"
    assert asked.count("move_checkpoint") == batches
    assert asked.count("save_documents") == 3 * batches


async def test_members_are_asked_by_class_and_by_name_and_waited_for(database_url: str) -> None:
    async with bank_app(database_url, ("bank", Bank)) as app:
        await app.append("a", [Opened("Ada"), Deposited(5)])
        last = (await app.append("a", Deposited(7))).position
        await app.start()

        await app.wait_for(last, Accounts, "owners")

        assert await app.catch_up(Amounts) == last
        assert await app.get(Accounts, "a") == Account("Ada", 12, [2, 3])
        assert await app.get("accounts", "a") == await app.get("accounts:v1", "a")
        assert await app.find("owners", "Ada") == Summary({"a": 12})
        assert await app.count(Amounts) == 2
        assert [one.name for one in await app.progress()] == ["bank:v1:all"]
        for ask in (app.query(Bank), app.count(Bank), app.rows(Bank), app.get(Bank, "a")):
            with pytest.raises(sl.InvalidDefinition, match="ask its members"):
                await ask
        with pytest.raises(sl.InvalidDefinition, match="only single-stream"):
            await app.live(Owners, "Ada")


async def test_members_show_one_position(database_url: str) -> None:
    """A commit that the fence refuses has written for none of them."""
    async with bank_app(database_url, ("bank", Bank)) as app:
        await deposits(app, 20)
        await app.catch_up()
        before = dict(await app.query(Accounts)), dict(await app.query(Amounts))
        (definition,) = app.opened_runtime.definitions(app._begin)
        processor = definition.make(WHOLE)
        last = (await app.append("a1", [Deposited(1), Deposited(2)])).position
        await app.catch_up("bank")
        page = await page_of(app, processor, after=last - 2, up_to=last)

        with pytest.raises(sl.CheckpointMoved):
            await processor.commit(
                await processor.prepare(page), Checkpoint("bank:v1:all", uuid4(), 1, last - 2)
            )

        after = dict(await app.query(Accounts)), dict(await app.query(Amounts))
        assert after[0]["a1"].balance == before[0]["a1"].balance + 3, "applied once"


async def test_an_event_that_fails_in_one_member_stops_no_other(database_url: str) -> None:
    async with bank_app(database_url, ("bank", Bank)) as app:
        await app.append("a", [Opened("Ada"), Deposited(5), Deposited(13), Deposited(7)])
        await app.append("b", [Opened("Bo"), Deposited(-1), Deposited(5), Deposited(9)])
        await app.append("c", [Opened("Cy"), Deposited(666), Deposited(4)])
        await app.catch_up()

        assert await app.get(Accounts, "a") == Account("Ada", 25, [2, 3, 4])
        assert await app.get(Accounts, "b") == Account("Bo"), "it waits"
        assert await app.get(Accounts, "c") == Account("Cy", 670, [2, 3])
        assert {key for key, _ in await app.query(Amounts)} == {"-1", "4", "5", "666", "7", "9"}
        assert await app.get(Owners, "Ada") == Summary({"a": 25})
        found = await letters(app)
        assert found == [
            ("accounts/b", 6, "parked", "apply"),
            ("accounts/b", 7, "parked", None),
            ("accounts/b", 8, "parked", None),
            ("amounts/", 3, "skipped", "apply"),
            ("owners/Cy", 10, "parked", "apply"),
            ("owners/Cy", 11, "parked", None),
        ]


async def test_a_document_that_cannot_be_stored_stops_no_other_member(database_url: str) -> None:
    class Odd(Amounts):
        @sl.apply
        def deposited(self, summary: Summary, event: sl.RecordedEvent[Deposited]) -> None:
            summary.balances["\0" if event.data.amount == 17 else event.stream] = 1

    class Storing(sl.Composite):
        stages = ({"accounts": Accounts, "odd": Odd}, {"owners": Owners})

    async with bank_app(database_url, ("storing", Storing)) as app:
        await app.append("a", [Opened("Ada"), Deposited(5), Deposited(17), Deposited(7)])
        await app.catch_up()

        assert await app.get(Accounts, "a") == Account("Ada", 29, [2, 3, 4])
        assert await app.get(Owners, "Ada") == Summary({"a": 29})
        assert {key for key, _ in await app.query(Odd)} == {"5", "7"}
        assert await letters(app) == [("odd/17", 3, "parked", "apply")]


async def test_an_event_that_nobody_knows_is_put_aside_for_every_member(database_url: str) -> None:
    app = bank_app(database_url)
    app.projection("bank", on_error=sl.ErrorPolicy(unknown_type="park"))(Bank)
    other = bank_app(database_url)

    @other.event("audited")
    @dataclass(frozen=True)
    class Audited:
        pass

    async with app, other:
        await other.append("a", [Opened("Ada"), Deposited(5), Audited(), Deposited(7)])
        await other.append("b", [Opened("Bo"), Deposited(5)])
        await app.catch_up()

        assert await app.get(Accounts, "a") == Account("Ada", 5, [2])
        assert {key for key, _ in await app.query(Amounts)} == {"5", "7"}
        assert await letters(app) == [
            ("accounts/a", 3, "parked", "unknown_type"),
            ("accounts/a", 4, "parked", None),
            ("amounts/", 3, "skipped", "unknown_type"),
            ("owners/", 3, "skipped", "unknown_type"),
        ]


async def test_a_slice_keeps_its_keys_of_every_member(database_url: str) -> None:
    class Two(sl.Composite):
        stages = ({"accounts": Accounts, "amounts": Amounts},)

    app = bank_app(database_url)
    app.projection("two", shards=3)(Two)
    async with app:
        await deposits(app, 300, streams=9)
        await app.catch_up()

        accounts, amounts = dict(await app.query(Accounts)), dict(await app.query(Amounts))
        assert sum(account.balance for account in accounts.values()) == sum(
            int(amount) * sum(one.balances.values()) for amount, one in amounts.items()
        )
        assert len(accounts) == 9
        for account in accounts.values():
            assert account.seen == list(range(2, len(account.seen) + 2))


async def test_what_waits_is_replayed_and_told_to_later_stages(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = bank_app(database_url, ("bank", Bank), page_events=3)
    never = bank_app(database_url, ("bank", Bank), schema="never")
    async with app, never:
        for one in (app, never):
            await one.append("a", [Opened("Ada"), Deposited(5), Deposited(13), Deposited(7)])
            await one.append("b", [Opened("Bo"), Deposited(-1), Deposited(5), Deposited(9)])
            await one.append("c", [Opened("Cy"), Deposited(666), Deposited(4)])
            await one.append("d", [Opened("Cy"), Deposited(13)])
        await app.catch_up()
        assert len(await letters(app)) == 9

        monkeypatch.setattr(Limits, "hold", False)
        await app.start()
        asked = await app.letters.retry(all=True)

        await holds(lambda: nothing_waits(app), timeout=20)
        await never.catch_up()
        assert asked >= 3
        for member in (Accounts, Amounts, Owners):
            assert dict(await app.query(member)) == dict(await never.query(member))
        await app.append("b", Deposited(1))
        await never.append("b", Deposited(1))
        await app.wait_for(14)
        await never.catch_up()
        for member in (Accounts, Amounts, Owners):
            assert dict(await app.query(member)) == dict(await never.query(member)), "and goes on"


async def nothing_waits(app: sl.App) -> bool:
    return not await letters(app)


async def test_members_are_rebuilt_together(database_url: str) -> None:
    async with bank_app(database_url, ("bank", Bank)) as app:
        await deposits(app, 200)
        await app.catch_up()
        before = [dict(await app.query(one)) for one in (Accounts, Amounts, Owners)]
        async with connected(database_url) as operator:
            await operator.execute("DELETE FROM strandline.doc_accounts_v1 WHERE id = 'a1'")
            await operator.execute("DELETE FROM strandline.doc_owners_v1")

        await app.rebuild(Bank, timeout=30)

        assert [dict(await app.query(one)) for one in (Accounts, Amounts, Owners)] == before
        assert (await app.verify(Bank)).differing == 0
        with pytest.raises(sl.InvalidDefinition, match="a member of bank:v1"):
            await app.rebuild(Accounts)
        await app.append("a1", Deposited(5))
        await app.catch_up()
        assert (await app.get(Accounts, "a1")).balance == before[0]["a1"].balance + 5


async def letters(app: sl.App) -> list[Any]:
    async with connected(app.url) as operator:
        return [
            tuple(row)
            for row in await operator.fetch(
                """SELECT key, position, status, category FROM strandline.dead_letters
                    WHERE status IN ('parked', 'skipped') ORDER BY key, position"""
            )
        ]


async def page_of(app: sl.App, processor: Any, *, after: int, up_to: int) -> Page:
    rows = await app.pools.work.run(_rows(FULL, after, up_to, 100, list(processor.appetite.names)))
    return Page(after, up_to, rows)
