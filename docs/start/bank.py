"""A bank in thirty lines: the app that the pages of this documentation use."""

from dataclasses import dataclass

import strandline as sl

app = sl.App("bank")


@app.event("account-opened")
@dataclass(frozen=True)
class AccountOpened:
    owner: str


@app.event("money-deposited")
@dataclass(frozen=True)
class MoneyDeposited:
    amount: int


@app.event("money-withdrawn")
@dataclass(frozen=True)
class MoneyWithdrawn:
    amount: int


@dataclass
class Account:
    owner: str
    balance: int = 0


@app.projection("accounts", version=1)
class Accounts(sl.SingleStream[Account]):
    indexes = ("owner",)

    @sl.create
    def opened(self, event: AccountOpened) -> Account:
        return Account(event.owner)

    @sl.apply
    def deposited(self, account: Account, event: MoneyDeposited) -> None:
        account.balance += event.amount

    @sl.apply
    def withdrawn(self, account: Account, event: MoneyWithdrawn) -> None:
        account.balance -= event.amount
