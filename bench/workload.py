"""The workload: bank accounts, what happens to them, and what must come out in the end.

1000 accounts of 100 events each. The first event of an account opens it; of the later ones every
third is a withdrawal and the others are deposits. The data is 150 bytes of JSON. Everything follows
from the account's number and the version, so each result can be checked against `expected`.

A stored log of this workload is in chunks: ten events of every account, then the next ten.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

ACCOUNTS = 1000
CHUNK = 10  # events of one account that follow each other in the stored log
BATCH = 100
PAYLOAD_BYTES = 150
_KNOWN = (100_000, 1_488_313_500)  # events and balance of the full log, worked out independently

Entry = tuple[int, int]
"""Number of the account, and version: from 1."""


class WrongResult(Exception):
    """A system lost, doubled or miscounted something: its speed means nothing."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a log of entries adds up to."""

    events: int
    balance: int


def account_id(account: int) -> str:
    """The account's UUID, which is in the data and is the key of its balance."""
    return f"00000000-0000-4000-8000-{account:012d}"


def stream_id(account: int) -> str:
    """The stream of the account's events."""
    return f"account-{account_id(account)}"


def event_type(version: int) -> str:
    """The type of the event with this version, the same in every stream."""
    if version == 1:
        return "AccountOpened"
    return "MoneyDeposited" if version % 3 else "MoneyWithdrawn"


def amount(account: int, version: int) -> int:
    """The event's amount in cents: never negative."""
    return 0 if version == 1 else 100 + (account * 7919 + version * 104729) % 90_000


def delta(account: int, version: int) -> int:
    """What the event does to the balance."""
    cents = amount(account, version)
    return cents if version % 3 else -cents


def payload(account: int, version: int) -> bytes:
    """The event's data: 150 bytes of JSON."""
    start = (
        f'{{"account":"{account_id(account)}","amount":{amount(account, version)},'
        f'"currency":"EUR","version":{version},"memo":"'
    )
    return (start.ljust(PAYLOAD_BYTES - 2, "x") + '"}').encode()


def stored_log(per_account: int) -> Iterator[Entry]:
    """The entries of a log in order, with *per_account* events of every account."""
    for first in range(1, per_account + 1, CHUNK):
        for account in range(ACCOUNTS):
            for version in range(first, min(first + CHUNK, per_account + 1)):
                yield account, version


def shared_out(writers: int, per_account: int) -> list[list[Entry]]:
    """The same entries for concurrent writers: each has accounts of its own, and takes turns."""
    return [
        [
            (account, version)
            for version in range(1, per_account + 1)
            for account in range(writer, ACCOUNTS, writers)
        ]
        for writer in range(writers)
    ]


def batches(events: int) -> list[list[Entry]]:
    """Entries for appends of 100 at a time: each is the whole stream of one account."""
    return [
        [(account, version) for version in range(1, BATCH + 1)]
        for account in range(events // BATCH)
    ]


def expected(entries: Iterable[Entry]) -> Expected:
    """What *entries* add up to."""
    deltas = [delta(account, version) for account, version in entries]
    return Expected(len(deltas), sum(deltas))


def check(what: str, *, events: int, balance: int, wanted: Expected) -> None:
    """Compare a result with what it must be.

    Raises:
        WrongResult: It is not that.
    """
    if (events, balance) != (wanted.events, wanted.balance):
        raise WrongResult(
            f"{what}: {events} events with a balance of {balance}, "
            f"not {wanted.events} with {wanted.balance}"
        )


def check_generator() -> None:
    """See that this file still makes the workload that published numbers were measured with."""
    found = expected(stored_log(100))
    check("the generator", events=found.events, balance=found.balance, wanted=Expected(*_KNOWN))
    for account, version in ((0, 1), (999, 100), (7, 3)):
        if len(payload(account, version)) != PAYLOAD_BYTES:
            raise WrongResult(f"the payload of {(account, version)} is not {PAYLOAD_BYTES} bytes")
