"""Every kind of projection, kept by appends or by nodes as the code says, and writers of both kinds."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import kinds
from kinds import Accounts, Closed, Paid, People, Steps, Written
from tally import holds

from strandline import sync
from strandline.app import App
from strandline.registration import Registration

HERE = Path(__file__).parent
LABELS = ("accounts:v1", "people:v1", "steps:v1", "written:v1")
QUICK: dict[str, Any] = {
    "poll_interval": 0.1,
    "failure_pause": 0.1,
    "pulse_interval": 0.2,
    "node_ttl": 2.0,
    "leader_ttl": 1.6,
    "leader_margin": 0.4,
    "rejoin_grace": 0.0,
}


def declare(app: Registration, lifecycle: str, shards: int = 1) -> None:
    app.event("paid")(Paid)
    app.event("closed")(Closed)
    for name, kind in (
        ("steps", Steps),
        ("people", People),
        ("accounts", Accounts),
        ("written", Written),
    ):
        app.projection(name, lifecycle=lifecycle, shards=shards)(kind)


def kept_app(url: str, lifecycle: str, *, shards: int = 1, **settings: Any) -> App:
    app = App("kept", url, **{**QUICK, **settings})
    declare(app, lifecycle, shards)
    return app


def kept_sync_app(url: str, lifecycle: str, **settings: Any) -> sync.App:
    app = sync.App("kept", url, **{**QUICK, **settings})
    declare(app, lifecycle)
    return app


def some_event(chance: random.Random) -> Any:
    return Closed() if chance.random() < 0.1 else some_payment(chance)


def some_payment(chance: random.Random) -> Paid:
    people = "Ada", "Bo", "Cy", "Di"
    return Paid(chance.choice(people), chance.choice(people), chance.randrange(1, 50))


def some_stream(chance: random.Random) -> str:
    return f"s{chance.randrange(6)}"


async def write(app: App, seed: int, is_over: Callable[[], bool]) -> int:
    """Append, in every way there is, until it is over; how often."""
    chance, done = random.Random(seed), 0
    while not is_over():
        way = chance.random()
        if way < 0.5:
            await app.append(some_stream(chance), some_event(chance))
        elif way < 0.7:
            streams = sorted({some_stream(chance) for _ in range(3)})
            await app.append_many([(one, some_event(chance)) for one in streams])
        else:  # one that holds a stream when it comes to the other; all turns are taken at once
            async with app.transaction() as tx:
                for stream in sorted({some_stream(chance) for _ in range(2)}):
                    await tx.append(stream, [some_payment(chance), some_event(chance)])
                    await asyncio.sleep(chance.random() * 0.01)
        done += 1
    return done


async def assert_kept_exactly_once(app: App, operator: Any) -> int:
    """Every event is in every read model once, in order; how many events there are."""
    log = [event async for event in app.read_all(settled=False)]
    assert dict(await app.query(Steps)) == kinds._steps(log)
    assert dict(await app.query(People)) == kinds._people(log)
    rows = await app.rows(Accounts)
    told = {one.person: (one.balance, one.payments, one.last) for one in rows}
    assert told == kinds._rows(log)
    found = await operator.fetch("SELECT tenant, stream, version FROM written ORDER BY at")
    assert kinds._by_stream(map(tuple, found)) == kinds._by_stream(map(kinds._place, log))
    return len(log)


@asynccontextmanager
async def writer(url: str, folder: Path, name: str, *words: str) -> AsyncIterator[Path]:
    """``kept_writer.py`` as a process; it writes until the block ends. Its log."""
    log, stop = folder / f"{name}.log", folder / f"{name}.stop"
    environment = {**os.environ, "PYTHONPATH": str(HERE), "PYTHONUNBUFFERED": "1"}
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "cluster" / "kept_writer.py"), url, str(stop), *words],
            stdout=out,
            stderr=out,
            env=environment,
        )
        try:
            await holds(lambda: "writes" in log.read_text() or process.poll() is not None, 30.0)
            assert process.poll() is None, log.read_text()
            yield log
        finally:
            stop.touch()
            try:
                code = await asyncio.to_thread(process.wait, 20)
            finally:
                process.kill()
        assert code == 0, log.read_text()
