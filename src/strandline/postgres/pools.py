"""Work and control pools: the mark, the cluster and the checks never queue behind work.

Both are asyncpg pools. ``work`` carries appends, reads and batches, through a pooler if there is
one; ``control`` carries the high-water mark, plans, checks and commands, past the pooler if there
is a way (``direct_url``). LISTEN has a connection of its own (``listener``), and so have the beats.
"""

from __future__ import annotations

from typing import Any

from strandline.postgres.entry_checks import check
from strandline.postgres.leak_watch import LeakWatch
from strandline.postgres.pool import FAILED_INSIDE, Pool
from strandline.postgres.pool_statistics import PoolStatistics
from strandline.settings import Settings
from strandline.telemetry.signals import Signals

__all__ = ["FAILED_INSIDE", "Pool", "PoolStatistics", "Pools"]


class Pools:
    """The pools of one app on one database, and the watch over their transactions.

    Attributes:
        work: For appends, reads and batches.
        control: For what must not wait for work.
        control_url: Where control, beats and LISTEN go: ``direct_url``, or the database's URL.
    """

    def __init__(
        self,
        work: Pool,
        control: Pool,
        settings: Settings,
        signals: Signals,
        *,
        jobs: bool = False,
    ) -> None:
        self.work = work
        self.control = control
        self.control_url = control.url
        self._settings = settings
        self._has_jobs = jobs
        self._watch = LeakWatch((work, control), control, settings, signals)

    @classmethod
    def to(
        cls,
        url: str,
        settings: Settings,
        *,
        signals: Signals | None = None,
        application: str = "",
        jobs: bool = False,
    ) -> Pools:
        """Pools for the database at *url*, not yet open.

        Args:
            url: The database, or the pooler before it.
            settings: Sizes, limits, ``direct_url``.
            signals: Is told of leaked transactions.
            application: Stands in ``application_name`` behind ``strandline work``.
            jobs: Whether the app has some, which need connections besides.
        """
        most, few = settings.work_connections, settings.control_connections
        direct = settings.direct_url or url
        return cls(
            Pool("work", url, most, settings, application=application),
            Pool("control", direct, few, settings, application=application),
            settings,
            signals or Signals(),
            jobs=jobs,
        )

    async def open(self) -> None:
        """Open both; neither stays open when one cannot be.

        Raises:
            DatabaseUnavailable: The server, or the pooler, cannot be reached.
            InvalidSetting: ``direct_url`` leads to another database, or ``pooler`` is not set and
                there is one that refuses us.
        """
        try:
            await self.control.open()
            await self.work.open()
            await check(self.work, self.control, self._settings, jobs=self._has_jobs)
        except BaseException:
            await self.close(timeout=1.0)
            raise
        self._watch.start()

    async def close(self, *, timeout: float = 5.0) -> None:
        """Close both."""
        await self._watch.stop()
        await self.work.close(timeout=timeout)
        await self.control.close(timeout=timeout)

    def joined(self, connection: Any) -> None:
        """Watch the transaction that the caller's own *connection* is in now."""
        self._watch.joined(connection)
