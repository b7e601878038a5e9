"""The rules by which handlers turn events into documents."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from declared import declared, folded, rows_of

from strandline.errors import ApplyFailed, InvalidDefinition, UndecodableEvent
from strandline.events.event import RecordedEvent
from strandline.projections.fold import PageFold
from strandline.projections.handlers import apply, create, delete
from strandline.projections.single_stream import SingleStream


@dataclass(frozen=True)
class Opened:
    owner: str = "Ada"


@dataclass(frozen=True)
class Paid:
    amount: int = 1


@dataclass(frozen=True)
class Closed:
    final: bool = True


@dataclass
class Account:
    owner: str = "nobody"
    balance: int = 0
    log: list[str] = field(default_factory=list)


ALL = (Opened, Paid, Closed)


def test_a_document_begins_at_create_and_is_changed_in_place_or_replaced() -> None:
    class Accounts(SingleStream[Account]):
        @create
        def opened(self, event: Opened) -> Account:
            return Account(event.owner)

        @apply
        def paid(self, account: Account, event: Paid) -> Account:
            return Account(account.owner, account.balance + event.amount)

        @apply
        def closed(self, account: Account, event: Closed) -> None:
            account.log.append("closed")

    it = declared(Accounts, *ALL)

    assert folded(*it, Opened(), Paid(5), Closed()) == {"s": Account("Ada", 5, ["closed"])}


def test_with_a_create_handler_other_events_begin_no_document() -> None:
    class Accounts(SingleStream[Account]):
        @create
        def opened(self, event: Opened) -> Account:
            return Account(event.owner)

        @apply
        def paid(self, account: Account, event: Paid) -> None:
            account.balance += event.amount

    it = declared(Accounts, *ALL)

    assert folded(*it, Paid(1), Paid(2)) == {}
    assert folded(*it, Paid(1), Opened(), Paid(2)) == {"s": Account("Ada", 2)}


def test_without_a_create_handler_a_document_begins_as_the_class_does() -> None:
    class Accounts(SingleStream[Account]):
        @apply
        def paid(self, account: Account, event: Paid) -> None:
            account.balance += event.amount

    assert folded(*declared(Accounts, *ALL), Paid(1), Paid(2)) == {"s": Account("nobody", 3)}


def test_an_event_with_create_and_apply_is_created_once_and_applied_after() -> None:
    class Accounts(SingleStream[Account]):
        @create
        def first(self, event: Paid) -> Account:
            return Account("created", event.amount)

        @apply
        def later(self, account: Account, event: Paid) -> None:
            account.balance += event.amount

    assert folded(*declared(Accounts, *ALL), Paid(1), Paid(2)) == {"s": Account("created", 3)}


def test_an_event_with_only_create_begins_the_document_anew() -> None:
    class Accounts(SingleStream[Account]):
        @create
        def opened(self, event: Opened) -> Account:
            return Account(event.owner)

        @apply
        def paid(self, account: Account, event: Paid) -> None:
            account.balance += event.amount

    it = declared(Accounts, *ALL)

    assert folded(*it, Opened("Ada"), Paid(), Opened("Bo")) == {"s": Account("Bo")}


def test_a_create_handler_that_answers_none_begins_nothing() -> None:
    class Accounts(SingleStream[Account]):
        @create
        def opened(self, event: Opened) -> Account | None:
            return Account(event.owner) if event.owner else None

    assert folded(*declared(Accounts, *ALL), Opened("")) == {}


def test_an_event_deletes_always_or_when_the_handler_says_so() -> None:
    class Accounts(SingleStream[Account]):
        @create
        def opened(self, event: Opened) -> Account:
            return Account(event.owner)

        @delete
        def closed(self, event: Closed) -> bool:
            return event.final

    class Strict(Accounts):
        @delete
        def closed(self, event: Closed) -> None: ...  # type: ignore[override]  # answers nothing

    it = declared(Accounts, *ALL)

    assert folded(*it, Opened(), Closed(final=False)) == {"s": Account("Ada")}
    assert folded(*it, Opened(), Closed()) == {}
    assert folded(*declared(Strict, *ALL), Opened(), Closed(final=False)) == {}


def test_a_delete_handler_may_look_at_the_document_and_the_event() -> None:
    class Accounts(SingleStream[Account]):
        @apply
        def paid(self, account: Account, event: Paid) -> None:
            account.balance += event.amount

        @delete
        def overdrawn(self, account: Account, event: Paid) -> bool:
            return account.balance > 10 and event.amount == 1

    it = declared(Accounts, *ALL)

    assert folded(*it, Paid(11)) == {"s": Account("nobody", 11)}
    assert folded(*it, Paid(11), Paid(1)) == {}


def test_a_deleted_document_can_begin_again() -> None:
    class Accounts(SingleStream[Account]):
        @apply
        def paid(self, account: Account, event: Paid) -> None:
            account.balance += event.amount

        @delete
        def closed(self, event: Closed) -> None: ...

    it = declared(Accounts, *ALL)

    assert folded(*it, Paid(5), Closed(), Paid(1)) == {"s": Account("nobody", 1)}


def test_a_delete_handler_of_the_document_is_asked_after_every_event() -> None:
    class Accounts(SingleStream[Account]):
        @apply
        def paid(self, account: Account, event: Paid) -> None:
            account.balance += event.amount

        @apply
        def closed(self, account: Account, event: Closed) -> None:
            account.balance = 0

        @delete
        def not_final(self, event: Closed) -> bool:
            return False

        @delete
        def empty(self, account: Account) -> bool:
            return account.balance == 0

    it = declared(Accounts, *ALL)

    assert folded(*it, Paid(1), Paid(-1)) == {}
    assert folded(*it, Paid(1), Closed()) == {}, "asked although a handler of the event kept it"


def test_a_handler_may_ask_for_the_envelope() -> None:
    class Accounts(SingleStream[Account]):
        @create
        def opened(self, event: RecordedEvent[Opened]) -> Account:
            return Account(event.stream, event.version, [event.type, event.tenant])

        @apply
        def paid(self, account: Account, event: RecordedEvent[Paid]) -> None:
            account.balance = event.position

        @delete
        def closed(self, event: RecordedEvent[Closed]) -> bool:
            return event.data.final

    it = declared(Accounts, *ALL)

    assert PageFold(*it).wants_envelope
    assert folded(*it, Opened(), Paid(50)) == {"s": Account("s", 2, ["Opened", "t"])}
    assert folded(*it, Opened(), Closed()) == {}


def test_a_fold_needs_no_envelope_when_no_handler_asks_for_one() -> None:
    class Accounts(SingleStream[Account]):
        @apply
        def paid(self, account: Account, event: Paid) -> None: ...

    assert not PageFold(*declared(Accounts, *ALL)).wants_envelope


def test_the_failing_event_is_named_by_its_position() -> None:
    class Accounts(SingleStream[Account]):
        @apply
        def paid(self, account: Account, event: Paid) -> None:
            account.balance += 10 // event.amount

    with pytest.raises(ApplyFailed, match="it:v1 at position 3: ZeroDivisionError") as caught:
        folded(*declared(Accounts, *ALL), Paid(), Opened(), Paid(0), Paid())

    assert caught.value.position == 3
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_an_event_that_does_not_fit_its_class_is_named_by_its_position() -> None:
    class Accounts(SingleStream[Account]):
        @apply
        def paid(self, account: Account, event: Paid) -> None: ...

    definition, types = declared(Accounts, *ALL)
    rows = rows_of(types, Paid(), Paid())
    rows[1] = (*rows[1][:5], '{"amount": "much"}', *rows[1][6:])

    with pytest.raises(UndecodableEvent, match="'Paid' at position 2") as caught:
        PageFold(definition, types).group(rows)

    assert caught.value.position == 2


def test_events_of_unknown_or_unwanted_types_are_passed_over() -> None:
    class Accounts(SingleStream[Account]):
        @apply
        def paid(self, account: Account, event: Paid) -> None:
            account.balance += event.amount

    definition, types = declared(Accounts, *ALL)
    rows = rows_of(types, Paid(), Opened())
    rows.append((3, "t", "s", 3, "never heard of", "not JSON", None, None, None))

    assert len(PageFold(definition, types).group(rows)) == 1


def test_folding_in_pages_of_one_equals_folding_at_once() -> None:
    class Accounts(SingleStream[Account]):
        @apply
        def paid(self, account: Account, event: Paid) -> None:
            account.balance += event.amount

        @delete
        def empty(self, account: Account) -> bool:
            return account.balance == 0

    definition, types = declared(Accounts, *ALL)
    events = [Paid(1), Paid(-1), Paid(7)]
    envelopes = [
        RecordedEvent(event, "Paid", "s", n, n, "t", None, None)  # type: ignore[arg-type]  # not looked at
        for n, event in enumerate(events, 1)
    ]

    state = None
    for one in envelopes:
        state = definition.fold([one], state)

    assert state == definition.fold(envelopes) == folded(definition, types, *events)["s"]


# ---- definitions that cannot work


def test_a_projection_says_what_it_folds() -> None:
    class Accounts(SingleStream):  # type: ignore[type-arg]  # that is the mistake
        @apply
        def paid(self, account: Account, event: Paid) -> None: ...

    with pytest.raises(
        InvalidDefinition, match=r"say what is folded, as in SingleStream\[Account\]"
    ):
        declared(Accounts, *ALL)


def test_a_projection_without_handlers_is_refused() -> None:
    class Accounts(SingleStream[Account]):
        pass

    with pytest.raises(InvalidDefinition, match="handles no event"):
        declared(Accounts, *ALL)


def test_two_handlers_of_one_role_for_one_event_are_refused() -> None:
    class Accounts(SingleStream[Account]):
        @apply
        def paid(self, account: Account, event: Paid) -> None: ...

        @apply
        def also(self, account: Account, event: Paid | Opened) -> None: ...

    with pytest.raises(InvalidDefinition, match="also: Paid has a handler of role apply already"):
        declared(Accounts, *ALL)


def test_a_state_that_needs_arguments_needs_a_create_handler() -> None:
    @dataclass
    class Needy:
        owner: str

    class Accounts(SingleStream[Needy]):
        @apply
        def paid(self, account: Needy, event: Paid) -> None: ...

    with pytest.raises(InvalidDefinition, match=r"Needy\(\) needs arguments.*@sl.create"):
        declared(Accounts, *ALL)


def test_a_state_that_json_cannot_hold_is_refused() -> None:
    class Odd:
        def __init__(self) -> None:
            self.data: set[object] = set()

    @dataclass
    class Holder:
        odd: dict[Odd, Odd] = field(default_factory=dict)

    class Accounts(SingleStream[Holder]):
        @apply
        def paid(self, account: Holder, event: Paid) -> None: ...

    with pytest.raises(InvalidDefinition, match="Holder cannot be read from JSON"):
        declared(Accounts, *ALL)


@pytest.mark.parametrize("role", [create, apply, delete])
def test_a_handler_without_an_annotation_is_refused(role) -> None:
    class Accounts(SingleStream[Account]):
        @role
        def paid(self, event): ...

    with pytest.raises(InvalidDefinition, match="paid: annotate event"):
        declared(Accounts, *ALL)


def test_handlers_have_a_fixed_shape_each() -> None:
    class Creates(SingleStream[Account]):
        @create
        def opened(self, account: Account, event: Opened) -> Account:
            return account

    class Applies(SingleStream[Account]):
        @apply
        def paid(self, event: Paid) -> None: ...

    class Deletes(SingleStream[Account]):
        @delete
        def closed(self, account: Account, event: Closed, more: int) -> None: ...

    with pytest.raises(InvalidDefinition, match=r"opened: a create handler is \(self, event\)"):
        declared(Creates, *ALL)
    with pytest.raises(InvalidDefinition, match=r"paid: a apply handler is \(self, state, event\)"):
        declared(Applies, *ALL)
    with pytest.raises(InvalidDefinition, match=r"closed: a delete handler is \(self, event\)"):
        declared(Deletes, *ALL)
