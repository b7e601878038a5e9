"""The App that the tests of the command line name: ``cli_shop:app``."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass

import strandline as sl

app = sl.App("cli-shop", log_level="WARNING")
not_an_app = 5


@app.event("account-opened")
@dataclass(frozen=True)
class Opened:
    owner: str


@app.event("money-deposited")
@dataclass(frozen=True)
class Deposited:
    amount: int


@dataclass
class Account:
    owner: str
    balance: int = 0


class Folding(sl.SingleStream[Account]):
    @sl.create
    def opened(self, event: Opened) -> Account:
        return Account(event.owner)

    @sl.apply
    def deposited(self, account: Account, event: Deposited) -> None:
        account.balance += event.amount


@app.projection("accounts", version=2)
class Accounts(Folding):
    pass


@app.projection("inline_accounts", lifecycle="inline")
class InlineAccounts(Folding):
    pass


@app.projection("live_accounts", lifecycle="live")
class LiveAccounts(Folding):
    pass


@app.subscription("notifier", types=[Deposited])
async def notify(batch: sl.EventBatch) -> None:
    for event in batch:
        if event.data.amount < 0:
            raise ValueError("a negative deposit")


async def fill(url: str, accounts: int, deposits: int = 4) -> None:
    """Store so many accounts in the database at *url*."""
    other = sl.App("filler", url)
    other.registry.types = app.registry.types
    async with other:
        for number in range(accounts):
            await other.append(
                f"account-{number}", [Opened(f"Ada {number}")], stream_type="account"
            )
            await other.append(f"account-{number}", [Deposited(one) for one in range(deposits)])


if __name__ == "__main__":
    asyncio.run(fill(sys.argv[1], int(sys.argv[2])))
