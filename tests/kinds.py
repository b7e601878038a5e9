"""An app with every kind of projection and subscription, cut into slices, and its fold in Python."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from strandline.app import App, Transaction
from strandline.events.event import RecordedEvent
from strandline.projections.handlers import apply, delete, fan_out, key
from strandline.projections.multi_stream import MultiStream
from strandline.projections.single_stream import SingleStream
from strandline.projections.sql_projection import Sql, Statements, execute
from strandline.projections.subscription import EventBatch
from strandline.projections.table_declaration import Table
from strandline.projections.table_rules import add, column, count, on
from strandline.projections.table_values import POSITION

TENANTS = ("default", "other")
LABELS = ("steps:v1", "people:v1", "accounts:v1", "written:v1", "told", "called")


@dataclass(frozen=True)
class Paid:
    payer: str
    payee: str
    amount: int


@dataclass(frozen=True)
class Closed:
    pass


@dataclass(frozen=True)
class Debit:
    person: str
    amount: int


@dataclass(frozen=True)
class Credit:
    person: str
    amount: int


@dataclass
class Trace:
    seen: list[int] = field(default_factory=list)


class Steps(SingleStream[Trace]):
    """Of each stream the versions applied, since it was closed the last time."""

    @apply
    def paid(self, trace: Trace, event: RecordedEvent[Paid]) -> None:
        trace.seen.append(event.version)

    @delete
    def closed(self, event: Closed) -> None: ...


class People(MultiStream[Trace]):
    """Of each person what was paid and received; under ``amount/n`` the positions of payments."""

    @fan_out
    def sides(self, event: Paid) -> list[Debit | Credit]:
        return [Debit(event.payer, event.amount), Credit(event.payee, event.amount)]

    @key
    def person(self, part: Debit | Credit) -> str:
        return part.person

    @key
    def amount(self, event: RecordedEvent[Paid]) -> list[str]:
        return [f"amount/{event.data.amount % 3}", f"amount/{event.data.amount % 4}"]

    @apply
    def happened(self, trace: Trace, event: RecordedEvent[Paid]) -> None:
        trace.seen.append(event.position)

    @apply
    def paid(self, trace: Trace, part: Debit) -> None:
        trace.seen.append(-part.amount)

    @apply
    def received(self, trace: Trace, part: Credit) -> None:
        trace.seen.append(part.amount)


class Accounts(Table):
    """Two rules for one event, with keys of their own."""

    person = column(str, key="payer")
    balance = column(int, default=0)
    payments = column(int, default=0)
    last = column(int)
    rules = (
        on(Paid, balance=add("amount"), payments=count(), last=POSITION),
        on(Paid, person="payee", balance=add("amount"), payments=count(), last=POSITION),
    )


class Written(Sql):
    """Every event once: a second time breaks the key."""

    setup = """CREATE TABLE IF NOT EXISTS written (
        tenant text, stream text, version bigint, at serial, PRIMARY KEY (tenant, stream, version))"""
    reset = "TRUNCATE written"

    @execute
    def happened(self, event: RecordedEvent[Paid | Closed], sql: Statements) -> None:
        sql(
            "INSERT INTO written VALUES ($1, $2, $3)",
            event.tenant,
            event.stream,
            event.version,
        )


TOLD = """CREATE TABLE IF NOT EXISTS told (
    tenant text, stream text, version bigint, at serial, PRIMARY KEY (tenant, stream, version))"""


def kinds_app(url: str, shards: int, **settings: Any) -> App:
    """The app; ``app.called`` are the events its subscription without a transaction was given."""
    app: Any = App("kinds", url, **{"failure_pause": 0.1, **settings})
    app.event("paid")(Paid)
    app.event("closed")(Closed)
    app.projection("steps", shards=shards)(Steps)
    app.projection("people", shards=shards)(People)
    app.projection("accounts", shards=shards)(Accounts)
    app.projection("written", shards=shards)(Written)
    app.called = []

    @app.subscription("told", shards=shards)
    async def told(batch: EventBatch, tx: Transaction) -> None:
        for one in batch:
            insert = "INSERT INTO told VALUES ($1, $2, $3)"
            await tx.execute(insert, one.tenant, one.stream, one.version)

    @app.subscription("called", types=[Paid], shards=shards, batch_events=5)
    async def called(batch: EventBatch) -> None:
        app.called.extend((batch.shard, one) for one in batch)

    return app


async def assert_all_equal_the_fold(app: App, operator: Any) -> None:
    """Every read model and subscription had each event once, and those of a stream or key in order."""
    log = [event async for event in app.read_all(settled=False)]
    payments = [event for event in log if isinstance(event.data, Paid)]
    for tenant in TENANTS:
        mine = [event for event in log if event.tenant == tenant]
        assert dict(await app.query(Steps, tenant=tenant)) == _steps(mine)
        assert dict(await app.query(People, tenant=tenant)) == _people(mine)
        rows = await app.rows(Accounts, tenant=tenant)
        assert {one.person: (one.balance, one.payments, one.last) for one in rows} == _rows(mine)
    for table in ("written", "told"):
        found = await operator.fetch(f"SELECT tenant, stream, version FROM {table} ORDER BY at")
        assert _by_stream(map(tuple, found)) == _by_stream(map(_place, log))
    called = [event for _, event in app.called]  # type: ignore[attr-defined]  # see kinds_app
    assert _first_times(called) == _by_stream(map(_place, payments)), "at least once, in order"


def _first_times(called: list[RecordedEvent[Any]]) -> dict[tuple[str, str], list[int]]:
    """Of each stream the versions told, where they were told first."""
    told = _by_stream(map(_place, called))
    return {stream: list(dict.fromkeys(versions)) for stream, versions in told.items()}


def _place(event: RecordedEvent[Any]) -> tuple[str, str, int]:
    return event.tenant, event.stream, event.version


def _by_stream(places: Iterator[tuple[str, str, int]]) -> dict[tuple[str, str], list[int]]:
    found: dict[tuple[str, str], list[int]] = {}
    for tenant, stream, version in places:
        found.setdefault((tenant, stream), []).append(version)
    return found


def _steps(log: list[RecordedEvent[Any]]) -> dict[str, Trace]:
    found: dict[str, Trace] = {}
    for event in log:
        if isinstance(event.data, Paid):
            found.setdefault(event.stream, Trace()).seen.append(event.version)
        else:
            found.pop(event.stream, None)
    return found


def _people(log: list[RecordedEvent[Any]]) -> dict[str, Trace]:
    found: dict[str, Trace] = {}
    for event in log:
        one = event.data
        if isinstance(one, Paid):
            for name in dict.fromkeys([f"amount/{one.amount % 3}", f"amount/{one.amount % 4}"]):
                found.setdefault(name, Trace()).seen.append(event.position)
            found.setdefault(one.payer, Trace()).seen.append(-one.amount)
            found.setdefault(one.payee, Trace()).seen.append(one.amount)
    return found


def _rows(log: list[RecordedEvent[Any]]) -> dict[str, tuple[int, int, int]]:
    found: dict[str, tuple[int, int, int]] = {}
    for event in log:
        if isinstance(event.data, Paid):
            for person in (event.data.payer, event.data.payee):
                balance, payments, _ = found.get(person, (0, 0, 0))
                found[person] = (balance + event.data.amount, payments + 1, event.position)
    return found
