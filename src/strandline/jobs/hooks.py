"""Functions of the user that hear what becomes of jobs: ``app.on_job("failed", function)``."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from strandline.errors import InvalidDefinition
from strandline.telemetry.journal import Journal
from strandline.telemetry.signals import Notice, Signals

log = Journal("strandline.jobs")

Happening = Literal[
    "started", "completed", "failed", "dead", "snoozed", "cancelled", "interrupted", "stuck"
]

MOST_WAITING = 1_000  # asynchronous hooks at once; what comes then is not heard
LIMIT = 30.0  # seconds one of them may take


@dataclass(frozen=True, slots=True)
class JobEvent:
    """What a hook is told.

    Attributes:
        happened: ``started``; ``completed``: the function has returned; ``failed``: and is tried
            again; ``dead``: and is not; ``snoozed``; ``cancelled``; ``interrupted``: its node stops;
            ``stuck``: it was cancelled and runs on.
        job: Its id.
        attempt: From 1.
        seconds: That the function took.
        error: What it raised.
        delay: Seconds until the next attempt.
        reason: Why it was cancelled or snoozed.
    """

    happened: Happening
    job: int
    kind: str
    queue: str
    attempt: int
    seconds: float = 0.0
    error: BaseException | None = None
    delay: float | None = None
    reason: str = ""


Hook: TypeAlias = Callable[[JobEvent], Any]


class Hooks:
    """Who listens to what.

    Attributes:
        each: Somebody hears of every job that starts or completes, so that all are watched.
    """

    def __init__(self, signals: Signals) -> None:
        self.each = False
        self._signals = signals
        self._hooks: dict[str, tuple[Hook, ...]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._end: Callable[[], None] | None = None

    def on(self, happened: Happening, hook: Hook) -> Callable[[], None]:
        """Call *hook* from now on; the answer ends that.

        Raises:
            InvalidDefinition: Nothing of that name happens to jobs.
        """
        if happened not in get_args(Happening):
            raise InvalidDefinition(
                f"nothing called {happened!r} happens to jobs: choose one of"
                f" {', '.join(get_args(Happening))}"
            )
        if not callable(hook):
            raise InvalidDefinition(f"a hook must be a function, not {hook!r}")
        self._hooks[happened] = (*self._hooks.get(happened, ()), hook)
        self._changed()

        def end() -> None:
            left = list(self._hooks.get(happened, ()))
            if hook in left:
                left.remove(hook)
            self._hooks[happened] = tuple(left)
            self._changed()

        return end

    def tell(self, event: JobEvent) -> None:
        """Tell those who listen. Nothing that they do comes back here."""
        for hook in self._hooks.get(event.happened, ()):
            try:
                answer = hook(event)
                if inspect.iscoroutine(answer):
                    self._later(hook, answer)
            except Exception as error:  # the job is not to blame
                log.tell("job_hook_failed", hook=hook, state=event.happened, trace=error)

    async def settle(self, *, timeout: float = 5.0) -> None:
        """Let those under way end, and cancel what has not within *timeout* seconds."""
        if not self._tasks:
            return
        _, late = await asyncio.wait(set(self._tasks), timeout=timeout)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=1.0)

    def _changed(self) -> None:
        """Listen to the signals of jobs only while somebody listens here."""
        self.each = bool(self._hooks.get("started") or self._hooks.get("completed"))
        wanted = any(self._hooks.values())
        if wanted and self._end is None:
            self._end = self._signals.listen(self._hear)
        elif not wanted and self._end is not None:
            self._end()
            self._end = None

    def _hear(self, notice: Notice) -> None:
        of, _, name = notice.name.partition("_")
        if of == "job" and self._hooks.get(name):
            facts = notice.facts
            self.tell(
                JobEvent(
                    name,  # type: ignore[arg-type]  # only happenings have hooks
                    job=facts.get("id", 0),
                    kind=facts.get("kind", ""),
                    queue=facts.get("queue", ""),
                    attempt=facts.get("attempt", 0),
                    seconds=facts.get("seconds", 0.0),
                    error=facts.get("error"),
                    delay=facts.get("delay"),
                    reason=facts.get("reason", ""),
                )
            )

    def _later(self, hook: Hook, running: Coroutine[Any, Any, Any]) -> None:
        if len(self._tasks) >= MOST_WAITING:
            running.close()
            log.tell("job_hook_left_out", count=MOST_WAITING, hook=hook)
            return
        task = asyncio.get_running_loop().create_task(_heard(hook, running))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _heard(hook: Hook, running: Coroutine[Any, Any, Any]) -> None:
    try:
        async with asyncio.timeout(LIMIT):
            await running
    except Exception as error:  # the job is not to blame
        log.tell("async_job_hook_failed", hook=hook, trace=error)
