"""A bank whose projections act, look up and feed each other; shared by tests of all three."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import strandline as sl


class Limits:
    """Whether the projections refuse some events."""

    hold = True


@dataclass(frozen=True)
class Opened:
    owner: str


@dataclass(frozen=True)
class Deposited:
    amount: int


@dataclass(frozen=True)
class Closed:
    pass


@dataclass(frozen=True)
class Thanked:
    position: int


@dataclass
class Account:
    owner: str
    balance: int = 0
    seen: list[int] = field(default_factory=list)


@dataclass
class Summary:
    balances: dict[str, int] = field(default_factory=dict)


class Accounts(sl.SingleStream[Account]):
    @sl.create
    def opened(self, event: Opened) -> Account:
        return Account(event.owner)

    @sl.apply
    def deposited(self, account: Account, event: sl.RecordedEvent[Deposited]) -> None:
        if event.data.amount < 0 and Limits.hold:
            raise ValueError(f"{event.data.amount} is no amount")
        account.balance += event.data.amount
        account.seen.append(event.version)

    @sl.delete
    def closed(self, event: Closed) -> None: ...


class Amounts(sl.MultiStream[Summary]):
    """Of each amount, how often it was deposited into which account."""

    @sl.key
    def amount(self, event: Deposited) -> str:
        if event.amount == 13 and Limits.hold:
            raise ValueError("unlucky")
        return str(event.amount)

    @sl.apply
    def deposited(self, summary: Summary, event: sl.RecordedEvent[Deposited]) -> None:
        summary.balances[event.stream] = summary.balances.get(event.stream, 0) + 1


class Owners(sl.MultiStream[Summary]):
    """Of each owner the balances of his accounts, as the accounts say."""

    @sl.key
    def owner(self, event: sl.Updated[Account]) -> str:
        return event.state.owner

    @sl.key
    def all(self, event: sl.Deleted[Account]) -> str:
        return "closed"

    @sl.apply
    def updated(self, summary: Summary, event: sl.Updated[Account]) -> None:
        if event.state.owner == "Cy" and event.state.balance >= 666 and Limits.hold:
            raise ValueError("too much")
        summary.balances[event.id] = event.state.balance

    @sl.apply
    def deleted(self, summary: Summary, event: sl.Deleted[Account]) -> None:
        summary.balances[event.id] = 0


class Bank(sl.Composite):
    stages = ({"accounts": Accounts, "amounts": Amounts}, {"owners": Owners})


def bank_app(url: str, *projections: tuple[str, Any], **settings: Any) -> sl.App:
    """An app with the events, and *projections* under their names."""
    app = sl.App("bank", url, **{"failure_pause": 0.1, **settings})
    for cls in (Opened, Deposited, Closed, Thanked):
        app.event(cls.__name__.lower())(cls)
    for name, projection in projections:
        app.projection(name)(projection)
    return app


async def deposits(app: sl.App, events: int, *, streams: int = 5) -> int:
    """Open accounts and pay *events* small amounts into them; the last position."""
    last = 0
    for number in range(streams):
        last = (await app.append(f"a{number}", Opened(f"owner {number % 2}"))).position
    for begun in range(0, events, 10):
        some = [Deposited(1 + number % 7) for number in range(begun, min(begun + 10, events))]
        last = (await app.append(f"a{begun // 10 % streams}", some)).position
    return last


async def forever() -> None:
    """Wait until somebody ends the task."""
    await asyncio.Event().wait()


Events = Sequence[sl.RecordedEvent[Any]]
