"""Appends all the while: ``python -m chaos.writer NAME STREAMS PACE JOURNAL``, orders on standard input.

Every stream gets consecutive numbers, each with an event id of its own. A number whose outcome is not
known is tried again under the same id until it is acknowledged, so nothing may be missing and nothing
may be there twice. Acknowledged appends go to JOURNAL, a line each: stream, number, position.

Some appends are made in transactions that take their time, or that are rolled back: so positions become
visible in another order than they were drawn, and some never.

Orders: ``rest`` (answered by ``resting`` when nothing is under way), ``go``, and ``look`` while it rests
(answered by ``looked``): go on behind what is stored.
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path
from typing import TextIO
from uuid import UUID, uuid4

import strandline as sl
from chaos.bank import Deposited, Withdrawn, app

BRANCHES = 5
ROLLED_BACK = 0.04  # of all appends
SLOW = 0.04
LONGEST = 0.08  # seconds that a slow transaction stays open
AGAIN = 0.05  # seconds until an append is tried again


class Writer:
    """Some streams, each with an append under way."""

    def __init__(self, name: str, streams: int, pace: float, journal: TextIO) -> None:
        self.names = [f"{name}-{number}" for number in range(1, streams + 1)]
        self.pace = pace
        self.journal = journal
        self.random = random.Random(name)
        self.may_go = asyncio.Event()
        self.under_way = 0
        self.numbers = dict.fromkeys(self.names, 0)

    async def write(self, stream: str) -> None:
        """Append to *stream* for ever."""
        while True:
            await self.may_go.wait()
            self.under_way += 1
            try:
                if self.random.random() < ROLLED_BACK:
                    await self.roll_back(stream)
                number = self.numbers[stream] = self.numbers[stream] + 1
                position = await self.append(stream, number)
                self.journal.write(f"{stream} {number} {position}\n")
                self.journal.flush()
            finally:
                self.under_way -= 1
            await asyncio.sleep(self.pace * self.random.uniform(0.2, 1.8))

    async def look(self) -> None:
        """Go on behind what is stored: a fail-over may have lost what was acknowledged."""
        for stream in self.names:
            while True:
                try:
                    state = await app.stream_state(stream)
                    break
                except sl.Unavailable:
                    await asyncio.sleep(AGAIN)
            self.numbers[stream] = state.version if state else 0

    async def append(self, stream: str, number: int) -> int:
        """Append *number* until that is acknowledged; its position."""
        event = self.event(number)
        key = uuid4()
        is_slow = self.random.random() < SLOW
        while True:
            try:
                if is_slow:
                    return await self.append_slowly(stream, event, key)
                return (await app.append(stream, event, ids=[key])).position
            except sl.Unavailable as error:
                print(f"{stream} {number}: {error}", file=sys.stderr, flush=True)
                await asyncio.sleep(AGAIN)

    async def append_slowly(self, stream: str, event: Deposited | Withdrawn, key: UUID) -> int:
        """Append in a transaction that is not over with the append."""
        async with app.transaction() as tx:
            done = await tx.append(stream, event, ids=[key])
            await asyncio.sleep(self.random.uniform(0, LONGEST))
        return done.position

    async def roll_back(self, stream: str) -> None:
        """Draw a position that no event will ever have."""
        try:
            async with app.transaction() as tx:
                await tx.append(f"{stream}-never", self.event(1))
                await asyncio.sleep(self.random.uniform(0, LONGEST))
                raise Changed
        except (Changed, sl.Unavailable):
            return

    def event(self, number: int) -> Deposited | Withdrawn:
        """The event with *number*."""
        kind = Deposited if self.random.random() < 0.6 else Withdrawn
        branch = f"b{self.random.randrange(BRANCHES)}"
        return kind(number, self.random.randint(1, 1000), branch)


class Changed(Exception):
    """The writer has changed its mind."""


async def main(name: str, streams: int, pace: float, journal: Path) -> None:
    """Write until standard input ends."""
    with journal.open("a") as file:
        writer = Writer(name, streams, pace, file)
        async with app, asyncio.TaskGroup() as group:
            tasks = [group.create_task(writer.write(stream)) for stream in writer.names]
            orders = asyncio.StreamReader()
            await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(orders), sys.stdin
            )
            while order := (await orders.readline()).strip():
                if order == b"go":
                    writer.may_go.set()
                elif order == b"look":
                    await writer.look()
                    print("looked", flush=True)
                else:
                    writer.may_go.clear()
                    while writer.under_way:
                        await asyncio.sleep(0.01)
                    print("resting", flush=True)
            for task in tasks:
                task.cancel()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4])))
