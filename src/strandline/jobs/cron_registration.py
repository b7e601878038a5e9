"""The declaring side of an app: schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from strandline.errors import InvalidDefinition
from strandline.jobs.cron import Schedule
from strandline.jobs.job import Call, Job
from strandline.jobs.kinds import Kinds
from strandline.jobs.moments import Missed

F = TypeVar("F", bound=Callable[..., Any])


class Schedules:
    """The schedules that an app declares, by name."""

    def __init__(self) -> None:
        self._declared: dict[str, Schedule] = {}
        self._waiting: list[tuple[Any, dict[str, Any]]] = []  # for their function to be a job

    def add(self, schedule: Schedule) -> None:
        """Declare *schedule*.

        Raises:
            InvalidDefinition: It cannot work, or its name is taken.
        """
        schedule.check()
        if schedule.name in self._declared:
            raise InvalidDefinition(
                f"schedule {schedule.name!r} is declared already: give it a name of its own"
            )
        self._declared[schedule.name] = schedule

    def of_function(self, function: Any, **options: Any) -> None:
        """Declare a schedule of *function*, which is to become a job."""
        self._waiting.append((function, options))

    def bind(self, kinds: Kinds) -> list[Schedule]:
        """All that are declared; their jobs are known by now.

        Raises:
            InvalidDefinition: A function was given ``@app.cron`` and is no job.
        """
        while self._waiting:
            function, options = self._waiting[0]
            job = next((one for one in kinds.jobs.values() if one.function is function), None)
            if job is None:
                raise InvalidDefinition(f"{function!r} has a schedule and is no job: add @app.job")
            self.add(_of_job(job, **options))
            self._waiting.pop(0)
        return list(self._declared.values())


class CronRegistration:
    """Decorators that declare schedules."""

    declared_schedules: Schedules

    def cron(
        self, spec: str, *, zone: str = "UTC", missed: Missed = "once", name: str | None = None
    ) -> Callable[[F], F]:
        """Enqueue the decorated job at the moments of *spec*: above or below ``@app.job``.

        Some node of the cluster fires it, whether that one's code has the job or not, and each
        moment once. If the function has an argument ``fire_time`` (a datetime) it is told the
        moment, in UTC.

        Args:
            spec: Five fields as in crontab, six with seconds first, or ``@hourly``, ``@daily``,
                ``@weekly``, ``@monthly``, ``@yearly``. Over changes of the clock, times of the day
                that are left out come right afterwards, and none comes twice.
            zone: Of the times in it, e.g. ``"Europe/Berlin"``.
            missed: About moments that came while no node was there: ``"skip"`` those more than a
                minute ago, ``"once"`` for all of them, or ``"all"``, one job each.
            name: Of the schedule; the job's kind when None.

        Raises:
            InvalidDefinition: The expression, zone or name cannot be used.
        """

        def register(function: F) -> F:
            options: dict[str, Any] = {"spec": spec, "zone": zone, "missed": missed, "name": name}
            if isinstance(function, Job):
                self.declared_schedules.add(_of_job(function, **options))
            else:
                self.declared_schedules.of_function(function, **options)
            return function

        return register

    def schedule(
        self,
        name: str,
        spec: str,
        call: Call[Any],
        *,
        zone: str = "UTC",
        missed: Missed = "once",
    ) -> None:
        """Enqueue *call* at the moments of *spec*; see ``cron``.

        It is written down when the app opens. A schedule that is no longer declared goes on, since
        another app may have it: ``app.schedules.forget(name)`` ends it.

        Raises:
            InvalidDefinition: The expression, zone or name cannot be used.
        """
        self.declared_schedules.add(Schedule(name, spec, call, zone, missed))


def _of_job(
    job: Job[..., Any], *, spec: str, zone: str, missed: Missed, name: str | None
) -> Schedule:
    return Schedule(name or job.kind, spec, job.call(), zone, missed)
