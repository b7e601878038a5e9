"""The app that is harmed: a read model of every kind, each of which shows any event applied twice,
left out, or out of order.

Environment (set by the run, see ``field.py``):

* ``CHAOS_FOLDER``: where orders lie. The file ``poison`` in it makes a handler raise: the projection,
  the stream (or ``*``), and the process that is immune (or ``-``).
  The file ``slices`` says into how many shards this code cuts two of its projections.
* ``CHAOS_TAG``: which process this is, ``n3.2`` for the second start of n3. It can then be told what
  to do to itself (``puppet.py``).
* ``CHAOS_FENCE``: ``unfenced`` or ``without_epoch`` removes the fence of checkpoints, for a control
  group (``unfenced.py``). Nothing of that exists in strandline itself.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import strandline as sl
from chaos import puppet, unfenced

CHAIN = 2_147_483_647  # a prime: chains of numbers stay below it, and depend on every order

unfenced.apply(os.environ.get("CHAOS_FENCE", ""))


class Bank(sl.App):
    """An App that can be told to harm itself."""

    async def open(self) -> None:
        """See ``App``."""
        await super().open()
        if puppet.TAG:
            puppet.obey(self)


app = Bank("bank")
POISON = Path(os.environ.get("CHAOS_FOLDER", ".")) / "poison"


class Poisoned(Exception):
    """A handler raises, as user code does."""


def taste(projection: str, stream: str) -> None:
    """Raise if *stream*'s events are poison for *projection* now; called for every event."""
    try:
        poisoned, which, immune = POISON.read_text().split(" ")
    except (FileNotFoundError, ValueError):
        pass
    else:
        if poisoned == projection and which in (stream, "*") and immune != puppet.TAG:
            raise Poisoned(f"{projection} cannot stand events of {stream}")
    puppet.in_batch(projection)


@app.event("deposited")
@dataclass(frozen=True)
class Deposited:
    number: int  # from 1 in each stream, without a gap
    amount: int
    branch: str


@app.event("withdrawn")
@dataclass(frozen=True)
class Withdrawn:
    number: int
    amount: int
    branch: str


PAUSES = sl.ErrorPolicy(
    apply="pause"
)  # for lists in the order of positions, and to hold a shard up
Booking = Deposited | Withdrawn
EitherWay = sl.RecordedEvent[Deposited] | sl.RecordedEvent[Withdrawn]


@dataclass
class Account:
    events: int = 0
    balance: int = 0
    last: int = 0  # number of the last event
    chain: int = 0  # depends on every number, and on their order
    wrong: int = 0  # events that did not follow the one before


class Accounts(sl.SingleStream[Account]):
    """One document a stream."""

    @sl.apply
    def booked(self, account: Account, event: sl.RecordedEvent[Deposited | Withdrawn]) -> None:
        taste(self.name, event.stream)
        book(account, event.data, event.data.number)


class Branches(sl.MultiStream[Account]):
    """One document a branch: events of many streams in the order of their positions."""

    @sl.key
    def branch(self, event: Deposited | Withdrawn) -> str:
        return event.branch

    @sl.apply
    def booked(self, account: Account, event: sl.RecordedEvent[Deposited | Withdrawn]) -> None:
        taste(self.name, event.stream)
        if event.position <= account.last:
            account.wrong += 1
        book(account, event.data, event.position, follows=False)


def book(account: Account, event: Any, number: int, *, follows: bool = True) -> None:
    """Count *event* in, which must be the next one where it *follows*."""
    if follows and number != account.last + 1:
        account.wrong += 1
    account.events += 1
    account.balance += event.amount if isinstance(event, Deposited) else -event.amount
    account.last = number
    account.chain = (account.chain * 1_000_003 + number) % CHAIN


app.projection("accounts", version=1)(Accounts)
app.projection("branches", version=1, on_error=PAUSES)(Branches)


@app.projection("turnover", version=1)
class Turnover(sl.Table):
    """One row a branch, folded inside PostgreSQL."""

    branch = sl.column(str, key="branch")
    bookings = sl.column(int, default=0)
    balance = sl.column(int, default=0)
    latest = sl.column(int)
    rules = (
        sl.on(
            Deposited, bookings=sl.count(), balance=sl.add("amount"), latest=sl.greatest("number")
        ),
        sl.on(
            Withdrawn,
            bookings=sl.count(),
            balance=sl.subtract("amount"),
            latest=sl.greatest("number"),
        ),
    )


@app.projection("ledger", version=1, on_error=PAUSES)
class Ledger(sl.Sql):
    """One row an event, in the order of arrival. Nothing in the table refuses a second one."""

    reset = "TRUNCATE chaos.ledger"

    @sl.execute
    def booked(self, event: sl.RecordedEvent[Deposited | Withdrawn], sql: sl.Statements) -> None:
        taste(self.name, event.stream)
        sql(
            "INSERT INTO chaos.ledger (position, stream, number) VALUES ($1, $2, $3)",
            event.position,
            event.stream,
            event.data.number,
        )


@app.subscription("journal", types=[Deposited, Withdrawn], on_error=PAUSES)
async def journal(batch: sl.EventBatch, tx: sl.Transaction) -> None:
    """One row an event, in the transaction of the checkpoint."""
    for event in batch:
        taste("journal", event.stream)
    await tx.execute(
        "INSERT INTO chaos.journal (position, stream, number, epoch)"
        " SELECT p, s, n, $4 FROM unnest($1::bigint[], $2::text[], $3::bigint[]) AS u(p, s, n)",
        [event.position for event in batch],
        [event.stream for event in batch],
        [event.data.number for event in batch],
        batch.epoch,
    )
    puppet.in_transaction()


@app.subscription("notes", types=[Deposited, Withdrawn])
async def notes(batch: sl.EventBatch, tx: sl.Transaction) -> None:
    """One row an event; a stream whose event fails waits, and comes later, in order."""
    for event in batch:
        taste("notes", event.stream)
    await tx.execute(
        "INSERT INTO chaos.notes (position, stream, number)"
        " SELECT p, s, n FROM unnest($1::bigint[], $2::text[], $3::bigint[]) AS u(p, s, n)",
        [event.position for event in batch],
        [event.stream for event in batch],
        [event.data.number for event in batch],
    )


SLICES = Path(os.environ.get("CHAOS_FOLDER", ".")) / "slices"
shards = int(SLICES.read_text()) if SLICES.exists() else 4


@app.projection("sliced", version=1, shards=shards)
class Sliced(Accounts):
    """As Accounts, cut into shards that different nodes run."""


@app.projection("sliced_branches", version=1, shards=shards)
class SlicedBranches(Branches):
    """As Branches, cut by key."""
