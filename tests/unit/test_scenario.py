"""The given/when/then helper for projections, and the clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest

from strandline.clock import Clock
from strandline.errors import InvalidEvent, InvalidInput
from strandline.events.event import RecordedEvent
from strandline.projections.handlers import apply, create, delete, fan_out, key
from strandline.projections.multi_stream import MultiStream
from strandline.projections.single_stream import SingleStream
from strandline.testing import ManualClock, scenario


class Fact:
    pass


@dataclass(frozen=True)
class Opened(Fact):
    owner: str


@dataclass(frozen=True)
class Paid(Fact):
    amount: float


@dataclass(frozen=True)
class Closed:
    pass


@dataclass
class Account:
    owner: str
    balance: float = 0
    notes: list[str] = field(default_factory=list)


class Accounts(SingleStream[Account]):
    @create
    def opened(self, event: Opened) -> Account:
        return Account(event.owner)

    @apply
    def paid(self, account: Account, event: Paid) -> None:
        if event.amount == 13:
            raise ValueError("bad luck")
        account.balance += event.amount

    @delete
    def closed(self, event: Closed) -> None: ...


class TooLittle(Exception):
    pass


def withdraw(account: Account | None) -> list[object]:
    if account is None or account.balance < 10:
        raise TooLittle("only 5 there")
    return [Paid(-10), Closed()]


def test_events_make_a_document() -> None:
    scenario(Accounts).given(Opened("Ada")).when(Paid(5)).then(Account("Ada", 5))
    scenario(Accounts).given(Opened("Ada"), Paid(1)).when(Paid(5), Paid(1)).then(Account("Ada", 7))


def test_a_document_may_be_absent() -> None:
    scenario(Accounts).given(Paid(5)).then_no_document()
    scenario(Accounts).given(Opened("Ada")).when(Closed()).then_no_document("stream-1")
    with pytest.raises(AssertionError, match="there is a document 'stream-1':"):
        scenario(Accounts).given(Opened("Ada")).then_no_document()
    with pytest.raises(AssertionError, match=r"no document 'stream-1' \(there are: none\)"):
        scenario(Accounts).given(Paid(1)).then(Account("Ada"))


def test_a_difference_is_shown_line_by_line() -> None:
    with pytest.raises(AssertionError) as caught:
        scenario(Accounts).given(Opened("Ada")).when(Paid(5)).then(Account("Bo", 5))

    lines = str(caught.value).splitlines()
    assert lines[0] == "document 'stream-1' is not as expected (-), but (+):"
    assert '-   "owner": "Bo",' in lines
    assert '+   "owner": "Ada",' in lines
    assert '    "is a": "Account",' in lines


def test_a_decision_answers_events_from_the_state() -> None:
    rich = scenario(Accounts).given(Opened("Ada"), Paid(50))

    rich.when(withdraw).then_events(Paid(-10), Closed()).then_no_document()

    scenario(Accounts).given(Opened("Ada")).when(lambda account: None).then_events()
    scenario(Accounts).when(lambda account: Opened("new")).then(Account("new"))


def test_a_decision_that_raises_is_expected_or_raised() -> None:
    scenario(Accounts).given(Opened("Ada")).when(withdraw).then_raises(TooLittle, "only 5")
    with pytest.raises(TooLittle):
        scenario(Accounts).given(Opened("Ada")).when(withdraw).then(Account("Ada"))
    with pytest.raises(AssertionError, match="TooLittle was not raised"):
        scenario(Accounts).given(Opened("Ada"), Paid(50)).when(withdraw).then_raises(TooLittle)
    with pytest.raises(AssertionError, match="not ValueError was raised, but TooLittle"):
        scenario(Accounts).when(withdraw).then_raises(ValueError)
    with pytest.raises(AssertionError, match="'rich' is not in 'only 5 there'"):
        scenario(Accounts).when(withdraw).then_raises(TooLittle, "rich")
    with pytest.raises(AssertionError, match="nothing was decided"):
        scenario(Accounts).given(Opened("Ada")).then_events()


def test_a_handler_that_raises_can_be_expected_too() -> None:
    scenario(Accounts).given(Opened("Ada")).when(Paid(13)).then_raises(ValueError, "bad luck")


def test_an_event_that_cannot_be_stored_is_found_out() -> None:
    with pytest.raises(InvalidEvent, match="NaN"):
        scenario(Accounts).given(Opened("Ada"), Paid(float("nan"))).then(Account("Ada"))
    with pytest.raises(InvalidInput, match="no event is named for stream 's'"):
        scenario(Accounts).given("s")


def test_a_document_that_does_not_survive_storage_is_found_out() -> None:
    @dataclass
    class Odd:
        tags: object = ()

    class Odds(SingleStream[Odd]):
        @apply
        def opened(self, odd: Odd, event: Opened) -> None:
            odd.tags = ("a tuple becomes a list",)

    with pytest.raises(AssertionError, match="document 'stream-1' does not survive storage"):
        scenario(Odds).given(Opened("Ada")).then(Odd())


@dataclass(frozen=True)
class Order:
    lines: list[str]


@dataclass(frozen=True)
class Line:
    product: str


@dataclass
class Total:
    count: int = 0
    streams: list[str] = field(default_factory=list)


class Products(MultiStream[Total]):
    @fan_out
    def lines(self, event: Order) -> list[Line]:
        return [Line(one) for one in event.lines]

    @key
    def product(self, part: Line) -> str:
        return part.product

    @apply
    def sold(self, total: Total, part: RecordedEvent[Line]) -> None:
        total.count += 1
        total.streams.append(part.stream)


def test_events_of_several_streams_meet_in_documents_of_their_own() -> None:
    sold = scenario(Products).given("a", Order(["pen", "ink"])).when("b", Order(["pen"]))

    sold.then("pen", Total(2, ["a", "b"])).then("ink", Total(1, ["a"]))
    sold.then_documents({"pen": Total(2, ["a", "b"]), "ink": Total(1, ["a"])})
    with pytest.raises(AssertionError, match=r"which document\?.*: ink, pen"):
        sold.then(Total())
    with pytest.raises(AssertionError, match="documents is not as expected"):
        sold.then_documents({"pen": Total(2, ["a", "b"])})


def test_a_stream_named_once_is_meant_until_another_is() -> None:
    (
        scenario(Accounts)
        .given("account-7", Opened("Ada"))
        .given(Paid(20))
        .when(lambda account: Paid(-account.balance))
        .then("account-7", Account("Ada", 0))
    )


def test_handlers_may_name_a_base_class_or_nothing_in_particular() -> None:
    class Counts(SingleStream[Total]):
        @apply
        def any(self, total: Total, event: Fact) -> None:
            total.count += 1

    class Envelopes(SingleStream[Total]):
        @apply
        def any(self, total: Total, event: RecordedEvent) -> None:  # type: ignore[type-arg]  # any event
            total.count = event.version

    scenario(Counts).given(Opened("Ada"), Paid(1)).then(Total(2))
    scenario(Envelopes).given(Opened("Ada"), Closed(), Closed()).then(Total(3))


def test_a_manual_clock_moves_when_told() -> None:
    clock: Clock = ManualClock(datetime(2030, 1, 1, tzinfo=UTC))
    before = clock.monotonic()

    clock.advance(90)  # type: ignore[attr-defined]  # only this clock has it

    assert clock.monotonic() - before == 90
    assert clock.now() == datetime(2030, 1, 1, 0, 1, 30, tzinfo=UTC)
    with pytest.raises(ValueError, match="cannot go back"):
        ManualClock().advance(-1)
