"""A while in which nobody in the cluster runs some work, and which ends by itself if we die.

The work is paused for ``LASTS`` seconds and that is renewed. Only one may hold work at rest; a
second waits for its turn. What an operator has paused is at rest anyway, and stays paused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

from strandline.cluster.membership import channel
from strandline.cluster.work_control import end_rest, list_work, rest
from strandline.errors import AnswerTimedOut, Unavailable
from strandline.loops import Loop, Rhythm
from strandline.postgres.pools import Pool
from strandline.settings import Settings
from strandline.telemetry.journal import Journal

log = Journal("strandline.cluster")

LASTS = 20.0  # seconds a rest lasts without being renewed
LOOK = 0.05  # seconds between looks whether all of it was given up
GONE = ("left", "dead")


@asynccontextmanager
async def resting(pool: Pool, names: Sequence[str], settings: Settings) -> AsyncIterator[None]:
    """Nobody runs *names* inside the block.

    Raises:
        AnswerTimedOut: A node did not give one up within ``revoke_timeout`` seconds, or somebody
            else has kept one at rest for so long.
    """
    token, notices = uuid4(), channel(settings.schema)

    async def renew() -> None:
        await pool.run(rest(names, token, LASTS, channel=notices))

    renewing = Loop("rest", renew, Rhythm(LASTS / 5, limit=LASTS / 5))
    renewing.start()
    try:
        await _given_up(pool, set(names), token, settings.revoke_timeout, notices)
        yield
    finally:
        await renewing.stop()
        try:
            await pool.run(end_rest(token, channel=notices))
        except Unavailable as error:
            log.tell("rest_not_ended", seconds=LASTS, error=error)


async def _given_up(
    pool: Pool, wanted: set[str], token: UUID, timeout: float, notices: str
) -> None:
    deadline = time.monotonic() + timeout
    while True:
        await pool.run(rest(sorted(wanted), token, LASTS, channel=notices))
        rows = [row for row in await pool.run(list_work()) if row.name in wanted]
        others = [row for row in rows if row.rests_for not in (None, token)]
        owned = [row for row in rows if row.owner is not None and row.owner_state not in GONE]
        if not owned and not others:
            return
        if time.monotonic() > deadline:
            who = [f"{row.name} is run by {row.owner_name} ({row.owner_state})" for row in owned]
            who += [f"{row.name} is at rest for somebody else" for row in others]
            raise AnswerTimedOut(f"not at rest after {timeout} s: {', '.join(who)}")
        await asyncio.sleep(LOOK)
