"""Sixteen unruly writers against the real detector: every event is seen exactly once.

The same data is read by the naive rule, ``position > last``, which must lose events: that proves
that the test can fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import asyncpg

SECONDS = float(os.environ.get("STRANDLINE_FUZZ_SECONDS", "8"))
SEED = int(os.environ.get("STRANDLINE_FUZZ_SEED", "0")) or random.SystemRandom().getrandbits(32)
WRITERS = 14
APPEND = "SELECT position FROM strandline.append($1, $2)"
PAGE = "SELECT position FROM strandline.events WHERE position > $1 AND position <= $2 ORDER BY 1"
TOUCH = (
    "INSERT INTO strandline.streams (tenant, id, version, expected) VALUES ('default', $1, $2, -1)"
)


@dataclass
class Writer:
    """One unruly writer; draws what to do next from a weighted list."""

    url: str
    name: str
    dice: random.Random
    connection: Any = None
    prepared: list[str] = field(default_factory=list)
    did: Counter[str] = field(default_factory=Counter)

    async def run(self, until: float) -> None:
        """Write until the moment *until*."""
        acts = [self.commit, self.roll_back, self.be_slow, self.be_killed, self.savepoint]
        acts += [self.prepare, self.bring_in]
        weights = [60, 15, 6, 3, 8, 4, 4]
        while time.monotonic() < until:
            if self.connection is None or self.connection.is_closed():
                self.connection = await asyncpg.connect(self.url)
            (act,) = self.dice.choices(acts, weights)
            self.did[act.__name__] += 1
            with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                await act()
            await asyncio.sleep(self.dice.random() * 0.02)
        if self.connection.is_closed():
            self.connection = await asyncpg.connect(self.url)
        for gid in self.prepared:
            await self.connection.execute(f"COMMIT PREPARED '{gid}'")
        await self.connection.close()

    async def append(self) -> None:
        """Append one to three events to one of thirty streams."""
        body = json.dumps([{"type": "t", "data": {}}] * self.dice.randint(1, 3))
        await self.connection.execute("SET LOCAL lock_timeout = '200ms'")
        await self.connection.fetchval(APPEND, f"s{self.dice.randrange(30)}", body)

    @contextlib.asynccontextmanager
    async def begun(self) -> Any:
        """A transaction that is rolled back if the block raises."""
        await self.connection.execute("BEGIN")
        try:
            yield
        except BaseException:
            if not self.connection.is_closed():
                await self.connection.execute("ROLLBACK")
            raise

    async def commit(self) -> None:
        """Append and commit after a moment."""
        async with self.begun():
            await self.append()
            await asyncio.sleep(self.dice.random() * 0.01)
            await self.connection.execute("COMMIT")

    async def roll_back(self) -> None:
        """Append and roll back."""
        async with self.begun():
            await self.append()
            await self.connection.execute("ROLLBACK")

    async def be_slow(self) -> None:
        """Append to an own stream and commit up to a second later."""
        async with self.begun():
            body = json.dumps([{"type": "slow", "data": {}}])
            await self.connection.fetchval(APPEND, f"slow {self.name}", body)
            await asyncio.sleep(self.dice.random())
            await self.connection.execute("COMMIT")

    async def be_killed(self) -> None:
        """Append and lose the connection, sometimes while it commits."""
        await self.connection.execute("BEGIN")
        await self.append()
        if self.dice.random() < 0.5:
            ending = asyncio.ensure_future(self.connection.execute("COMMIT"))
            await asyncio.sleep(0)
            self.connection.terminate()
            await asyncio.wait({ending})
            ending.exception()
        self.connection.terminate()

    async def savepoint(self) -> None:
        """Append under a savepoint that is rolled back, before or after the top appended."""
        async with self.begun():
            first = self.dice.random() < 0.5
            if first:
                await self.append()
            await self.connection.execute("SAVEPOINT a")
            await self.append()
            await self.connection.execute("ROLLBACK TO a")
            if not first:
                await asyncio.sleep(self.dice.random() * 0.05)
                await self.append()
            await self.connection.execute("COMMIT")

    async def prepare(self) -> None:
        """Prepare an append to a new stream; end it a few acts later."""
        if len(self.prepared) > 0:
            end = "COMMIT" if self.dice.random() < 0.6 else "ROLLBACK"
            await self.connection.execute(f"{end} PREPARED '{self.prepared.pop()}'")
            return
        gid = f"{self.url[-12:]} {self.name} {self.did['prepare']}"
        async with self.begun():
            body = json.dumps([{"type": "prepared", "data": {}}])
            await self.connection.fetchval(APPEND, gid, body)
            await self.connection.execute(f"PREPARE TRANSACTION '{gid}'")
            self.prepared.append(gid)

    async def bring_in(self) -> None:
        """Import a chunk by COPY into a new stream, as an import does: streams first."""
        stream = f"import {self.name} {self.did['bring_in']}"
        columns = ["tenant", "stream", "version", "id", "type", "data"]
        async with self.begun():
            await self.connection.execute(TOUCH, stream, 200)
            ids = [f"{self.dice.getrandbits(128):032x}" for _ in range(200)]
            rows = [("default", stream, n, one, "t", "{}") for n, one in enumerate(ids, 1)]
            await self.connection.copy_records_to_table(
                "events", schema_name="strandline", records=rows, columns=columns
            )
            await asyncio.sleep(self.dice.random() * 0.05)
            await self.connection.execute("ROLLBACK" if self.dice.random() < 0.2 else "COMMIT")


async def _read_marked(url: str, lab: Any, seen: Counter[int], over: asyncio.Event) -> int:
    """Read (last, mark] after every move; answer where it stopped.

    Two detectors tell their moves, the slower one may tell a lower mark last: the highest counts.
    """
    connection, last = await asyncpg.connect(url), 0
    while not (over.is_set() and last == max(lab.moves)):
        mark = max(lab.moves, default=0)
        if mark > last:
            seen.update(row[0] for row in await connection.fetch(PAGE, last, mark))
            last = mark
        await asyncio.sleep(0.002)
    await connection.close()
    return last


async def _read_naively(url: str, seen: Counter[int], over: asyncio.Event) -> None:
    """Read what is greater than the greatest seen: the wrong rule."""
    connection, last = await asyncpg.connect(url), 0
    while not over.is_set():
        rows = await connection.fetch(PAGE, last, 2**60)
        seen.update(row[0] for row in rows)
        last = rows[-1][0] if rows else last
        await asyncio.sleep(0.01)
    seen.update(row[0] for row in await connection.fetch(PAGE, last, 2**60))
    await connection.close()


async def test_no_event_is_lost_or_seen_twice_among_unruly_writers(
    open_lab: Any, database_url: str
) -> None:
    async with open_lab(database_url, probe_interval=0.02) as lab:
        detectors = [lab.detector(), lab.detector()]  # two: they must not disturb each other
        admin = await lab.connect()
        await admin.execute("CREATE TABLE other (n int)")
        bystander = await lab.connect("unrelated long writer")
        await bystander.execute("BEGIN; INSERT INTO other VALUES (1)")
        until = time.monotonic() + SECONDS
        writers = [
            Writer(database_url, str(n), random.Random(f"{SEED} {n}"))  # noqa: S311
            for n in range(WRITERS)
        ]
        marked: Counter[int] = Counter()
        naive: Counter[int] = Counter()
        over = asyncio.Event()
        detectors[0].start()
        detectors[1].start()
        readers = [
            asyncio.create_task(_read_marked(database_url, lab, marked, over)),
            asyncio.create_task(_read_naively(database_url, naive, over)),
        ]
        lags = []
        tasks = [asyncio.create_task(one.run(until)) for one in writers]
        while time.monotonic() < until:
            for one in detectors:
                one.wake()
            numbers = detectors[0].statistics()
            lags.append(numbers.pending_seconds)
            await asyncio.sleep(0.01)
        await asyncio.gather(*tasks)
        await lab.committed()
        truth = {row[0] for row in await admin.fetch(PAGE, 0, 2**60)}
        await _reached(lab, detectors, max(truth))
        over.set()
        stopped, _ = await asyncio.gather(*readers)
        for one in detectors:
            assert await one.stop()

        did = sum((one.did for one in writers), Counter[str]())
        rows = await admin.fetch("SELECT first, last FROM strandline.gaps")
        skipped = {number for first, last in rows for number in range(first, last + 1)}
        lags.sort()
        print(  # noqa: T201 - the figures are what a failing run is judged by
            f"\nseed {SEED}: {len(truth)} events, {len(skipped)} numbers in {len(rows)} gaps,"
            f" naive lost {len(truth - set(naive))}, acts {dict(did)},"
            f" pending p50 {lags[len(lags) // 2]:.3f} p99 {lags[len(lags) * 99 // 100]:.3f} s,"
            f" looks {numbers.looks}, probes {numbers.probes}"
        )
        assert len(did) == 7
        assert min(did.values()) > 0
        assert stopped == max(truth), "the reader must have come to the end to judge anything"
        assert set(marked) == truth, f"lost {sorted(truth - set(marked))[:20]} with seed {SEED}"
        assert max(marked.values()) == 1
        assert truth.isdisjoint(skipped)
        assert len(truth) + len(skipped) == max(truth), "each number is an event or in the ledger"
        assert numbers.loop.failures == 0
        assert truth - set(naive), "the naive rule lost nothing: this run could not have failed"


async def _reached(lab: Any, detectors: list[Any], position: int) -> None:
    async def there() -> bool:
        for one in detectors:
            one.wake()
        return bool(max(lab.moves, default=0) == position)

    await lab.until(there, timeout=20.0)
