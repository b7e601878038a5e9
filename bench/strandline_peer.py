"""strandline itself, by its public face only.

Appends are given objects and encode them inside the measurement. Concurrent appends of a process
share calls (group commit), as they do in any service. Projections run in this one process.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

import asyncpg

import strandline as sl
from bench import workload
from bench.harness import (
    Measure,
    Place,
    Workload,
    append_concurrently,
    rate,
    visible_latency,
)
from bench.workload import Entry, Expected

PATIENCE = 300.0


@dataclass(frozen=True, slots=True)
class AccountOpened:
    account: str
    amount: int
    currency: str
    version: int
    memo: str


@dataclass(frozen=True, slots=True)
class MoneyDeposited:
    account: str
    amount: int
    currency: str
    version: int
    memo: str


@dataclass(frozen=True, slots=True)
class MoneyWithdrawn:
    account: str
    amount: int
    currency: str
    version: int
    memo: str


CLASSES: dict[str, type[Any]] = {
    cls.__name__: cls for cls in (AccountOpened, MoneyDeposited, MoneyWithdrawn)
}
LOG_SUMS = """
SELECT count(*), coalesce(sum(CASE type WHEN 'AccountOpened' THEN 0
                                        WHEN 'MoneyDeposited' THEN (data->>'amount')::bigint
                                        ELSE -(data->>'amount')::bigint END), 0)::bigint
  FROM strandline.events
"""
DOCUMENT_SUMS = """
SELECT coalesce(sum((data->>'n')::bigint), 0)::bigint, coalesce(sum((data->>'balance')::bigint), 0)::bigint
  FROM strandline.doc_balances_v1
"""
TABLE_SUMS = """
SELECT coalesce(sum(n), 0)::bigint, coalesce(sum(balance), 0)::bigint FROM strandline.table_balances_v1
"""
NEWEST = "SELECT position FROM strandline.shards WHERE name = 'balances:v1:all'"


@dataclass(slots=True)
class Balance:
    """The read model: what the table `balances` of the workload holds."""

    account: str
    balance: int = 0
    n: int = 0
    last_pos: int = 0


def bank(place: Place) -> sl.App:
    """An app with the workload's events and no projection."""
    app = sl.App("bench", place.url)
    for name, cls in CLASSES.items():
        app.event(name)(cls)
    return app


def bank_with_balances(place: Place) -> sl.App:
    """The same with the balances as documents, one per stream."""
    app = bank(place)

    @app.projection("balances")
    class Balances(sl.SingleStream[Balance]):
        @sl.create
        def opened(self, event: AccountOpened) -> Balance:
            return Balance(event.account, n=1)

        @sl.apply
        def deposited(self, balance: Balance, event: MoneyDeposited) -> None:
            balance.balance += event.amount
            balance.n += 1

        @sl.apply
        def withdrawn(self, balance: Balance, event: MoneyWithdrawn) -> None:
            balance.balance -= event.amount
            balance.n += 1

    return app


def bank_with_table(place: Place) -> sl.App:
    """The same with the balances as a table projection."""
    app = bank(place)

    @app.projection("balances")
    class Balances(sl.Table):
        account = sl.column(UUID, key="account")
        balance = sl.column(int, default=0)
        n = sl.column(int, default=0)
        last_pos = sl.column(int)
        rules = (
            sl.on(AccountOpened, n=sl.count(), last_pos=sl.greatest(sl.POSITION)),
            sl.on(
                MoneyDeposited,
                balance=sl.add("amount"),
                n=sl.count(),
                last_pos=sl.greatest(sl.POSITION),
            ),
            sl.on(
                MoneyWithdrawn,
                balance=sl.subtract("amount"),
                n=sl.count(),
                last_pos=sl.greatest(sl.POSITION),
            ),
        )

    return app


def event(entry: Entry) -> Any:
    """The object of an entry."""
    account, version = entry
    memo = 150 - len(workload.payload(account, version).rstrip(b'x"}')) - 2
    return CLASSES[workload.event_type(version)](
        workload.account_id(account), workload.amount(account, version), "EUR", version, "x" * memo
    )


async def sums(place: Place, sql: str) -> tuple[int, int]:
    """What a query adds up."""
    connection = await asyncpg.connect(place.url)
    try:
        events, balance = await connection.fetchrow(sql)
    finally:
        await connection.close()
    return events, balance


async def check(place: Place, what: str, sql: str, wanted: Expected) -> None:
    """Compare the sums of a query with what they must be."""
    events, balance = await sums(place, sql)
    workload.check(f"strandline, {what}", events=events, balance=balance, wanted=wanted)


async def append(writers: int, place: Place) -> list[Measure]:
    """Single-event appends by concurrent tasks, each with the expected version."""
    per_account = place.sizes.alone if writers == 1 else place.sizes.together
    shares = workload.shared_out(writers, per_account)
    made = [
        [(workload.stream_id(one[0]), event(one), one[1] - 1) for one in share] for share in shares
    ]
    async with bank(place) as app:
        await app.append("warm-up", event((0, 1)))

        async def one(task: tuple[str, Any, int]) -> None:
            await app.append(task[0], task[1], expected=task[2])

        await place.ready()
        measures = await append_concurrently(made, one)
    connection = await asyncpg.connect(place.url)
    try:
        await connection.execute("DELETE FROM strandline.events WHERE stream = 'warm-up'")
    finally:
        await connection.close()
    wanted = workload.expected(entry for share in shares for entry in share)
    await check(place, "appends", LOG_SUMS, wanted)
    return measures


async def append_batches(place: Place) -> list[Measure]:
    """Appends of 100 events to a new stream each, one after the other."""
    wanted = workload.batches(workload.ACCOUNTS * place.sizes.log)
    made = [(workload.stream_id(batch[0][0]), [event(one) for one in batch]) for batch in wanted]
    async with bank(place) as app:

        async def one(task: tuple[str, list[Any]]) -> None:
            await app.append(task[0], task[1], expected=sl.NO_STREAM)

        await place.ready()
        measures = await append_concurrently([made], one)
    await check(place, "batches", LOG_SUMS, workload.expected(e for b in wanted for e in b))
    batches = measures[0]
    return [Measure("rate", batches.value * workload.BATCH, "events/s"), *measures[1:]]


async def load(app: sl.App, entries: Iterable[Entry]) -> None:
    """Store a log before something is measured on it."""
    await app.import_events(
        sl.ImportedEvent(workload.stream_id(one[0]), event(one)) for one in entries
    )
    await app.pools.work.run(analyze())


def analyze() -> Any:
    from strandline.postgres.operations import Call
    from strandline.postgres.statements import verbatim

    yield Call(verbatim("VACUUM ANALYZE strandline.events"), ())


async def import_log(place: Place) -> list[Measure]:
    """The whole log by ``import_events``, from objects made before."""
    entries = list(workload.stored_log(place.sizes.log))
    made = [sl.ImportedEvent(workload.stream_id(one[0]), event(one)) for one in entries]
    async with bank(place) as app:
        await place.ready()
        seconds = await timed(app.import_events(made))
    await check(place, "import", LOG_SUMS, workload.expected(entries))
    return [rate(len(entries), seconds)]


async def catch_up(place: Place, *, again: bool = False) -> list[Measure]:
    """A single-stream projection from nothing to the end of the log, exactly once, in one process."""
    entries = list(workload.stored_log(place.sizes.log))
    async with bank_with_balances(place) as app:
        await load(app, entries)
        if again:
            await app.catch_up(timeout=PATIENCE)
        await place.ready()
        seconds = await timed(rebuilt(app) if again else app.catch_up(timeout=PATIENCE))
    await check(place, "catch-up", DOCUMENT_SUMS, workload.expected(entries))
    return [rate(len(entries), seconds)]


async def table_catch_up(place: Place) -> list[Measure]:
    """A table projection from nothing to the end of the log: folded inside PostgreSQL."""
    entries = list(workload.stored_log(place.sizes.log))
    async with bank_with_table(place) as app:
        await load(app, entries)
        await place.ready()
        seconds = await timed(app.catch_up(timeout=PATIENCE))
    await check(place, "table catch-up", TABLE_SUMS, workload.expected(entries))
    return [rate(len(entries), seconds)]


async def rebuilt(app: sl.App) -> None:
    """Empty the projection and fill it again."""
    await app.rebuild("balances")
    await app.catch_up(timeout=PATIENCE)


async def latency(place: Place) -> list[Measure]:
    """From an append's return until the projection's effect is committed."""
    async with bank_with_balances(place) as app:
        await app.start()

        async def one(number: int) -> int:
            account, version = number % workload.ACCOUNTS, number // workload.ACCOUNTS + 1
            done = await app.append(workload.stream_id(account), event((account, version)))
            return done.position

        await one(0)
        await app.catch_up()
        return await visible_latency(place, lambda number: one(number + 1), NEWEST)


async def timed(work: Any) -> float:
    """Seconds that *work* takes."""
    import time

    began = time.perf_counter()
    await work
    return time.perf_counter() - began


SYSTEMS: dict[str, dict[str, Workload]] = {
    "strandline": {
        "append_1": partial(append, 1),
        "append_16": partial(append, 16),
        "append_64": partial(append, 64),
        "append_256": partial(append, 256),
        "append_batch_100": append_batches,
        "import": import_log,
        "catch_up": catch_up,
        "table_catch_up": table_catch_up,
        "rebuild": partial(catch_up, again=True),
        "visible_latency_p99": latency,
    },
    "strandline_single_stream": {"table_catch_up": catch_up},
}
