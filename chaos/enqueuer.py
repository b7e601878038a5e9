"""Enqueues all the while: ``python -m chaos.enqueuer NAME LINES PACE JOURNAL``, orders on standard input.

Jobs alone, two in one transaction, in bulk, in transactions that are rolled back, and in order by
a key. What became of each goes to JOURNAL, a line each: kind, token, and its fate (committed, unknown
or never). A job whose outcome is not known is enqueued again under the same unique key, or left as it is.

Orders: as for ``writer.py``; ``look`` does nothing here.
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path
from typing import Any, TextIO

import strandline as sl
from chaos.jobs import app, book, settle, step
from chaos.writer import Changed

LONGEST = 0.3  # seconds that a job takes
AGAIN = 0.05  # seconds until something is enqueued again
ONCE = 3600.0  # seconds for which a token is unique


class Enqueuer:
    """Some lines of jobs, each with an enqueue under way."""

    def __init__(self, name: str, lines: int, pace: float, journal: TextIO) -> None:
        self.names = [f"{name}-{number}" for number in range(1, lines + 1)]
        self.pace = pace
        self.journal = journal
        self.random = random.Random(name)
        self.may_go = asyncio.Event()
        self.under_way = 0

    async def enqueue(self, line: str) -> None:
        """Enqueue for ever."""
        number = 0
        ways = (self.alone, self.together, self.in_bulk, self.rolled_back, self.stepping)
        while True:
            await self.may_go.wait()
            self.under_way += 1
            number += 1
            try:
                await self.random.choice(ways)(line, number)
                self.journal.flush()
            finally:
                self.under_way -= 1
            await asyncio.sleep(self.pace * self.random.uniform(0.2, 1.8))

    def note(self, kind: str, token: str, fate: str) -> None:
        """Write down what became of one."""
        self.journal.write(f"{kind} {token} {fate}\n")

    def settling(self, token: str) -> sl.Call[None]:
        """One that takes its time."""
        seconds = round(self.random.random() ** 4 * LONGEST, 4)
        unique = sl.Unique(by=("token",), within=ONCE)
        return settle.call(token, seconds).with_(unique=unique)

    async def alone(self, line: str, number: int) -> None:
        """One job, until that is acknowledged."""
        token = f"{line}-{number}"
        await self.until_there(self.settling(token))
        self.note("settle", token, "committed")

    async def stepping(self, line: str, number: int) -> None:
        """The next of a key, until that is acknowledged."""
        unique = sl.Unique(by=("args",), within=ONCE)
        await self.until_there(step.call(line, number).with_(unique=unique))
        self.note("step", f"{line}#{number}", "committed")

    async def together(self, line: str, number: int) -> None:
        """Two jobs in one transaction, whose outcome may stay unknown."""
        tokens = [f"{line}-{number}-a", f"{line}-{number}-b"]
        fate = "committed"
        try:
            async with app.transaction() as tx:
                await tx.enqueue(book.call(tokens[0]))
                await tx.enqueue(self.settling(tokens[1]))
                await asyncio.sleep(self.random.uniform(0, 0.05))
        except sl.Unavailable as error:
            print(f"{tokens}: {error}", file=sys.stderr, flush=True)
            fate = "unknown"
        self.note("book", tokens[0], fate)
        self.note("settle", tokens[1], fate)

    async def in_bulk(self, line: str, number: int) -> None:
        """Several at once; whether they are there may stay unknown."""
        tokens = [f"{line}-{number}-{one}" for one in range(5)]
        fate = "committed"
        try:
            await app.enqueue_many(book.call(token) for token in tokens)
        except sl.Unavailable as error:
            print(f"{tokens}: {error}", file=sys.stderr, flush=True)
            fate = "unknown"
        for token in tokens:
            self.note("book", token, fate)

    async def rolled_back(self, line: str, number: int) -> None:
        """One that must never run."""
        token = f"{line}-{number}-never"
        try:
            async with app.transaction() as tx:
                await tx.enqueue(book.call(token))
                await asyncio.sleep(self.random.uniform(0, 0.05))
                raise Changed
        except (Changed, sl.Unavailable):
            self.note("book", token, "never")

    async def until_there(self, call: sl.Call[Any]) -> None:
        """Enqueue *call* until that is acknowledged."""
        while True:
            try:
                await app.enqueue(call)
            except sl.Unavailable as error:
                print(f"{call}: {error}", file=sys.stderr, flush=True)
                await asyncio.sleep(AGAIN)
            else:
                return


async def main(name: str, lines: int, pace: float, journal: Path) -> None:
    """Enqueue until standard input ends."""
    with journal.open("a") as file:
        enqueuer = Enqueuer(name, lines, pace, file)
        async with app, asyncio.TaskGroup() as group:
            tasks = [group.create_task(enqueuer.enqueue(line)) for line in enqueuer.names]
            orders = asyncio.StreamReader()
            await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(orders), sys.stdin
            )
            while order := (await orders.readline()).strip():
                if order == b"go":
                    enqueuer.may_go.set()
                elif order == b"look":
                    print("looked", flush=True)
                else:
                    enqueuer.may_go.clear()
                    while enqueuer.under_way:
                        await asyncio.sleep(0.01)
                    print("resting", flush=True)
            for task in tasks:
                task.cancel()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4])))
