"""A completer on a real database, with jobs that somebody claims by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from strandline.jobs.completer import Completer
from strandline.jobs.control import Control
from strandline.jobs.kinds import Kinds
from strandline.jobs.results import Results
from strandline.jobs.row import COUNTER_BITS, Claimed, Ended
from strandline.jobs.wiring import JobWiring
from strandline.postgres.listener import Listener, Notifier
from strandline.postgres.pools import Pools
from strandline.settings import Settings
from strandline.telemetry.signals import Notice, Signals

COLUMNS = """id, claim, kind, args, attempt, max_attempts, flags, queue, key, tenant, batch, meta, seq,
             priority, created_at"""
JOIN = """INSERT INTO strandline.nodes (id, name, state, mode, pulse, ttl, expires_at)
          VALUES ($1, 'n', $2, 'cluster', 'loop', 15, clock_timestamp() + interval '1 day')
       RETURNING number"""


@dataclass
class Desk:
    """The parts of one process that end jobs, and an operator's eyes."""

    wiring: JobWiring
    completer: Completer
    control: Control
    results: Results
    notices: list[Notice] = field(default_factory=list)
    woken: list[str] = field(default_factory=list)
    drawn: int = 1_000

    async def fetch(self, sql: str, *args: Any) -> list[Any]:
        """Rows of a query."""
        async with self.wiring.pools.control.session() as session:
            return list(await session.connection.fetch(sql, *args))

    async def value(self, sql: str, *args: Any) -> Any:
        """The only value of a query."""
        return (await self.fetch(sql, *args))[0][0]

    async def joined(self, state: str = "active") -> int:
        """The number of a new node."""
        return int(await self.value(JOIN, uuid4(), state))

    async def enqueued(self, count: int = 1, **columns: Any) -> list[int]:
        """Available jobs, or whatever *columns* say; their ids."""
        ids = list(range(self.drawn, self.drawn + count))
        self.drawn += count
        columns = {"kind": "note", **columns}
        names = "".join(f", {name}" for name in columns)
        values = "".join(f", ${number}" for number in range(2, len(columns) + 2))
        await self.fetch(
            f"INSERT INTO strandline.jobs (id{names}) SELECT i{values} FROM unnest($1::bigint[]) i",
            ids,
            *columns.values(),
        )
        return ids

    async def claimed(self, ids: Sequence[int], node: int = 77, fetch: int = 1) -> list[Claimed]:
        """*ids* as *node* has fetched them."""
        rows = await self.fetch(
            f"""UPDATE strandline.jobs SET state = 2, claim = $2, attempt = attempt + 1,
                       claimed_at = clock_timestamp(), run_at = NULL
                 WHERE id = ANY ($1) RETURNING {COLUMNS}""",
            ids,
            node << COUNTER_BITS | fetch,
        )
        return sorted(Claimed(*row) for row in rows)

    async def running(self, count: int = 1, node: int = 77, **columns: Any) -> list[Claimed]:
        """Jobs that *node* runs."""
        return await self.claimed(await self.enqueued(count, **columns), node)

    async def written(self) -> None:
        """Wait until nothing is pending."""
        await holds(lambda: not self.completer.statistics().pending)

    async def ended(self, job: Claimed, ending: Any, **facts: Any) -> None:
        """End *job* so, and wait until that is written."""
        self.completer.put(Ended(job, ending, **facts))
        await self.written()

    def told(self, name: str) -> list[dict[str, Any]]:
        """Facts of the signals of that name."""
        return [one.facts for one in self.notices if one.name == name]


async def holds(what: Callable[[], Any], timeout: float = 30.0) -> Any:
    """See ``tally.holds``; with more patience."""
    from tally import holds as patient

    return await patient(what, timeout)


@asynccontextmanager
async def desk(url: str, *, start: bool = True, **settings: Any) -> AsyncIterator[Desk]:
    """The parts on the database at *url*; with *start* the completer writes."""
    chosen = Settings(database_url=url, **settings)
    signals = Signals()
    pools = Pools.to(url, chosen, signals=signals)
    await pools.open()
    listener, notifier = Listener(pools.control_url, chosen), Notifier(pools.control, chosen)
    wiring = JobWiring(
        pools=pools,
        settings=chosen,
        signals=signals,
        listener=listener,
        notifier=notifier,
        kinds=Kinds(None, chosen),
        begin=lambda session: (session, lambda: None),
    )
    woken: list[str] = []
    completer = Completer(wiring, on_available=woken.extend)
    control = Control(pools.control, notifier, signals, on_available=woken.extend)
    results = Results(pools.control, listener, wiring.kinds, control)
    made = Desk(wiring, completer, control, results, woken=woken)
    signals.listen(made.notices.append)
    listener.start()
    notifier.start()
    if start:
        completer.start()
    try:
        yield made
    finally:
        await completer.stop(2.0)
        await results.stop()
        await notifier.stop()
        await listener.stop()
        await pools.close()
