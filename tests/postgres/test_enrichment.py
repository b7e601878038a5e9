"""Enrichment: what a page of events needs is looked up once, and handlers find it."""

from __future__ import annotations

from typing import Any

import pytest
from banking import (
    Account,
    Accounts,
    Bank,
    Deposited,
    Events,
    Opened,
    Summary,
    bank_app,
    deposits,
)
from tally import connected

import strandline as sl

RATES = "CREATE TABLE public.rates (currency text PRIMARY KEY, rate bigint)"


class Worth(sl.MultiStream[Summary]):
    """Of each owner what was deposited, at the rate of the account's currency."""

    calls: int = 0
    sizes: list[int] = []  # noqa: RUF012 - shared on purpose: the test looks at it

    @sl.enrich
    async def owners_and_rate(self, events: Events, look: sl.Lookup) -> list[Any]:
        type(self).calls += 1
        self.sizes.append(len(events))
        accounts = await look.documents("accounts", {event.stream for event in events})
        (rate,) = await look.fetch("SELECT rate FROM public.rates WHERE currency = $1", "gold")
        return [(accounts[event.stream].owner, rate["rate"]) for event in events]

    @sl.key
    def owner(self, event: sl.RecordedEvent[Deposited]) -> str:
        name: str = event.found[0]
        return name

    @sl.apply
    def deposited(self, summary: Summary, event: sl.RecordedEvent[Deposited]) -> None:
        worth = event.data.amount * event.found[1]
        summary.balances[event.stream] = summary.balances.get(event.stream, 0) + worth


@pytest.fixture(autouse=True)
def uncounted() -> None:
    Worth.calls = 0
    Worth.sizes.clear()


async def test_a_page_of_a_thousand_events_is_looked_up_once(database_url: str) -> None:
    app = bank_app(database_url, ("accounts", Accounts), page_events=1_000)
    async with app, connected(database_url) as operator:
        await operator.execute(RATES)
        await operator.execute("INSERT INTO public.rates VALUES ('gold', 3)")
        await deposits(app, 1_000)
        await app.catch_up()
    app = bank_app(
        database_url, ("accounts", Accounts), ("worth", Worth), page_events=1_000, page_bytes=2**24
    )
    async with app:
        await app.catch_up()

        assert sum(Worth.sizes) == 1_000
        pages = [size for size in Worth.sizes if size > 300]
        assert Worth.calls <= 4, Worth.sizes
        assert pages, "the first page is small, as the size of events is not known yet"
        accounts = dict(await app.query(Accounts))
        assert {
            name: balance
            for _, one in await app.query(Worth)
            for name, balance in one.balances.items()
        } == {name: 3 * account.balance for name, account in accounts.items()}
        assert {key for key, _ in await app.query(Worth)} == {"owner 0", "owner 1"}


async def test_what_is_found_can_be_said_by_position_and_for_some_only(database_url: str) -> None:
    class Odd(Accounts):
        @sl.enrich
        async def odd(self, events: Events, look: sl.Lookup) -> dict[int, str]:
            return {event.position: "odd" for event in events if event.position % 2}

        @sl.apply
        def deposited(self, account: Account, event: sl.RecordedEvent[Deposited]) -> None:
            if event.found == "odd":
                account.seen.append(event.position)
            else:
                assert event.found is None

    async with bank_app(database_url, ("accounts", Odd)) as app:
        await app.append("a", [Opened("Ada"), *[Deposited(1)] * 5])
        await app.catch_up()

        assert (await app.get(Odd, "a")).seen == [3, 5]
        assert [event.found for event in await app.read_stream("a")] == [None] * 6
        with pytest.raises(sl.InvalidDefinition, match="only nodes fold it"):
            await app.live(Odd, "a")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ([1], "answered 1 for 2 events"),
        ({99: 1}, "answered for [99]"),
        (None, "not NoneType"),
        ("ab", "not str"),
    ],
)
async def test_an_answer_that_does_not_fit_is_refused(
    database_url: str, answer: Any, reason: str
) -> None:
    class Wrong(Accounts):
        @sl.enrich
        async def look_up(self, events: Events, look: sl.Lookup) -> Any:
            return answer

    app = bank_app(database_url)
    app.projection("accounts", on_error=sl.ErrorPolicy(apply="pause"))(Wrong)
    async with app:
        await app.append("a", [Opened("Ada"), Deposited(1)])

        with pytest.raises(sl.ApplyFailed) as failed:
            await app.catch_up(timeout=20)

        assert reason in str(failed.value)


async def test_an_event_that_cannot_be_looked_up_waits_and_others_go_on(database_url: str) -> None:
    class Picky(Accounts):
        @sl.enrich
        async def look_up(self, events: Events, look: sl.Lookup) -> list[None]:
            for event in events:
                if isinstance(event.data, Deposited) and event.data.amount == 13:
                    raise ValueError("unlucky")
            return [None] * len(events)

    app = bank_app(database_url, ("accounts", Picky))
    async with app, connected(database_url) as operator:
        await app.append("a", [Opened("Ada"), Deposited(1), Deposited(13), Deposited(2)])
        await app.append("b", [Opened("Bo"), Deposited(1), Deposited(2)])
        await app.start()
        await app.wait_for(7, timeout=20)

        assert await app.get(Picky, "a") == Account("Ada", 1, [2])
        assert await app.get(Picky, "b") == Account("Bo", 3, [2, 3])
        rows = await operator.fetch("SELECT key, position FROM strandline.dead_letters ORDER BY 2")
        assert [tuple(row) for row in rows] == [("a", 3), ("a", 4)]


async def test_a_look_up_without_an_answer_is_an_outage(database_url: str) -> None:
    failures: list[Exception] = []

    class Waiting(Accounts):
        tries = 0

        @sl.enrich
        async def look_up(self, events: Events, look: sl.Lookup) -> list[Any]:
            type(self).tries += 1
            if self.tries == 1:
                raise sl.DatabaseUnavailable("the other database is away")
            return [None] * len(events)

    app = bank_app(database_url, ("accounts", Waiting))
    async with app:
        app.signals.listen(
            lambda notice: (
                failures.append(notice.facts["category"]) if notice.name == "batch_failed" else None
            )
        )
        await app.append("a", [Opened("Ada"), Deposited(1)])
        await app.catch_up()

        assert [str(one) for one in failures] == ["database"]
        assert await app.get(Waiting, "a") == Account("Ada", 1, [2])


async def test_nobody_looks_up_what_he_is_about_to_change(database_url: str) -> None:
    """It would lack the earlier events of the page, and nobody would notice."""

    class Own(Accounts):
        @sl.enrich
        async def look_up(self, events: Events, look: sl.Lookup) -> list[Any]:
            await look.documents("accounts", ["a"])
            return [None] * len(events)

    class Sibling(sl.MultiStream[Summary]):
        @sl.enrich
        async def look_up(self, events: Events, look: sl.Lookup) -> list[Any]:
            await look.documents("accounts", ["a"])
            return [None] * len(events)

        @sl.key
        def one(self, event: Deposited) -> str:
            return "one"

        @sl.apply
        def paid(self, summary: Summary, event: Deposited) -> None: ...

    class Both(sl.Composite):
        stages = ({"accounts": Accounts}, {"sibling": Sibling})

    for number, projection in enumerate((Own, Both)):
        name = "accounts" if projection is Own else "both"
        async with bank_app(database_url, (name, projection), schema=f"s{number}") as app:
            await app.append("a", [Opened("Ada"), Deposited(1)])
            with pytest.raises(sl.InvalidDefinition, match="cannot look up its own documents"):
                await app.catch_up(timeout=20)


async def test_a_member_of_a_composite_is_enriched(database_url: str) -> None:
    class Looking(Accounts):
        @sl.enrich
        async def look_up(self, events: Events, look: sl.Lookup) -> list[int]:
            return [2 * event.position for event in events]

        @sl.apply
        def deposited(self, account: Account, event: sl.RecordedEvent[Deposited]) -> None:
            account.balance = event.found

    class Enriched(Bank):
        stages = ({"accounts": Looking}, Bank.stages[1])

    async with bank_app(database_url, ("bank", Enriched)) as app:
        await app.append("a", [Opened("Ada"), Deposited(1), Deposited(1)])
        await app.catch_up()

        assert await app.get(Looking, "a") == Account("Ada", 6)
        assert await app.get("owners", "Ada") == Summary({"a": 6})
