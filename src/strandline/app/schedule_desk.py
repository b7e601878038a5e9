"""``app.schedules``: the schedules of a database."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from strandline.errors import InvalidInput
from strandline.jobs import cron, enqueue, order, waking
from strandline.jobs.cron import ScheduleRow
from strandline.jobs.ids import Ids
from strandline.jobs.templates import made

if TYPE_CHECKING:
    from strandline.postgres.pools import Pool, Pools
    from strandline.settings import Settings

MOST_MOMENTS = 1_000  # asked for at once


class ScheduleFace:
    """Schedules of an app."""

    if TYPE_CHECKING:
        settings: Settings

        @property
        def pools(self) -> Pools: ...

    @property
    def schedules(self) -> Schedules:
        """What is enqueued again and again: look, pause, run out of turn."""
        return Schedules(self.pools.work, self.settings)


class Schedules:
    """The schedules of one database. Fired by the node that leads.

    Args:
        pool: Of the database.
        settings: Of the app, or of whoever asks.
    """

    def __init__(self, pool: Pool, settings: Settings) -> None:
        self._pool = pool
        self._settings = settings
        self._ids = Ids()

    async def list(self) -> list[ScheduleRow]:
        """All of them, by name."""
        return await self._pool.run(cron.list_schedules())

    async def get(self, name: str, /) -> ScheduleRow:
        """One of them.

        Raises:
            NotFound: There is none of that name. So with all that follow.
        """
        return await self._pool.run(cron.find_schedule(name))

    async def next(self, name: str, /, count: int = 5) -> Sequence[datetime]:
        """The moments at which it will be due, in UTC.

        Raises:
            InvalidInput: *count* is not between 1 and 1,000.
        """
        if not 1 <= count <= MOST_MOMENTS:
            raise InvalidInput(f"count={count!r} is not between 1 and {MOST_MOMENTS:,}")
        return (await self.get(name)).next_moments(count)

    async def pause(self, name: str, /) -> ScheduleRow:
        """Let it rest until it is resumed."""
        return await self._pool.run(cron.pause(name))

    async def resume(self, name: str, /) -> ScheduleRow:
        """Let it go on from its next moment; what was missed meanwhile is not made up for."""
        return await self._pool.run(cron.resume(name))

    async def run(self, name: str, /) -> int:
        """Enqueue its job now, out of turn, also while it is paused.

        Returns:
            The job's id, or that of the one that has its unique key already.
        """
        (number,) = await self._pool.run(self._ids.draw(1))
        row = await self.get(name)
        async with self._pool.transaction() as session:
            enqueued = await session.run(cron.run_now(name, number, enqueue.insert))
        written = waking.Written()
        written.add([made(row.job, number, row.now)])
        freed = await self._pool.run(order.promote(written.keys))
        queues = written.queues | freed
        await self._pool.run(waking.notify(waking.channel(self._settings), queues))
        return enqueued

    async def forget(self, name: str, /) -> None:
        """Delete it. Code that declares it brings it back when it starts."""
        await self._pool.run(cron.forget(name))
