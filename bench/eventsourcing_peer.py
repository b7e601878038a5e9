"""The peer: `eventsourcing` from PyPI, with what its documentation has for speed.

psycopg with its C code (``psycopg[binary]`` is the same code as ``psycopg[c]``, compiled already),
``POSTGRES_ENABLE_DB_FUNCTIONS=y``, a small connection pool (large ones were slower). Appends are
given to the recorder as stored events whose state is encoded before the measurement, so the time
of its aggregates and of its transcoder is left out, in its favour. Projections are run by its
`ProjectionRunner`, with the view and the tracking written in one transaction as its documentation
shows. It has no batching and takes each event in a transaction, so it gets the first fifth of the
log: a run shall end in minutes.

With database functions it takes no table lock while it appends, so a projection that runs during
concurrent appends may skip events. Nothing here appends concurrently while a projection runs.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from uuid import UUID

import psycopg
from eventsourcing.application import Application
from eventsourcing.dispatch import singledispatchmethod
from eventsourcing.domain import Aggregate
from eventsourcing.persistence import StoredEvent, Tracking
from eventsourcing.postgres import (
    PostgresApplicationRecorder,
    PostgresDatastore,
    PostgresTrackingRecorder,
)
from eventsourcing.projection import Projection, ProjectionRunner
from eventsourcing.utils import get_topic
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL, Identifier

from bench import workload
from bench.harness import PATIENCE, Measure, Place, Workload, appended, rate, visible_latency
from bench.workload import Entry, Expected

POOL = 4  # connections; with 16 to 256 threads 15 and 32 were about half as fast as 2 to 4
IMPORT_BATCH = 1000
APP = "bank"
EVENTS = f"{APP}_events"
VIEW = "balances"
TRACKING = f"{VIEW}_tracking"

DELTA = """
CASE WHEN originator_version = 1 THEN 0
     ELSE CASE WHEN originator_version % 3 = 0 THEN -1 ELSE 1 END
          * (convert_from(state, 'UTF8')::jsonb->>'amount')::bigint END
"""
LOG_SUMS = f"SELECT count(*), coalesce(sum({DELTA}), 0)::bigint FROM {EVENTS}"
VIEW_SUMS = f"SELECT coalesce(sum(n), 0)::bigint, coalesce(sum(balance), 0)::bigint FROM {VIEW}"
CAUGHT_UP = f"""
INSERT INTO {VIEW} (account, balance, n, last_pos)
SELECT originator_id, sum({DELTA}), count(*), max(notification_id) FROM {EVENTS} GROUP BY 1;
INSERT INTO {TRACKING} SELECT '{APP}', max(notification_id) FROM {EVENTS};
"""


class AccountOpened(Aggregate.Event):
    """First event of an account."""


class MoneyDeposited(Aggregate.Event):
    """An amount came in."""

    amount: int


class MoneyWithdrawn(Aggregate.Event):
    """An amount went out."""

    amount: int


class Bank(Application[UUID]):
    """The application whose log is projected."""

    name = APP


class BalancesView(PostgresTrackingRecorder):
    """The table of balances, written together with the tracking."""

    def __init__(self, datastore: PostgresDatastore, **options: Any) -> None:
        super().__init__(datastore, **options)
        table = SQL("{}.{}").format(Identifier(datastore.schema), Identifier(VIEW))
        self.sql_create_statements.append(
            SQL(
                "CREATE TABLE IF NOT EXISTS {} (account uuid PRIMARY KEY, balance bigint NOT NULL,"
                " n bigint NOT NULL, last_pos bigint NOT NULL)"
            ).format(table)
        )
        self._upsert = SQL(
            "INSERT INTO {} AS b VALUES (%s, %s, 1, %s) ON CONFLICT (account) DO UPDATE SET"
            " balance = b.balance + excluded.balance, n = b.n + 1, last_pos = excluded.last_pos"
        ).format(table)

    def add(self, account: UUID, delta: int, tracking: Tracking) -> None:
        """Add *delta* to the balance of *account*."""
        with self.datastore.transaction(commit=True) as cursor:
            self._insert_tracking(cursor, tracking)
            cursor.execute(self._upsert, (account, delta, tracking.notification_id), prepare=True)


class Balances(Projection[BalancesView]):
    """From events to balances."""

    name = VIEW

    @singledispatchmethod
    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        """Refuse what the workload does not have."""
        raise TypeError(f"{domain_event!r} in the log")

    @process_event.register
    def _(self, event: AccountOpened, tracking: Tracking) -> None:
        self.view.add(event.originator_id, 0, tracking)

    @process_event.register
    def _(self, event: MoneyDeposited, tracking: Tracking) -> None:
        self.view.add(event.originator_id, event.amount, tracking)

    @process_event.register
    def _(self, event: MoneyWithdrawn, tracking: Tracking) -> None:
        self.view.add(event.originator_id, -event.amount, tracking)


TOPICS = {one.__name__: get_topic(one) for one in (AccountOpened, MoneyDeposited, MoneyWithdrawn)}


def stored_event(entry: Entry) -> StoredEvent:
    """What the recorder takes."""
    account, version = entry
    return StoredEvent(
        originator_id=UUID(workload.account_id(account)),
        originator_version=version,
        topic=TOPICS[workload.event_type(version)],
        state=workload.payload(account, version),
    )


async def append(place: Place, *, writers: int) -> list[Measure]:
    """Single events by concurrent threads."""
    per_account = place.sizes.alone if writers == 1 else place.sizes.together
    shares = workload.shared_out(writers, per_account)
    wanted = workload.expected(entry for share in shares for entry in share)
    events = [[[stored_event(entry)] for entry in share] for share in shares]
    return await _append(place, events, wanted)


async def append_batch(place: Place) -> list[Measure]:
    """A new stream of 100 events at a time, by one thread."""
    batches = workload.batches(place.sizes.log * workload.ACCOUNTS)
    wanted = workload.expected(entry for batch in batches for entry in batch)
    events = [[stored_event(entry) for entry in batch] for batch in batches]
    return await _append(place, [events], wanted)


async def bulk_import(place: Place) -> list[Measure]:
    """The whole log, a thousand events a call; it has no way in beside the recorder."""
    log = list(workload.stored_log(place.sizes.log))
    measures = await _append(place, [_calls(log)], workload.expected(log))
    return [one for one in measures if one.metric == "rate"]


async def catch_up(place: Place) -> list[Measure]:
    """The balances of the beginning of the log, from nothing."""
    return await asyncio.to_thread(_project, place, asyncio.get_running_loop())


async def rebuild(place: Place) -> list[Measure]:
    """The same where the view was complete; emptying it is part of the work."""
    return await asyncio.to_thread(_project, place, asyncio.get_running_loop(), rebuilt=True)


async def latency(place: Place) -> list[Measure]:
    """Append to visible, the runner being in this process like the writer."""
    entries = [(n % workload.ACCOUNTS, n // workload.ACCOUNTS + 1) for n in range(10_000)]
    done: list[Entry] = []
    with _recorder(place, pool=2) as recorder, _runner(place) as runner:

        async def append_one(number: int) -> int:
            event = stored_event(entries[number])
            ids = await asyncio.to_thread(recorder.insert_events, [event])
            done.append(entries[number])
            assert ids is not None
            return int(ids[0])

        # It begins to listen after its first look at the log, and misses what comes in between.
        await asyncio.sleep(1.0)
        measures = await visible_latency(place, append_one, f"SELECT max(last_pos) FROM {VIEW}")
        _check_runner(runner)
    _check(place, VIEW_SUMS, workload.expected(done))
    return measures


def _calls(log: Sequence[Entry]) -> list[list[StoredEvent]]:
    return [
        [stored_event(entry) for entry in log[start : start + IMPORT_BATCH]]
        for start in range(0, len(log), IMPORT_BATCH)
    ]


async def _append(
    place: Place, calls: list[list[list[StoredEvent]]], wanted: Expected
) -> list[Measure]:
    """Run one thread for each list of calls; the event loop has nothing to do meanwhile."""
    with _recorder(place, pool=min(len(calls), POOL)) as recorder:
        await place.ready()
        seconds, latencies = await asyncio.to_thread(_in_threads, calls, recorder.insert_events)
    _check(place, LOG_SUMS, wanted)
    return appended(wanted.events, seconds, latencies)


def _in_threads(
    calls: list[list[list[StoredEvent]]], insert: Callable[[list[StoredEvent]], Any]
) -> tuple[float, list[float]]:
    latencies: list[float] = []
    failures: list[BaseException] = []
    start = threading.Barrier(len(calls) + 1)

    def write(mine: list[list[StoredEvent]]) -> None:
        start.wait()
        try:
            for events in mine:
                began = time.perf_counter()
                insert(events)
                latencies.append(time.perf_counter() - began)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(mine,)) for mine in calls]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    if failures:
        raise failures[0]
    return seconds, latencies


def _project(
    place: Place, loop: asyncio.AbstractEventLoop, *, rebuilt: bool = False
) -> list[Measure]:
    log = list(workload.stored_log(place.sizes.singly))
    wanted = workload.expected(log)
    with _recorder(place, pool=2) as recorder:
        for events in _calls(log):
            recorder.insert_events(events)
        last = recorder.max_notification_id()
    _execute(place, f"VACUUM (ANALYZE) {EVENTS}")
    assert last is not None
    if rebuilt:
        _fill_view(place, wanted)
    asyncio.run_coroutine_threadsafe(place.ready(), loop).result()
    began = time.perf_counter()
    if rebuilt:
        _execute(place, f"TRUNCATE {VIEW}, {TRACKING}")
    with _runner(place) as runner:
        _wait(runner, last)
        seconds = time.perf_counter() - began
    _check(place, VIEW_SUMS, wanted)
    return [rate(wanted.events, seconds)]


def _fill_view(place: Place, wanted: Expected) -> None:
    """Bring the view to where a catch-up leaves it, by SQL: another catch-up would take minutes."""
    with _runner(place):
        pass  # makes the tables
    _execute(place, f"TRUNCATE {VIEW}, {TRACKING}")
    _execute(place, CAUGHT_UP)
    _check(place, VIEW_SUMS, wanted)


def _wait(runner: Any, last: int) -> None:
    moved, at = 0, time.monotonic()
    while (position := runner.view.max_tracking_id(APP) or 0) < last:
        _check_runner(runner)
        if position > moved:
            moved, at = position, time.monotonic()
        elif time.monotonic() - at > PATIENCE:
            raise TimeoutError(f"the projection stays at {position}")
        time.sleep(0.02)


def _check_runner(runner: Any) -> None:
    if runner.is_interrupted.is_set():
        runner.run_forever(0.1)  # raises what stopped it
        raise RuntimeError("the projection runner stopped")


@contextmanager
def _recorder(place: Place, *, pool: int) -> Iterator[PostgresApplicationRecorder]:
    server = _server(place)
    datastore = PostgresDatastore(
        server["dbname"],
        server["host"],
        server["port"],
        server["user"],
        server["password"],
        pool_size=pool,
        connect_timeout=30,
        enable_db_functions=True,
    )
    with datastore:
        recorder = PostgresApplicationRecorder(datastore, events_table_name=EVENTS)
        recorder.create_table()
        datastore.pool.wait()  # the measurement shall not open connections
        yield recorder


def _runner(place: Place) -> Any:
    server = _server(place)
    return ProjectionRunner(
        application_class=Bank,
        projection_class=Balances,
        view_class=BalancesView,
        env={
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            "POSTGRES_ENABLE_DB_FUNCTIONS": "y",
            "POSTGRES_POOL_SIZE": "10",
            **{f"POSTGRES_{name.upper()}": value for name, value in server.items()},
        },
    )


def _server(place: Place) -> dict[str, str]:
    given = conninfo_to_dict(place.url)
    usual = {"host": "127.0.0.1", "port": "5432", "user": "postgres", "password": "", "dbname": ""}
    return {name: str(given.get(name) or default) for name, default in usual.items()}


def _check(place: Place, sums: str, wanted: Expected) -> None:
    with psycopg.connect(place.url, autocommit=True) as connection:
        found = connection.execute(sums).fetchone()
    assert found is not None
    workload.check("eventsourcing", events=found[0], balance=found[1], wanted=wanted)


def _execute(place: Place, sql: str) -> None:
    with psycopg.connect(place.url, autocommit=True) as connection:
        connection.execute(sql)


if psycopg.pq.__impl__ == "python":
    raise ImportError("psycopg without its C code would be an unfair peer: pip install psycopg[c]")

SYSTEMS: dict[str, dict[str, Workload]] = {
    "eventsourcing": {
        **{f"append_{n}": partial(append, writers=n) for n in (1, 16, 64, 256)},
        "append_batch_100": append_batch,
        "import": bulk_import,
        "catch_up": catch_up,
        "rebuild": rebuild,
        "visible_latency_p99": latency,
    }
}
