"""What the engine asks of its neighbours: each is somebody else's module, met by these protocols alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from strandline.jobs.attempt import Runnable
from strandline.jobs.row import Claimed, Ended
from strandline.postgres.operations import Op

__all__ = ["Completer", "Kinds", "Limits", "LocalWakes", "QueueSettings", "Queues", "Runnable"]


class Kinds(Protocol):
    """The kinds of jobs that this process can run."""

    @property
    def names(self) -> Iterable[str]:
        """Those that can be fetched, old names included."""
        ...

    @property
    def queues(self) -> Iterable[str]:
        """Where calls of them wait unless they say otherwise."""
        ...

    def runnable(self, kind: str) -> Runnable:
        """The compiled job of that kind.

        Raises:
            UnknownJob: There is none.
        """
        ...


class Completer(Protocol):
    """Where attempts go when they have ended."""

    def done(self, job: Claimed, result: str | None) -> None:
        """*job* has completed."""
        ...

    def put(self, ended: Ended) -> None:
        """An attempt has ended in another way."""
        ...

    async def room(self) -> None:
        """Wait until it is not too far behind."""
        ...

    def held(self) -> set[tuple[int, int]]:
        """Jobs of which it is not written yet how they ended, each with its claim."""
        ...


class QueueSettings(Protocol):
    """What is said about one queue.

    Attributes:
        concurrency: Jobs of it at once on one node; None: nobody said.
        is_paused: Nothing is fetched from it.
        is_limited: Claims go by ``limits.claim``: at_most, per_key, or a rate.
    """

    @property
    def concurrency(self) -> int | None:
        """See the class."""
        ...

    @property
    def is_paused(self) -> bool:
        """See the class."""
        ...

    @property
    def is_limited(self) -> bool:
        """See the class."""
        ...


class Queues(Protocol):
    """The settings of all queues, as this node knows them."""

    def settings_of(self, queue: str) -> QueueSettings:
        """What is said about *queue*; defaults if nothing is."""
        ...

    def on_changed(self, call: Callable[[], None]) -> Callable[[], None]:
        """Call *call* whenever something else is said. The answer ends that."""
        ...


class LocalWakes(Protocol):
    """Tells this process's workers of what this process enqueued, without any notice."""

    def on(self, wake: Callable[[str], None]) -> Callable[[], None]:
        """Call *wake* with the queue (``""``: all) after each commit. The answer ends that."""
        ...


class Limits(Protocol):
    """Claims from queues with limits, for one node."""

    def claim(
        self, queue: str, kinds: Sequence[str], limit: int, claim: int
    ) -> Op[list[Claimed] | None]:
        """As ``fetch.claim``; None: somebody else looks at the limits right now, try again soon."""
        ...

    def pause_of(self, queue: str) -> float | None:
        """Seconds until the rate of *queue* lets another job go; None: that is not what it waits for."""
        ...
