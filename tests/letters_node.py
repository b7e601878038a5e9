"""A node whose projection fails on the numbers in a file; slow enough to be killed in between.

python letters_node.py DATABASE_URL POISON_FILE
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from tally import Dropped, Seen, Ticked

from strandline.app import App
from strandline.daemon import replay
from strandline.projections.handlers import apply, delete
from strandline.projections.single_stream import SingleStream

POISON = Path(sys.argv[2]) if __name__ == "__main__" else None
NUMBERS: set[str] = set()  # in processes that are not given a file
SLOW = 0.001  # seconds an event takes


class Fragile(SingleStream[Seen]):
    """Of each stream the numbers applied, in order."""

    @apply
    def ticked(self, seen: Seen, event: Ticked) -> None:
        time.sleep(SLOW)
        poison = NUMBERS if POISON is None else POISON.read_text().split()
        if str(event.number) in poison:
            raise ValueError(f"number {event.number}")
        seen.versions.append(event.number)

    @delete
    def dropped(self, event: Dropped) -> None: ...


def letters_app(url: str | None) -> App:
    app = App("letters", url, mode="solo", failure_pause=0.1, page_events=40)
    app.event("ticked")(Ticked)
    app.event("dropped")(Dropped)
    app.projection("fragile", lifecycle="async")(Fragile)
    return app


async def main() -> None:
    replay.PAGE = 7
    async with letters_app(sys.argv[1]) as app:
        await app.start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
