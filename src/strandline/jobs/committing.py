"""A transaction whose outcome is found out, also if its COMMIT got no answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from strandline.errors import DatabaseUnavailable, OutcomeUnknown, Unavailable
from strandline.jobs.enqueue import transaction_number, transaction_status
from strandline.postgres.operations import AsyncpgSession
from strandline.postgres.pools import Pool

T = TypeVar("T")

ASKED_FOR = 15.0  # seconds: a server that restarts is back by then, mostly
BETWEEN = 0.1  # seconds between two questions


async def committed(
    pool: Pool, work: Callable[[AsyncpgSession], Awaitable[T]], *, watched: bool = True
) -> T:
    """Run *work* in a transaction of its own and commit it.

    Raises:
        OutcomeUnknown: The COMMIT got no answer, and neither did the question what became of it.
        DatabaseUnavailable: It was rolled back: nothing was written.
    """
    number = ""
    try:
        async with pool.transaction(watched=watched) as session:
            done = await work(session)
            number = await session.run(transaction_number())
    except OutcomeUnknown as error:
        if not number or not await _was_committed(pool, number, error):
            raise
    return done


async def _was_committed(pool: Pool, number: str, error: OutcomeUnknown) -> bool:
    """Whether the transaction was committed; False if that cannot be found out.

    Raises:
        DatabaseUnavailable: It was not.
    """
    end = asyncio.get_running_loop().time() + ASKED_FOR
    while asyncio.get_running_loop().time() < end:
        try:
            status = await pool.run(transaction_status(number))
        except Unavailable:
            status = ""
        if status == "committed":
            return True
        if status == "aborted":
            raise DatabaseUnavailable(
                f"the connection broke and the transaction was rolled back: {error}"
            ) from error
        await asyncio.sleep(BETWEEN)
    return False
