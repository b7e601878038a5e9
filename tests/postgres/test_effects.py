"""Side effects: once per batch, in its transaction, for events that they count for."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from banking import (
    Account,
    Accounts,
    Closed,
    Deposited,
    Opened,
    Owners,
    Summary,
    Thanked,
    bank_app,
    deposits,
)
from tally import committed, connected, end_backends, holds

import strandline as sl
from strandline.testing.faults import Proxy

CREATE = (
    "CREATE TABLE public.raised (n bigint GENERATED ALWAYS AS IDENTITY, position bigint, id text)"
)


class Thanking(Accounts):
    """Thanks for every deposit: in a stream, and in a table of the user's."""

    @sl.effects
    async def thanked(self, changes: sl.Changes[Account], tx: sl.Transaction) -> None:
        for change in changes:
            for event in change.of(Deposited):
                await tx.execute(
                    "INSERT INTO public.raised (position, id) VALUES ($1, $2)",
                    event.position,
                    change.id,
                )
                await tx.append(f"thanks-{change.id}", Thanked(event.position))


async def raised(operator: Any) -> list[int]:
    return [row[0] for row in await operator.fetch("SELECT position FROM public.raised ORDER BY n")]


async def wanted(app: sl.App) -> list[int]:
    """The positions of all deposits."""
    return [
        event.position
        async for event in app.read_all(settled=False)
        if isinstance(event.data, Deposited)
    ]


async def thanks(app: sl.App) -> list[int]:
    return [
        event.data.position
        async for event in app.read_all(settled=False)
        if isinstance(event.data, Thanked)
    ]


async def test_effects_happen_exactly_once_while_backends_are_killed(
    database_url: str, impatient: None
) -> None:
    app = bank_app(database_url, ("accounts", Thanking), page_events=20)
    async with app, connected(database_url) as operator:
        await operator.execute(CREATE)
        last = await deposits(app, 300)
        batches, killed = committed(app, "accounts"), 0
        await app.start()

        for round_ in range(1, 8):
            await batches(round_ * 2)
            killed += await end_backends(operator, "strandline work")
        await app.wait_for(last, "accounts")

        assert killed >= 7
        assert sorted(await raised(operator)) == await wanted(app)
        assert sorted(await thanks(app)) == await wanted(app)


async def test_effects_of_a_commit_with_a_lost_answer_are_not_repeated(
    database_url: str, impatient: None
) -> None:
    async with Proxy(database_url) as proxy, connected(database_url) as operator:
        await operator.execute(CREATE)
        async with bank_app(proxy.url, ("accounts", Thanking), page_events=20) as app:
            last = await deposits(app, 100)
            await app.start()

            for round_ in range(1, 5):
                proxy.swallow_answer_to(b"COMMIT")
                await holds(lambda wanted=round_: proxy.swallowed == wanted)
            await app.wait_for(last, "accounts")

            assert sorted(await raised(operator)) == await wanted(app)
            assert sorted(await thanks(app)) == await wanted(app)


async def test_a_change_has_the_document_after_the_batch_and_its_events_in_order(
    database_url: str,
) -> None:
    told: list[sl.Change[Account]] = []

    class Telling(Accounts):
        @sl.effects
        async def tell(self, changes: sl.Changes[Account], tx: sl.Transaction) -> None:
            told.extend(changes)
            for change in changes:
                if change.state is not None:
                    assert await tx.get("accounts", change.id) == change.state
                    change.state.balance = -1  # a copy: nothing follows from it

    async with bank_app(database_url, ("accounts", Telling)) as app:
        await app.append("a", [Opened("Ada"), Deposited(5)])
        await app.append("b", [Opened("Bo"), Closed()])
        await app.append("a", Deposited(7))
        await app.append("c", Deposited(9))  # an account that was never opened
        await app.catch_up()
        await app.append("a", Deposited(1))
        await app.catch_up()

        a, b, c, again = told
        assert (a.tenant, a.id, a.version, a.position) == ("default", "a", 3, 5)
        assert a.state is not None
        assert [event.data for event in a.events] == [Opened("Ada"), Deposited(5), Deposited(7)]
        assert a.of(Deposited)[1].metadata == sl.Metadata()
        assert (b.id, b.state, len(b.events)) == ("b", None, 2)
        assert (c.id, c.state, len(c.events)) == ("c", None, 1)
        assert (again.id, [event.data for event in again.events]) == ("a", [Deposited(1)])
        assert await app.get(Telling, "a") == Account("Ada", 13, [2, 3, 4])


async def test_a_batch_that_waits_for_its_effects_is_not_told_what_the_next_one_does(
    database_url: str,
) -> None:
    """The next page is folded while this one commits, on the same documents."""
    told: list[tuple[int, int]] = []

    class Slow(Accounts):
        @sl.effects
        async def tell(self, changes: sl.Changes[Account], tx: sl.Transaction) -> None:
            await tx.fetch("SELECT pg_sleep(0.03)")
            for change in changes:
                assert change.state is not None
                told.append((change.version, len(change.state.seen)))

    async with bank_app(database_url, ("accounts", Slow), page_events=2) as app:
        await app.append("a", [Opened("Ada"), *[Deposited(1)] * 19])
        await app.catch_up()

        assert told == [(version, version - 1) for version in range(2, 22, 2)]


async def test_only_events_beyond_the_gate_are_told(database_url: str) -> None:
    app = bank_app(database_url, ("accounts", Thanking), page_events=4)
    async with app, connected(database_url) as operator:
        await operator.execute(CREATE)
        await app.append("a", [Opened("Ada"), *[Deposited(1)] * 9])
        await app.start()  # declares
        await app.wait_for(10)
        assert await raised(operator) == list(range(2, 11))
        await app.stop()

        await gate(operator, 6)
        await app.start()
        await app.wait_for(10)
        again = (await raised(operator))[9:]
        assert again == [7, 8, 9, 10], "the second batch holds 5 to 8: part of it counts"
        await app.stop()

        await gate(operator, None)
        await app.catch_up()
        assert len(await raised(operator)) == 13


async def test_a_gate_that_opens_is_heard_of_under_the_next_epoch(database_url: str) -> None:
    app = bank_app(database_url, ("accounts", Thanking))
    async with app, connected(database_url) as operator:
        await operator.execute(CREATE)
        await app.append("a", Opened("Ada"))
        await app.start()
        await app.wait_for(1)
        await operator.execute("UPDATE strandline.slicings SET effects_after = NULL")
        await operator.execute("UPDATE strandline.shards SET epoch = epoch + 1, owner = NULL")
        await app.append("a", Deposited(1))
        await app.wait_for(2)
        assert await raised(operator) == []

        await operator.execute("UPDATE strandline.slicings SET effects_after = 2")
        await operator.execute("UPDATE strandline.shards SET epoch = epoch + 1, owner = NULL")
        await app.append("a", Deposited(1))
        await app.wait_for(3)

        assert await raised(operator) == [3]


async def test_a_new_version_speaks_when_the_older_one_is_retired(database_url: str) -> None:
    class Newer(Thanking):
        pass

    app = bank_app(database_url)
    app.projection("accounts", version=1)(Thanking)
    async with app, connected(database_url) as operator:
        await operator.execute(CREATE)
        await deposits(app, 50)
        await app.catch_up()
        first = await raised(operator)
    app = bank_app(database_url)
    app.projection("accounts", version=1)(Thanking)
    app.projection("accounts", version=2)(Newer)
    async with app, connected(database_url) as operator:
        await deposits(app, 50)
        await app.catch_up()
        await app.catch_up()
        assert await app.query("accounts:v1") == await app.query("accounts:v2")
        both = await raised(operator)
        assert both == await wanted(app), "one of them has spoken"
        assert len(both) > len(first)

        await app.retire("accounts:v1")
        await deposits(app, 50)
        await app.catch_up()

        assert await raised(operator) == await wanted(app)
        assert await thanks(app) == await wanted(app)


async def gate(operator: Any, after: int | None) -> None:
    """As if the projection began again, with its effects counting beyond a position."""
    await operator.execute("UPDATE strandline.slicings SET effects_after = $1", after)
    await operator.execute(
        "UPDATE strandline.shards SET position = 0, epoch = epoch + 1, owner = NULL"
    )
    await operator.execute("TRUNCATE strandline.doc_accounts_v1")


@pytest.mark.parametrize("shards", [1, 2])
async def test_effects_that_fail_for_one_event_leave_all_others_their_effects(
    database_url: str, shards: int
) -> None:
    class Choosy(Thanking):
        @sl.effects
        async def thanked(self, changes: sl.Changes[Account], tx: sl.Transaction) -> None:
            for change in changes:
                for event in change.of(Deposited):
                    await tx.execute(
                        "INSERT INTO public.raised (position) VALUES ($1)", event.position
                    )
                    if event.data.amount == 13:
                        raise ValueError("unlucky")

    app = bank_app(database_url)
    app.projection("accounts", shards=shards)(Choosy)
    async with app, connected(database_url) as operator:
        await operator.execute(CREATE)
        await app.append("a", [Opened("Ada"), Deposited(1), Deposited(13), Deposited(2)])
        last = (await app.append("b", [Opened("Bo"), Deposited(1), Deposited(2)])).position
        await app.start()
        await app.wait_for(last, timeout=20)

        assert sorted(await raised(operator)) == [2, 6, 7]
        assert await app.get(Choosy, "a") == Account("Ada", 1, [2]), "not without its effects"
        assert await app.get(Choosy, "b") == Account("Bo", 3, [2, 3])
        assert await letters(operator) == [("a", 3, "apply"), ("a", 4, None)]


async def test_a_conflict_in_effects_is_their_failure(
    database_url: str,
) -> None:
    failures: list[Exception] = []

    class Conflicting(Accounts):
        @sl.effects
        async def write(self, changes: sl.Changes[Account], tx: sl.Transaction) -> None:
            for change in changes:
                if change.of(Deposited):
                    await tx.append("log", Thanked(change.position), expected=sl.NO_STREAM)

    app = bank_app(database_url, ("accounts", Conflicting))
    async with app, connected(database_url) as operator:
        app.signals.listen(
            lambda notice: (
                failures.append(notice.facts["error"]) if notice.name == "batch_failed" else None
            )
        )
        await app.append("a", [Opened("Ada"), Deposited(1)])
        await app.catch_up()
        await app.append("b", [Opened("Bo"), Deposited(1)])
        await app.start()
        await app.wait_for(5, timeout=20)

        assert isinstance(failures[0], sl.ApplyFailed)
        assert isinstance(failures[0].__cause__, sl.WrongVersion)
        assert await letters(operator) == [("b", 5, "apply")]


async def test_of_a_document_per_key_all_that_an_event_has_wait_when_its_effects_fail(
    database_url: str,
) -> None:
    class Sides(sl.MultiStream[Summary]):
        @sl.key
        def sides(self, event: Deposited) -> list[str]:
            return ["in", "out"]

        @sl.apply
        def paid(self, summary: Summary, event: sl.RecordedEvent[Deposited]) -> None:
            summary.balances[str(event.position)] = event.data.amount

        @sl.effects
        async def fail(self, changes: sl.Changes[Summary], tx: sl.Transaction) -> None:
            if any(event.data.amount == 13 for change in changes for event in change.of(Deposited)):
                raise ValueError("unlucky")

    app = bank_app(database_url, ("sides", Sides))
    async with app, connected(database_url) as operator:
        await app.append("a", [Deposited(1), Deposited(13), Deposited(2)])
        await app.start()
        await app.wait_for(3, timeout=20)

        assert dict(await app.query(Sides)) == {
            "in": Summary({"1": 1}),
            "out": Summary({"1": 1}),
        }
        assert await letters(operator) == [
            ("in", 2, "apply"),
            ("in", 3, None),
            ("out", 2, "apply"),
            ("out", 3, None),
        ]


async def test_effects_that_fail_beside_a_document_that_fails_are_put_aside_with_it(
    database_url: str,
) -> None:
    class Sides(sl.MultiStream[Summary]):
        @sl.key
        def sides(self, event: Deposited) -> list[str]:
            return ["in", "out"]

        @sl.apply
        def paid(self, summary: Summary, event: sl.RecordedEvent[Deposited]) -> None:
            summary.balances[str(event.position)] = event.data.amount

        @sl.delete
        def refused(self, summary: Summary) -> bool:
            if list(summary.balances.values())[-1] == 13 and next(refusals):
                raise ValueError("one of two")
            return False

        @sl.effects
        async def fail(self, changes: sl.Changes[Summary], tx: sl.Transaction) -> None:
            if any(event.data.amount == 13 for change in changes for event in change.of(Deposited)):
                raise ValueError("unlucky")

    # Every other fold fails: that of a whole batch, and when it is put aside that of one document.
    refusals = itertools.cycle([True, False])
    app = bank_app(database_url, ("sides", Sides))
    async with app, connected(database_url) as operator:
        await app.append("a", [Deposited(1), Deposited(13), Deposited(2)])
        await app.start()
        await app.wait_for(3, timeout=20)

        assert {key for key, _, _ in await letters(operator)} == {"in", "out"}
        assert dict(await app.query(Sides)) == {"in": Summary({"1": 1}), "out": Summary({"1": 1})}


async def test_what_effects_append_is_processed_at_once(database_url: str) -> None:
    """Other nodes and this one are woken by the commit, not by the next poll."""

    class Thanks(sl.SingleStream[Account]):
        @sl.apply
        def thanked(self, account: Account, event: Thanked) -> None: ...

        @sl.create
        def first(self, event: Thanked) -> Account:
            return Account("thanks")

    app = bank_app(database_url, ("accounts", Thanking), ("thanks", Thanks), poll_interval=30)
    async with app, connected(database_url) as operator:
        await operator.execute(CREATE)
        await app.start()
        await app.append("a", [Opened("Ada"), Deposited(1)])

        await app.wait_for(3, Thanks, timeout=5)

        assert await app.get(Thanks, "thanks-a") == Account("thanks")


async def test_members_of_a_composite_have_effects_of_their_own(database_url: str) -> None:
    told: list[tuple[str, str, int]] = []

    class Telling(Owners):
        @sl.effects
        async def tell(self, changes: sl.Changes[Summary], tx: sl.Transaction) -> None:
            for change in changes:
                assert change.state is not None
                told.append((change.id, str(change.state.balances), len(change.events)))

    class Both(sl.Composite):
        stages = ({"accounts": Thanking}, {"owners": Telling})

    app = bank_app(database_url, ("both", Both))
    async with app, connected(database_url) as operator:
        await operator.execute(CREATE)
        await app.append("a", [Opened("Ada"), Deposited(1), Deposited(2)])
        await app.catch_up("both")

        assert await raised(operator) == [2, 3]
        assert told == [("Ada", "{'a': 3}", 0)]


async def test_an_agent_that_is_stopped_leaves_the_effects_under_way(database_url: str) -> None:
    begun = asyncio.Event()

    class Hanging(Accounts):
        @sl.effects
        async def hang(self, changes: sl.Changes[Account], tx: sl.Transaction) -> None:
            await tx.execute("INSERT INTO public.raised (position) VALUES (1)")
            begun.set()
            await asyncio.Event().wait()

    app = bank_app(database_url, ("accounts", Hanging))
    async with app, connected(database_url) as operator:
        await operator.execute(CREATE)
        await app.append("a", Opened("Ada"))
        await app.start()
        async with asyncio.timeout(10):
            await begun.wait()

        await app.stop(timeout=0.2)

        assert await raised(operator) == []
        assert await app.find(Hanging, "a") is None


async def letters(operator: Any) -> list[Any]:
    rows = await operator.fetch(
        "SELECT key, position, category FROM strandline.dead_letters ORDER BY key, position"
    )
    return [tuple(row) for row in rows]


async def test_a_rebuild_raises_no_effects(database_url: str) -> None:
    app = bank_app(database_url, ("accounts", Thanking))
    async with app, connected(database_url) as operator:
        await operator.execute(CREATE)
        await deposits(app, 100)
        await app.catch_up()
        once, accounts = await raised(operator), dict(await app.query(Thanking))
        await operator.execute(
            "UPDATE strandline.doc_accounts_v1 SET data = data || '{\"balance\": 0}'"
        )

        await app.rebuild(Thanking, timeout=30)

        assert dict(await app.query(Thanking)) == accounts
        assert await raised(operator) == once
        await app.append("a1", Deposited(1))
        await app.catch_up()
        assert len(await raised(operator)) == len(once) + 1, "and goes on as before"
        with pytest.raises(sl.InvalidInput, match="raise its side effects again"):
            await app.rebuild(Thanking, in_place=True)
