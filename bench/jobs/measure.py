"""The workloads: bulk and single inserts, drains by one and two processes, the time to the start of a job.

The job counts itself and adds its number up. Every measurement is checked: what was enqueued is in the
database, and what was drained has run once each, by the sum of the numbers.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import psycopg

from bench.harness import Measure, percentiles
from bench.jobs import cpu
from bench.jobs.processes import LIMIT, Failed, Place, Worker, workers

LOOK = 0.005  # seconds between two looks at the tallies, and then at the table
SETTLE = 2.5  # seconds of an idle worker before the first job of a latency
PATIENCE = 30.0  # seconds for the last jobs of a latency to begin
SINGLE = 8  # connections of a paced producer
PER = 10_000  # jobs that processor time is told for


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is done.

    Attributes:
        bulk: Jobs that are enqueued in bulk.
        alone: Jobs that one caller enqueues singly.
        together: Jobs that concurrent callers enqueue singly.
        drained: Jobs that wait when the workers begin.
        warm: Jobs of a bulk insert, or for each caller, before the clock starts.
        rate: Jobs a second, while the time to their start is measured.
        seconds: How long that goes on.
        dropped: The first of them that are not counted.
    """

    bulk: int
    alone: int
    together: int
    drained: int
    warm: int
    rate: int
    seconds: float
    dropped: int


FULL = Sizes(100_000, 5_000, 20_000, 100_000, warm=10, rate=100, seconds=21, dropped=100)
SHORT = Sizes(2_000, 100, 640, 2_000, warm=2, rate=100, seconds=0.6, dropped=10)

Found = list[Measure]


@dataclass(slots=True)
class Watch:
    """What was used between two moments: time, and processor time of whom.

    Attributes:
        seconds: Between them.
        server: Processor seconds of the server; None if it is elsewhere.
        workers: Processor seconds of the worker processes.
        foreign: Cores that anything else on the machine used.
    """

    seconds: float = 0.0
    server: float | None = None
    workers: float = 0.0
    foreign: float = 0.0


class Bench:
    """Measures one system in its database.

    Args:
        place: Where the system's tables are made.
        connection: To that database, with autocommit; it asks and cleans, outside the measurements.
    """

    def __init__(self, place: Place, connection: psycopg.Connection[Any]) -> None:
        self.place = place
        self.connection = connection
        self.foreign = 0.0
        self._postmaster = cpu.find_postmaster(connection.info.backend_pid)

    def empty(self) -> None:
        """No job, no old work of the server."""
        self.connection.execute(f"TRUNCATE {', '.join(self.place.system.tables)} CASCADE")
        self.settle()

    def settle(self) -> None:
        """The tables are vacuumed and analysed, and on disk."""
        self.connection.execute("VACUUM ANALYZE")
        self.connection.execute("CHECKPOINT")

    def bulk(self, sizes: Sizes) -> Found:
        """All jobs by the fastest way to enqueue many."""
        self.empty()
        return self._insert("bulk", jobs=sizes.bulk + sizes.warm, warm_up=sizes.warm)

    def single(self, writers: int, sizes: Sizes) -> Found:
        """Callers that enqueue one job at a time, and wait until it is committed."""
        self.empty()
        warm = sizes.warm * writers
        jobs = (sizes.alone if writers == 1 else sizes.together) // writers * writers
        return self._insert("insert", jobs=jobs + warm, warm_up=warm, writers=writers)

    def drain(self, number: int, sizes: Sizes) -> Found:
        """So many processes run what waits, from their start until nothing is unfinished."""
        jobs = int(sizes.drained * self.place.system.drained)
        self.empty()
        self.place.run("bulk", jobs=jobs)
        self.settle()
        return self.drained(number, jobs)

    def drained(
        self,
        number: int,
        jobs: int,
        *,
        unfinished: str = "",
        meanwhile: AbstractContextManager[Any] | None = None,
    ) -> Found:
        """Let workers run the *jobs* that wait.

        Args:
            number: Processes.
            jobs: Numbered from 0.
            unfinished: Which of them are, if it is not what the system says.
            meanwhile: What is so from before the start until after the end.
        """
        with workers(self.place, number) as started:
            with meanwhile or nullcontext(), self._watching(started) as watch:
                for worker in started:
                    worker.tell()
                self._wait_until_done(started, jobs, unfinished)
            self._check(started, jobs)
        found = [Measure("rate", jobs / watch.seconds, "jobs/s"), Measure("jobs", jobs, "jobs")]
        if watch.server is not None:
            found.append(Measure("server_cpu", watch.server / jobs * PER, "s/10k jobs"))
        return [*found, Measure("worker_cpu", watch.workers / jobs * PER, "s/10k jobs")]

    def start_latency(self, sizes: Sizes) -> Found:
        """From just before a job is enqueued until its body begins in an idle worker."""
        self.empty()
        jobs = int(sizes.rate * sizes.seconds)
        with workers(self.place, 1) as (worker,):
            worker.tell()
            time.sleep(SETTLE if sizes is FULL else 0.2)
            with self._watching([worker]):
                took = self.place.run("paced", jobs=jobs, rate=sizes.rate, writers=SINGLE)
                deadline = time.monotonic() + PATIENCE
                while worker.executed() < jobs and time.monotonic() < deadline:
                    time.sleep(LOOK)
            (tally,) = self._check([worker], jobs)
        offered = Measure("offered", jobs / took["seconds"], "jobs/s")
        return [offered, *percentiles(tally["latencies"][sizes.dropped :])]

    def _insert(self, command: str, **order: int) -> Found:
        with self._watching([]):
            took = self.place.run(command, **order)
        waiting = self._ask(f"SELECT count(*) {self.place.system.unfinished}")
        if waiting != order["jobs"]:
            raise Failed(f"{order['jobs']} jobs were enqueued, {waiting} are there")
        return [Measure("rate", took["jobs"] / took["seconds"], "jobs/s")]

    @contextlib.contextmanager
    def _watching(self, watched: Sequence[Worker]) -> Iterator[Watch]:
        def server() -> float | None:
            return cpu.of_tree(self._postmaster) if self._postmaster else None

        def theirs() -> float:
            return sum(worker.cpu() for worker in watched)

        watch = Watch()
        machine, own, before, used = cpu.of_machine(), cpu.of_this(), server(), theirs()
        began = time.perf_counter()
        yield watch
        watch.seconds = time.perf_counter() - began
        watch.workers = theirs() - used
        after = server()
        if after is not None and before is not None:
            watch.server = after - before
        others = cpu.of_machine() - machine - (cpu.of_this() - own)
        watch.foreign = (others - watch.workers - (watch.server or 0.0)) / watch.seconds
        self.foreign = max(self.foreign, watch.foreign)

    def _wait_until_done(self, started: Sequence[Worker], jobs: int, unfinished: str) -> None:
        left = f"SELECT EXISTS (SELECT {unfinished or self.place.system.unfinished})"
        deadline = time.monotonic() + LIMIT
        while sum(worker.executed() for worker in started) < jobs or self._ask(left):
            if time.monotonic() > deadline:
                raise Failed(f"{jobs} jobs were not drained within {LIMIT:.0f} s")
            time.sleep(LOOK)

    def _check(self, started: Sequence[Worker], jobs: int) -> list[dict[str, Any]]:
        tallies = [worker.stop() for worker in started]
        executed, total = (sum(one[name] for one in tallies) for name in ("executed", "total"))
        if (executed, total) != (jobs, jobs * (jobs - 1) // 2):
            raise Failed(f"{jobs} jobs waited, {executed} ran, and their numbers are not those")
        return tallies

    def _ask(self, sql: str) -> Any:
        row = self.connection.execute(sql).fetchone()
        return row[0] if row else None


WORKLOADS: dict[str, Callable[[Bench, Sizes], Found]] = {
    "bulk_insert": Bench.bulk,
    "insert_1": lambda bench, sizes: bench.single(1, sizes),
    "insert_16": lambda bench, sizes: bench.single(16, sizes),
    "insert_64": lambda bench, sizes: bench.single(64, sizes),
    "drain_1": lambda bench, sizes: bench.drain(1, sizes),
    "drain_2": lambda bench, sizes: bench.drain(2, sizes),
    "start_latency_p99": Bench.start_latency,
}
