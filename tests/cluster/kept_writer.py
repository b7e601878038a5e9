"""Appends to every kind of projection until a file is there: ``kept_writer.py URL FILE WORDS``.

Words: ``inline`` or ``async``, ``sync`` for the blocking twin, ``node`` to run them too, ``shards=2``.
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

from kept import kept_app, kept_sync_app, some_event, some_payment, some_stream, write

URL, STOP, *WORDS = sys.argv[1:]
LIFECYCLE = "inline" if "inline" in WORDS else "async"
SHARDS = next((int(one.partition("=")[2]) for one in WORDS if one.startswith("shards=")), 1)
SEED = sum(map(ord, STOP))


def is_over() -> bool:
    return Path(STOP).exists()


async def run() -> None:
    async with kept_app(URL, LIFECYCLE, shards=SHARDS) as app:
        if "node" in WORDS:
            await app.start()
        print("writes", flush=True)
        done = await asyncio.gather(*(write(app, SEED + one, is_over) for one in range(2)))
        print("appended", sum(done), flush=True)


def run_blocking() -> None:
    chance, done = random.Random(SEED), 0
    with kept_sync_app(URL, LIFECYCLE) as app:
        print("writes", flush=True)
        while not is_over():
            with app.transaction() as tx:
                for stream in sorted({some_stream(chance) for _ in range(2)}):
                    tx.append(stream, [some_payment(chance), some_event(chance)])
            done += 1
        print("appended", done, flush=True)


if "sync" in WORDS:
    run_blocking()
else:
    asyncio.run(run())
