"""A ledger whose rules can be changed, readers that check each snapshot, and what builds leave behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

import asyncpg
from tally import connected

from strandline.app import App
from strandline.daemon.checkpoint import claim
from strandline.daemon.feed import Feed
from strandline.daemon.rebuilder import Rebuilder
from strandline.daemon.rebuilds import Build, open_rebuilds
from strandline.events.event import RecordedEvent
from strandline.projections.handlers import apply, fan_out, key
from strandline.projections.multi_stream import MultiStream
from strandline.projections.single_stream import SingleStream
from strandline.projections.slice import WHOLE

QUICK: dict[str, Any] = {
    "failure_pause": 0.1,
    "longest_failure_pause": 0.2,
    "poll_interval": 0.05,
    "pulse_interval": 0.1,
    "node_ttl": 2.0,
    "leader_ttl": 1.5,
    "leader_margin": 0.2,
    "rebalance_after": 0.1,
    "rebalance_interval": 0.1,
    "rejoin_grace": 0.0,
    "pulse": "loop",
    "page_events": 50,
    "rebuild_page_events": 100,
}
BALANCES = "strandline.doc_balances_v1"


@dataclass(frozen=True)
class Moved:
    """Money goes from one account to another."""

    giver: str
    taker: str
    amount: int = 1


@dataclass(frozen=True)
class Given:
    account: str
    amount: int


@dataclass(frozen=True)
class Taken:
    account: str
    amount: int


@dataclass
class Balance:
    amount: int = 0
    moves: int = 0
    rules: int = 0


@dataclass
class Moves:
    versions: list[int] = field(default_factory=list)


class Refused(Exception):
    """A rule that cannot take an event."""


@dataclass
class Rules:
    """What the code says; changed by tests as a deployment would.

    Attributes:
        number: Stands in every balance that it has touched.
        poison: Amounts that it refuses, of what serves and of builds.
    """

    number: int = 1
    poison: set[int] = field(default_factory=set)


def ledger(url: str | None, *, shards: int = 1, rules: Rules | None = None, **settings: Any) -> App:
    """Balances by account, whose sum is always 0; moves by stream."""
    app = App("ledger", url, **{**QUICK, **settings})
    says = rules or Rules()
    app.event("moved")(Moved)

    @app.projection("balances", shards=shards)
    class Balances(MultiStream[Balance]):
        @fan_out
        def sides(self, event: Moved) -> list[Given | Taken]:
            return [Given(event.giver, event.amount), Taken(event.taker, event.amount)]

        @key
        def account(self, side: Given | Taken) -> str:
            return side.account

        @apply
        def given(self, balance: Balance, side: Given) -> None:
            if side.amount in says.poison:
                raise Refused(side.amount)
            balance.amount -= side.amount
            balance.moves += 1
            balance.rules = says.number

        @apply
        def taken(self, balance: Balance, side: Taken) -> None:
            balance.amount += side.amount
            balance.moves += 1
            balance.rules = says.number

    @app.projection("moves", shards=shards)
    class ByStream(SingleStream[Moves]):
        @apply
        def moved(self, moves: Moves, event: RecordedEvent[Moved]) -> None:
            moves.versions.append(event.version)

    return app


async def move(app: App, events: int, *, accounts: int = 7, streams: int = 5) -> int:
    """Append *events*, ten at a time; the last position."""
    last = 0
    for begun in range(0, events, 10):
        batch = [
            Moved(f"a{number % accounts}", f"a{(number * 3 + 1) % accounts}")
            for number in range(begun, min(begun + 10, events))
        ]
        last = (await app.append(f"s{begun // 10 % streams}", batch)).position
    return last


async def assert_equals_the_fold(app: App, rules: int | None = None) -> None:
    """Both read models are what the log makes of them."""
    balances: dict[str, Balance] = {}
    moves: dict[str, Moves] = {}
    async for event in app.read_all(settled=False):
        one: Moved = event.data
        for account, amount in ((one.giver, -one.amount), (one.taker, one.amount)):
            found = balances.setdefault(account, Balance())
            found.amount += amount
            found.moves += 1
        moves.setdefault(event.stream, Moves()).versions.append(event.version)
    found_balances = dict(await app.query("balances"))
    for name, balance in found_balances.items():
        if rules is not None:
            assert balance.rules == rules, (name, balance)
        balance.rules = 0
    assert found_balances == balances
    assert dict(await app.query("moves")) == moves


SNAPSHOT = f"""SELECT count(*), coalesce(sum((data->>'amount')::bigint), 0),
                      coalesce(sum((data->>'moves')::bigint), 0), count(DISTINCT data->>'rules')
                 FROM {BALANCES}"""


@dataclass
class Reader:
    """Reads the balances in a tight loop on a prepared statement, and checks each snapshot."""

    reads: int = 0
    moves: int = 0
    longest: float = 0.0

    async def read(self, url: str, over: asyncio.Event) -> None:
        connection = await asyncpg.connect(url)
        try:
            prepared = await connection.prepare(SNAPSHOT)
            while not over.is_set():
                begun = asyncio.get_running_loop().time()
                count, total, moves, rules = await prepared.fetchrow()
                took = asyncio.get_running_loop().time() - begun
                assert count == 7, f"{count} accounts"
                assert total == 0, f"a sum of {total}"
                assert moves >= self.moves, f"{moves} moves after {self.moves}"
                assert rules == 1, "mixed"
                self.moves = moves
                self.reads += 1
                self.longest = max(self.longest, took)
                await asyncio.sleep(0)
        finally:
            await connection.close()


@asynccontextmanager
async def reading(url: str) -> AsyncIterator[Reader]:
    """Somebody reads the balances all the while."""
    reader, over = Reader(), asyncio.Event()
    task = asyncio.create_task(reader.read(url, over))
    try:
        yield reader
    finally:
        over.set()
        await task


async def left_behind(url: str) -> dict[str, Sequence[str]]:
    """What there is of any build."""
    queries = {
        "schemas": "SELECT nspname FROM pg_namespace WHERE nspname LIKE '%~%'",
        "shards": "SELECT name FROM strandline.shards WHERE name LIKE '%~%'",
        "status": "SELECT name FROM strandline.shard_status WHERE name LIKE '%~%'",
        "slicings": "SELECT label FROM strandline.slicings WHERE label LIKE '%~%' OR build IS NOT NULL",
        "work": "SELECT name FROM strandline.work WHERE name LIKE '%~%'",
        "letters": "SELECT label FROM strandline.dead_letters WHERE label LIKE '%~%'",
        "seals": "SELECT name FROM strandline.shards WHERE seal IS NOT NULL",
    }
    async with connected(url) as operator:
        found = {
            what: [row[0] for row in await operator.fetch(query)] for what, query in queries.items()
        }
    return {what: names for what, names in found.items() if names}


def rebuilder(app: App, **settings: Any) -> Rebuilder:
    """What takes the steps of builds, for an app that is no node: taken by hand."""
    known = {
        one.label: one.build
        for one in app.opened_runtime.definitions(app._begin)
        if one.build is not None
    }
    told = replace(app.settings, **settings)
    return Rebuilder(app.pools, told, app.signals, known, on_step=str, on_news=str)


async def until_state(app: App, steps: Rebuilder, state: str, label: str = "balances:v1") -> Build:
    """Take steps by hand until the build of *label* is *state*; of nothing that it has read."""
    async with asyncio.timeout(10), app.pools.work.session() as session:
        while True:
            found = await app.pools.control.run(open_rebuilds([label]))
            if found and found[0].state == state:
                return found[0]
            await session.connection.execute("UPDATE strandline.rebuilds SET target = 0")
            await steps.step()


async def states(app: App) -> list[str]:
    """Of all builds, the oldest first."""
    return [one.state for one in await app.rebuilds()]


@asynccontextmanager
async def sealed(url: str, **settings: Any) -> AsyncIterator[App]:
    """A build whose shard stands at the seal, as does what serves; nobody takes steps."""
    async with ledger(url, mode="solo", page_events=1000, **settings) as app:
        await move(app, 100)
        await app.catch_up()
        await app.rebuild("balances", wait=False)
        build = await until_state(app, rebuilder(app), "sealed")
        make = next(
            one.build.processor
            for one in app.opened_runtime.definitions(app._begin)
            if one.label == "balances:v1" and one.build is not None
        )
        processor = make(build, WHOLE)
        feed = Feed(app.pools.work, app.registry.types, app.settings)
        feed.move(100)
        at = await app.pools.work.run(claim(f"{build.shadow}:all", uuid4()))
        assert at.seal == 100
        await processor.commit(await processor.prepare(await feed.page(0, processor.appetite)), at)
        yield app
