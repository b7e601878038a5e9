"""How handlers are found, and what their annotations may say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from declared import declared, folded, types_of

from strandline.errors import InvalidDefinition, UnknownProjection, UnregisteredEvent
from strandline.events.event import RecordedEvent
from strandline.projections.handlers import apply, create, event_classes, handlers_of
from strandline.projections.projection import Projection
from strandline.projections.registry import Registry
from strandline.projections.single_stream import SingleStream
from strandline.projections.subscription import EventBatch, subscription


class Fact:
    """A base class of events."""


@dataclass(frozen=True)
class Opened(Fact):
    owner: str = ""


@dataclass(frozen=True)
class Paid(Fact):
    amount: int = 1


@dataclass(frozen=True)
class Other:
    pass


@dataclass
class Account:
    count: int = 0


def test_a_union_stands_for_each_of_its_members() -> None:
    assert event_classes(Opened | Other, types_of(Opened, Paid, Other)) == ([Opened, Other], False)


def test_a_base_class_stands_for_every_registered_class_below_it() -> None:
    assert event_classes(Fact, types_of(Opened, Other, Paid)) == ([Opened, Paid], False)


def test_the_envelope_may_hold_a_class_a_union_or_anything() -> None:
    types = types_of(Opened, Paid, Other)

    assert event_classes(RecordedEvent[Paid], types) == ([Paid], True)
    assert event_classes(RecordedEvent[Paid | Other], types) == ([Paid, Other], True)
    assert event_classes(RecordedEvent[Fact], types) == ([Opened, Paid], True)
    assert event_classes(RecordedEvent, types) == ([Opened, Paid, Other], True)


def test_a_class_that_is_not_registered_is_refused() -> None:
    with pytest.raises(InvalidDefinition, match="Other is not a registered event: decorate it"):
        event_classes(Other, types_of(Opened))
    with pytest.raises(InvalidDefinition, match=r"list\[int\] is not an event class"):
        event_classes(list[int], types_of(Opened))


def test_an_annotation_that_names_nothing_is_refused() -> None:
    class Accounts(SingleStream[Account]):
        @apply
        def paid(self, account: Account, event: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(InvalidDefinition, match=r"paid: annotation name 'Nowhere' is not defined"):
        declared(Accounts, Opened)


def test_an_async_handler_is_refused_where_it_is_written() -> None:
    with pytest.raises(InvalidDefinition, match="handlers are plain functions, not async"):

        class Accounts(SingleStream[Account]):
            @apply
            async def paid(self, account: Account, event: Paid) -> None: ...


def test_handlers_are_inherited_overridden_and_switched_off() -> None:
    class Base(SingleStream[Account]):
        @apply
        def paid(self, account: Account, event: Paid) -> None:
            account.count += 1

        @apply
        def opened(self, account: Account, event: Opened) -> None:
            account.count += 100

    class Below(Base):
        @apply
        def paid(self, account: Account, event: Paid) -> None:
            account.count += 10

        def opened(self, account: Account, event: Opened) -> None:
            """Not a handler any more."""

    assert [one.name for one in handlers_of(Below())] == ["paid"]
    assert folded(*declared(Below, Opened, Paid), Opened(), Paid()) == {"s": Account(10)}


def test_a_handler_cannot_have_a_name_that_the_projection_itself_uses() -> None:
    class Accounts(SingleStream[Account]):
        @apply
        def version(self, account: Account, event: Paid) -> None: ...  # type: ignore[override]  # that is the mistake

    class Folds(SingleStream[Account]):
        @apply
        def folder(self, account: Account, event: Paid) -> None: ...  # type: ignore[override]  # that is the mistake

    with pytest.raises(InvalidDefinition, match="version.*another name"):
        handlers_of(Accounts())
    with pytest.raises(InvalidDefinition, match="folder.*another name"):
        handlers_of(Folds())


# ---- names, versions, lifecycles


@pytest.mark.parametrize("name", ["", "Orders", "1st", "with-dash", "a" * 41, None, "tab\t", "a\n"])
def test_a_name_that_tables_and_shards_cannot_have_is_refused(name: Any) -> None:
    with pytest.raises(InvalidDefinition, match="is not a name: 1 to 40"):
        Projection().named(name, 1, "async")


@pytest.mark.parametrize("version", [0, -1, 10_000, True, "1", 1.0])
def test_a_version_is_a_number_from_one(version: Any) -> None:
    with pytest.raises(InvalidDefinition, match="is not 1 to 9999"):
        Projection().named("orders", version, "async")


def test_a_lifecycle_is_one_of_three() -> None:
    with pytest.raises(InvalidDefinition, match="'often' is not live, inline or async"):
        Projection().named("orders", 1, "often")


class Accounts(SingleStream[Account]):
    @apply
    def paid(self, account: Account, event: Paid) -> None: ...


def registered(name: str = "accounts") -> Registry:
    registry = Registry(types=types_of(Opened, Paid))
    definition = Accounts()
    definition.named(name, 2, "async")
    registry.add_projection(definition)
    return registry


def test_a_projection_is_found_by_class_definition_name_and_label() -> None:
    registry = registered()
    definition = registry.projections["accounts:v2"]

    for reference in (Accounts, definition, "accounts", "accounts:v2"):
        assert registry.projection(reference) is definition
    assert registry.label(Accounts) == "accounts:v2"
    assert definition.table == "doc_accounts_v2"


def test_an_unknown_projection_is_told_with_those_there_are() -> None:
    class Elsewhere(Accounts):
        pass

    with pytest.raises(
        UnknownProjection, match=r"no projection 'orders'.*\(registered: accounts:v2\)"
    ):
        registered().projection("orders")
    with pytest.raises(UnknownProjection, match="no projection 'Elsewhere'"):
        registered().projection(Elsewhere)


def test_a_version_of_a_name_is_given_once() -> None:
    registry = registered()
    again = Accounts()
    again.named("accounts", 2, "async")

    async def follow(batch: EventBatch) -> None: ...

    with pytest.raises(InvalidDefinition, match="the name 'accounts' is taken"):
        registry.add_projection(again)
    with pytest.raises(InvalidDefinition, match="the name 'accounts' is taken"):
        registry.add_subscription(subscription("accounts", follow))


def test_an_event_registered_later_below_a_base_class_is_handled_too() -> None:
    class Everything(SingleStream[Account]):
        @apply
        def any(self, account: Account, event: Fact) -> None:
            account.count += 1

    registry = Registry(types=types_of(Opened))
    definition = Everything()
    definition.named("everything", 1, "async")
    registry.add_projection(definition)

    registry.types.register(Paid, "paid")
    registry.bind()

    assert folded(definition, registry.types, Opened(), Paid()) == {"s": Account(2)}


# ---- subscriptions


def test_a_subscription_is_an_async_function_of_batch_and_perhaps_tx() -> None:
    async def plain(batch: EventBatch) -> None: ...

    async def joined(batch: EventBatch, tx: Any) -> None: ...

    async def greedy(batch: EventBatch, tx: Any, more: Any) -> None: ...

    def blocking(batch: EventBatch) -> None: ...

    assert not subscription("s", plain).takes_transaction
    assert subscription("s", joined).takes_transaction
    with pytest.raises(InvalidDefinition, match=r"takes \(batch\) or \(batch, tx\)"):
        subscription("s", greedy)
    with pytest.raises(InvalidDefinition, match="must be `async def`"):
        subscription("s", blocking)  # type: ignore[arg-type]  # that is the mistake


@pytest.mark.parametrize("start", ["end", -1, True, None, 1.5])
def test_a_subscription_starts_at_the_beginning_the_present_or_a_position(start: Any) -> None:
    async def plain(batch: EventBatch) -> None: ...

    with pytest.raises(InvalidDefinition, match="is not 'beginning', 'present' or a position"):
        subscription("s", plain, start=start)


def test_a_subscription_to_an_unregistered_class_is_refused() -> None:
    async def plain(batch: EventBatch) -> None: ...

    with pytest.raises(UnregisteredEvent, match="Other is not registered"):
        registered().add_subscription(subscription("s", plain, types=[Other]))


def test_a_batch_gives_its_events_in_order_and_by_class() -> None:
    events = tuple(
        RecordedEvent(data, "x", "s", n, n, "t", None, None)  # type: ignore[arg-type]  # not looked at
        for n, data in enumerate([Opened(), Paid(1), Paid(2)], 1)
    )
    batch = EventBatch(events, 0, 3, 1)

    assert len(batch) == 3
    assert list(batch) == list(events)
    assert [one.data.amount for one in batch.of(Paid)] == [1, 2]
    assert len(batch.of(Fact)) == 3


def test_create_marks_nothing_but_the_method() -> None:
    def made(self: Any, event: Opened) -> Account:
        return Account()

    assert create(made) is made
