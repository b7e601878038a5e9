"""Effects, enrichment and composites: what is refused when it is declared, and scenarios."""

from __future__ import annotations

from typing import Any

import pytest
from banking import (
    Account,
    Accounts,
    Amounts,
    Bank,
    Closed,
    Deposited,
    Events,
    Opened,
    Owners,
    Summary,
    Thanked,
    bank_app,
)

import strandline as sl
from strandline.testing import scenario


class Thanking(Accounts):
    @sl.effects
    async def thanked(self, changes: sl.Changes[Account], tx: sl.Transaction) -> None:
        for change in changes:
            for event in change.of(Deposited):
                await tx.append(f"thanks-{change.id}", Thanked(event.version))
                await tx.execute("INSERT INTO thanks VALUES ($1)", change.id)


class Counting(sl.MultiStream[Summary]):
    @sl.enrich
    async def owners(self, events: Events, look: sl.Lookup) -> list[Any]:
        found = await look.documents("accounts", [event.stream for event in events])
        return [found.get(event.stream) for event in events]

    @sl.key
    def owner(self, event: sl.RecordedEvent[Deposited]) -> str | None:
        return event.found.owner if event.found else None

    @sl.apply
    def deposited(self, summary: Summary, event: sl.RecordedEvent[Deposited]) -> None:
        summary.balances[event.stream] = event.data.amount


def composite(*stages: Any) -> type[sl.Composite]:
    return type("Made", (sl.Composite,), {"stages": stages})


class OwnTables(sl.Sql):
    @sl.execute
    def write(self, event: Opened) -> None: ...


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ((), "stages is a tuple of dicts"),
        (({},), "stage 1 is a dict"),
        ((["accounts"],), "stage 1 is a dict"),
        (({"accounts": OwnTables},), "register them beside it"),
        (({"accounts": Accounts()},), "members are"),
        (({"accounts": Accounts}, {"accounts": Amounts}), "accounts is in it twice"),
        (({"one": Accounts}, {"two": Accounts}), "Accounts is in it twice"),
        (({"bank": Accounts},), "needs a name of its own"),
        (({"no name": Accounts},), "is not a name"),
        (({"owners": Owners},), "no earlier stage"),
        (({"accounts": Accounts, "owners": Owners},), "no earlier stage"),
    ],
)
def test_a_composite_that_cannot_run_is_refused(stages: Any, words: str) -> None:
    app = bank_app("")

    with pytest.raises(sl.InvalidDefinition, match=words):
        app.projection("bank")(composite(*stages))


def test_one_dict_is_no_stages() -> None:
    made = type("Made", (sl.Composite,), {"stages": {"accounts": Accounts}})

    with pytest.raises(sl.InvalidDefinition, match="stages is a tuple of dicts"):
        bank_app("").projection("bank")(made)


def test_a_name_of_a_member_is_taken() -> None:
    app = bank_app("", ("bank", Bank))

    with pytest.raises(sl.InvalidDefinition, match="taken"):
        app.projection("accounts")(Accounts)


def test_only_what_stays_in_a_slice_can_be_cut() -> None:
    class Same(sl.SingleStream[Summary]):
        @sl.apply
        def updated(self, summary: Summary, event: sl.Updated[Account]) -> None: ...

    bank_app("").projection("one", shards=3)(composite({"accounts": Accounts}, {"same": Same}))

    with pytest.raises(sl.InvalidDefinition, match="other shards would tell of"):
        bank_app("").projection("bank", shards=3)(Bank)


@pytest.mark.parametrize("lifecycle", ["inline", "live"])
@pytest.mark.parametrize("projection", [Thanking, Counting, Bank])
def test_only_what_nodes_run_has_effects_enrichment_and_stages(
    projection: Any, lifecycle: str
) -> None:
    with pytest.raises(sl.InvalidDefinition, match="nodes run"):
        bank_app("").projection("accounts", lifecycle=lifecycle)(projection)


def test_effects_and_enrichment_wait_and_take_two() -> None:
    with pytest.raises(sl.InvalidDefinition, match="is for `async def`"):
        sl.effects(lambda self, changes, tx: None)
    with pytest.raises(sl.InvalidDefinition, match="it takes"):

        class _Short:
            @sl.enrich
            async def short(self, events: Any) -> None: ...


def test_a_projection_has_one_method_for_effects() -> None:
    class Twice(Thanking):
        @sl.effects
        async def again(self, changes: sl.Changes[Account], tx: sl.Transaction) -> None: ...

    with pytest.raises(sl.InvalidDefinition, match="thanked and again"):
        bank_app("").projection("accounts")(Twice)


def test_projections_without_documents_have_no_effects() -> None:
    class Sql(OwnTables):
        @sl.effects
        async def raised(self, changes: Any, tx: Any) -> None: ...

    with pytest.raises(sl.InvalidDefinition, match="only sl.SingleStream and sl.MultiStream"):
        bank_app("").projection("own")(Sql)


def test_notices_say_of_which_documents_and_have_no_envelope() -> None:
    class Bare(sl.SingleStream[Summary]):
        @sl.apply
        def updated(self, summary: Summary, event: sl.Updated) -> None: ...  # type: ignore[type-arg]

    class Wrapped(sl.SingleStream[Summary]):
        @sl.apply
        def updated(
            self, summary: Summary, event: sl.RecordedEvent[sl.Updated[Account]]
        ) -> None: ...

    for wrong, words in ((Bare, "of which documents"), (Wrapped, "have an envelope")):
        with pytest.raises(sl.InvalidDefinition, match=words):
            bank_app("").projection("bank")(composite({"accounts": Accounts}, {"wrong": wrong}))


def test_a_handler_of_all_events_gets_no_notices() -> None:
    class Log(sl.MultiStream[Summary]):
        @sl.key
        def all(self, event: sl.RecordedEvent) -> str:  # type: ignore[type-arg]
            return "all"

        @sl.apply
        def happened(self, summary: Summary, event: sl.RecordedEvent) -> None:  # type: ignore[type-arg]
            summary.balances[event.type] = event.position

    made = composite({"accounts": Accounts}, {"log": Log})

    scenario(made).given(Opened("Ada")).given(Deposited(1)).then(
        "log", "all", Summary({"banking.Opened/0": 1, "banking.Deposited/2": 2})
    )


def test_a_scenario_shows_what_side_effects_do_for_what_happened() -> None:
    (
        scenario(Thanking)
        .given("a", Opened("Ada"), Deposited(1))
        .when(Deposited(2), Deposited(3))
        .then("a", Account("Ada", 6, [2, 3, 4]))
        .then_appended("thanks-a", Thanked(3), Thanked(4))
        .then_appended("thanks-b")
        .then_executed("INSERT INTO thanks VALUES ($1)", "a")
    )
    scenario(Thanking).given("a", Opened("Ada")).when(Closed()).then_no_effects()
    with pytest.raises(AssertionError, match="thanks-a"):
        scenario(Thanking).given("a", Opened("Ada")).when(Deposited(2)).then_no_effects()
    with pytest.raises(AssertionError, match="was not executed"):
        scenario(Thanking).given("a", Opened("Ada")).when(Deposited(2)).then_executed("DELETE")


def test_a_scenario_answers_look_ups() -> None:
    (
        scenario(Counting)
        .looking_up(documents={"accounts": {"a": Account("Ada")}})
        .given("a", Deposited(5))
        .given("b", Deposited(7))
        .then_documents({"Ada": Summary({"a": 5})})
    )
    with pytest.raises(AssertionError, match="tell the scenario"):
        scenario(Counting).given("a", Deposited(5)).then_no_document()


def test_a_scenario_of_a_composite_hears_of_every_change() -> None:
    (
        scenario(Bank)
        .given("a", Opened("Ada"), Deposited(5))
        .when("b", Opened("Ada"), Deposited(7))
        .then(Accounts, "a", Account("Ada", 5, [2]))
        .then("owners", "Ada", Summary({"a": 5, "b": 7}))
        .then_documents(Amounts, {"5": Summary({"a": 1}), "7": Summary({"b": 1})})
        .then_whatever_the_pages()
        .when("a", Closed())
        .then_no_document(Accounts, "a")
        .then(Owners, "closed", Summary({"a": 0}))
    )
    scenario(Bank).given(Opened("Ada")).when(Deposited(-1)).then_raises(ValueError, "no amount")


def test_a_composite_that_depends_on_pages_is_found_out() -> None:
    class Changes(sl.MultiStream[Summary]):
        @sl.key
        def all(self, event: sl.Updated[Account]) -> str:
            return "all"

        @sl.apply
        def counted(self, summary: Summary, event: sl.Updated[Account]) -> None:
            summary.balances[event.id] = summary.balances.get(event.id, 0) + 1

    made = composite({"accounts": Accounts}, {"changes": Changes})

    with pytest.raises(AssertionError, match="one page of all events"):
        scenario(made).given(Opened("Ada"), Deposited(1)).then_whatever_the_pages()
