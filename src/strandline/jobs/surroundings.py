"""The declaring side of an app: what stands around jobs, and who hears of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from strandline.jobs.hooks import Happening, Hooks, JobEvent
from strandline.jobs.middleware import M, Middleware, checked

F = TypeVar("F", bound=Callable[[JobEvent], Any])


class JobSurroundings:
    """Middleware and hooks of an app."""

    job_hooks: Hooks
    job_middlewares: list[Middleware]

    def job_middleware(self, function: M) -> M:
        """Run the decorated function around every job: ``async def around(job, call_next)``.

        ``return await call_next(job)`` runs what is inside; what it raises passes through here, also
        ``sl.Snooze`` and ``sl.Cancel``, and what is answered or raised here counts. The first one
        declared is outermost. *job* is the ``sl.JobContext``. Declare them before the app is a node.

        Raises:
            InvalidDefinition: It is not ``async``, or does not take two arguments.
        """
        self.job_middlewares.append(checked(function))
        return function

    def on_job(self, happened: Happening, function: F) -> Callable[[], None]:
        """Call *function* with a ``JobEvent`` whenever that happens to a job on this node.

        It may be ``async``. What it raises is logged, and the job does not notice. Until somebody
        listens it costs nothing.

        Args:
            happened: ``started``, ``completed``, ``failed``, ``dead``, ``snoozed``, ``cancelled``,
                ``interrupted`` or ``stuck``.
            function: Takes the ``JobEvent``.

        Returns:
            What ends that.

        Raises:
            InvalidDefinition: Nothing of that name happens to jobs.
        """
        return self.job_hooks.on(happened, function)
