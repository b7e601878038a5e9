"""A rebuild in the shadow beside a plain catch-up: ``python -m bench.rebuild [--events N] [--kills N]``.

One process catches a projection up over the whole log. Then two nodes, in processes of their own, build
it anew with other rules, while somebody appends and somebody reads: every reader's snapshot must be whole,
and all of it by the old rules or all by the new ones. With ``--kills`` the nodes are killed in turn, with
SIGKILL, and started again; a build must go on from where it was.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import strandline as sl
from bench import workload
from bench.run import server, temporary_database
from bench.strandline_peer import (
    CLASSES,
    AccountOpened,
    MoneyDeposited,
    MoneyWithdrawn,
    event,
    load,
)
from strandline.events.gaps import highest_position

RULES = "BENCH_RULES"  # what the nodes' code says: old or new
PATIENCE = 600.0
APPENDS = 200  # a second, while the rebuild runs
LOOK = 0.05
SNAPSHOT = """
SELECT count(*), count(*) FILTER (WHERE data->>'rules' = 'old'), count(*) FILTER (WHERE data->>'rules' = 'new'),
       coalesce(sum((data->>'n')::bigint), 0)::bigint
  FROM strandline.doc_balances_v1
"""


@dataclass(slots=True)
class Balance:
    """The read model; ``rules`` tells by which code it was made."""

    rules: str
    balance: int = 0
    n: int = 0


@dataclass(slots=True)
class Seen:
    """What the reader has seen. A snapshot is wrong if a document is missing, or of other rules."""

    snapshots: int = 0
    wrong: list[tuple[int, ...]] = field(default_factory=list)
    went_back: int = 0
    last: int = 0
    turned_after: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run, in seconds."""

    events: int
    catch_up: float
    rebuild: float
    appended: int
    kills: int
    snapshots: int
    wrong: int
    restarts_from_zero: int
    load: float

    @property
    def ratio(self) -> float:
        """Above 1: the rebuild by two processes was faster than the catch-up by one."""
        return self.catch_up / self.rebuild


def bank(url: str, rules: str, **settings: Any) -> sl.App:
    """The bank with balances that remember the rules they were made by."""
    app = sl.App("bench", url, **settings)
    for name, cls in CLASSES.items():
        app.event(name)(cls)

    @app.projection("balances")
    class Balances(sl.SingleStream[Balance]):
        @sl.create
        def opened(self, event: AccountOpened) -> Balance:
            return Balance(rules, n=1)

        @sl.apply
        def deposited(self, balance: Balance, event: MoneyDeposited) -> None:
            balance.balance += event.amount
            balance.n += 1

        @sl.apply
        def withdrawn(self, balance: Balance, event: MoneyWithdrawn) -> None:
            balance.balance -= event.amount
            balance.n += 1

    return app


def node(url: str) -> subprocess.Popen[bytes]:
    """A node in a process of its own, with the new rules."""
    environment = os.environ | {RULES: "new"}
    return subprocess.Popen([sys.executable, "-m", "bench.rebuild", "--node", url], env=environment)


async def plain(url: str, events: int) -> float:
    """Load the log and catch up in one process; the seconds of the latter."""
    async with bank(url, "old") as app:
        await load(app, workload.stored_log(events // workload.ACCOUNTS))
        began = time.perf_counter()
        await app.catch_up(timeout=PATIENCE)
        return time.perf_counter() - began


async def read(app: sl.App, seen: Seen, began: float) -> None:
    """Look at the whole read model again and again."""
    while True:
        async with app.transaction() as tx:
            ((count, old, new, n),) = await tx.fetch(SNAPSHOT)
        seen.snapshots += 1
        if count != workload.ACCOUNTS or count not in (old, new):
            seen.wrong.append((count, old, new, n))
        seen.went_back += n < seen.last
        seen.last = n
        if new and seen.turned_after is None:
            seen.turned_after = time.perf_counter() - began
        await asyncio.sleep(LOOK)


async def write(app: sl.App, per_account: int, written: list[int]) -> None:
    """Append to all accounts in turn."""
    version = per_account
    while True:
        version += 1
        for account in range(workload.ACCOUNTS):
            done = await app.append(workload.stream_id(account), event((account, version)))
            written.append(done.position)
            await asyncio.sleep(1 / APPENDS)


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait until *holds* answers True.

    Raises:
        TimeoutError: It did not in time.
    """
    async with asyncio.timeout(PATIENCE):
        while not await holds():
            await asyncio.sleep(LOOK)


async def at_work(app: sl.App, count: int) -> bool:
    """Whether *count* nodes are active."""
    async with app.transaction() as tx:
        rows = await tx.fetch("SELECT count(*) FROM strandline.nodes WHERE state = 'active'")
    return bool(rows[0][0] >= count)


async def positions(app: sl.App) -> dict[str, int]:
    """Where the shards of the build stand."""
    async with app.transaction() as tx:
        rows = await tx.fetch(
            "SELECT name, position FROM strandline.shards WHERE name LIKE 'balances:v1~%'"
        )
    return dict(rows)


async def finished(app: sl.App) -> bool:
    """Whether the latest rebuild has ended.

    Raises:
        RuntimeError: It has ended otherwise than done.
    """
    async with app.transaction() as tx:
        rows = await tx.fetch(
            "SELECT state, reason FROM strandline.rebuilds ORDER BY number DESC LIMIT 1"
        )
    state, reason = rows[0]
    if state in ("cancelled", "failed"):
        raise RuntimeError(f"the rebuild is {state}: {reason}")
    return bool(state == "done")


async def killed_in_turn(
    app: sl.App, url: str, nodes: list[subprocess.Popen[bytes]], kills: int
) -> int:
    """Kill nodes while the build is under way; how many shards began again from nothing."""
    lost = 0
    for turn in range(kills):

        async def moved() -> bool:
            found = await positions(app)
            return bool(found) and min(found.values()) > (turn + 1) * 20_000

        await until(moved)
        victim = nodes[turn % len(nodes)]
        victim.send_signal(signal.SIGKILL)
        before = await positions(app)
        victim.wait()
        nodes[turn % len(nodes)] = node(url)
        await asyncio.sleep(0.2)
        after = await positions(app)
        lost += sum(after.get(name, place) < place for name, place in before.items())
    return lost


async def measured(url: str, events: int, kills: int) -> Outcome:
    """Both, one after the other, on the database at *url*.

    Raises:
        RuntimeError: A reader saw what it must not see, or the outcome is wrong.
    """
    load_before = os.getloadavg()[0]
    catch_up = await plain(url, events)
    nodes = [node(url), node(url)]
    written: list[int] = []
    seen = Seen()
    try:
        async with bank(url, "old") as app:
            await until(lambda: at_work(app, 2))
            began = time.perf_counter()
            around = [
                asyncio.create_task(read(app, seen, began)),
                asyncio.create_task(write(app, events // workload.ACCOUNTS, written)),
            ]
            await app.rebuild("balances", wait=False, parts=2)
            lost = await killed_in_turn(app, url, nodes, kills)
            await until(lambda: finished(app))
            seconds = time.perf_counter() - began
            await asyncio.sleep(0.2)  # the reader sees what came of it
            for task in around:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            await app.wait_for(await app.pools.control.run(highest_position()), timeout=PATIENCE)
            await check(app)
    finally:
        for one in nodes:
            one.terminate()
        for one in nodes:
            one.wait()
    if seen.wrong or seen.went_back:
        raise RuntimeError(
            f"readers saw a model that is not whole: {seen.wrong[:5]}, back {seen.went_back}"
        )
    return Outcome(
        events,
        catch_up,
        seconds,
        len(written),
        kills,
        seen.snapshots,
        len(seen.wrong),
        lost,
        load_before,
    )


async def check(app: sl.App) -> None:
    """Compare what was built with the log.

    Raises:
        RuntimeError: An event is missing, or there twice.
    """
    async with app.transaction() as tx:
        ((count, _, new, n),) = await tx.fetch(SNAPSHOT)
        ((events,),) = await tx.fetch("SELECT count(*) FROM strandline.events")
    if (count, new, n) != (workload.ACCOUNTS, workload.ACCOUNTS, events):
        raise RuntimeError(f"{count} accounts, {new} by the new rules, {n} events of {events}")


def main() -> None:
    """Run what the command line says; print and write the figures."""
    parser = argparse.ArgumentParser(prog="bench.rebuild", description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--node", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.node:
        # beats by a side process, as `strandline node` has it: a killed node is noticed at once
        asyncio.run(bank(options.node, os.environ[RULES], pulse="process").run())
        return
    with server() as root, temporary_database(root) as url:
        outcome = asyncio.run(measured(url, options.events, options.kills))
    print(told(outcome))
    if options.out:
        options.out.write_text(
            json.dumps(asdict(outcome) | {"ratio": outcome.ratio}, indent=2) + "\n"
        )


def told(outcome: Outcome) -> str:
    """The figures in words."""
    one = outcome
    return (
        f"{one.events:,} events: catch-up by one process {one.catch_up:.2f} s"
        f" ({one.events / one.catch_up:,.0f}/s), rebuild by two {one.rebuild:.2f} s"
        f" ({one.events / one.rebuild:,.0f}/s, {one.ratio:.2f} of the catch-up's rate)"
        f" beside {one.appended:,} appends and {one.snapshots:,} snapshots, {one.wrong} of them wrong;"
        f" {one.kills} kills, {one.restarts_from_zero} shards went back"
    )


if __name__ == "__main__":
    main()
