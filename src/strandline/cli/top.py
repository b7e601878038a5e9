"""`strandline top`: the whole database at a glance, again and again."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from strandline.cli.command import Options, command, group

if TYPE_CHECKING:
    from strandline.cli.connect import Database
    from strandline.cli.keys import Keyboard
    from strandline.cli.surveying import Picture
    from strandline.cli.top_panes import Scene
    from strandline.cli.top_view import View
    from strandline.survey.facts import Survey
    from strandline.survey.finding import Finding

commands = group("Top.")

FIELDS = ("taken_at", "mode", "findings", "survey")
BLINK = 0.2  # seconds between drawings while there is no answer


class Sort(StrEnum):
    """Orders of shards."""

    LAG = "lag"
    STATE = "state"
    RATE = "rate"
    NAME = "name"


@command(commands, "top", app="argument", json=FIELDS)
async def top(
    options: Options,
    *,
    interval: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Between two looks.")
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Write one picture and end.")] = False,
    sort: Annotated[Sort, typer.Option(help="Of shards.")] = Sort.LAG,
) -> None:
    """Show leader, mark, rates, what needs attention, shards by lag, nodes and queues, all the time.

    Keys: q quits, p pauses, s sorts, 1 to 4 show one part alone, arrows scroll. Only the database is
    needed; with MODULE:APP also what no node has ever run is told. Where no terminal is, and with
    --json, one picture is written.
    """
    from strandline.cli import keys, output
    from strandline.cli.connect import database
    from strandline.cli.surveying import look
    from strandline.cli.top_view import View

    async with database(options) as db:
        watch = Watch(db, options.app or "", interval, View(sort=sort.value))
        if options.json:
            output.write_json(as_json(*watch.judged(await look(db))))
        elif once or not keys.are_there() or output.console().is_dumb_terminal:
            watch.seen(await look(db))
            output.emit(watch.drawn())
        else:
            await watch.shown()


def as_json(survey: Survey, found: list[Finding]) -> dict[str, Any]:
    """A picture as ``--json`` writes it."""
    from strandline.cli.surveying import fields_of

    told = [fields_of(one) for one in found]
    return {"taken_at": survey.taken_at, "mode": survey.mode, "findings": told, "survey": survey}


class Watch:
    """Takes pictures and draws them until it is told to end."""

    def __init__(self, db: Database, app: str, interval: float, view: View) -> None:
        from strandline.cli.config import hidden
        from strandline.cli.top_view import Rates
        from strandline.survey.case import APP

        self._db = db
        self._app = app or APP
        self._place = hidden(db.url).partition("?")[0]
        self._interval = interval
        self._view = view
        self._rates = Rates()
        self._survey: Survey | None = None
        self._anchors: list[Survey] = []  # earlier ones, by which something grows or stands still
        self._troubles: list[Finding] = []
        self._silent_since: float | None = None
        self._error = ""
        self._changed = asyncio.Event()

    def judged(self, picture: Picture) -> tuple[Survey, list[Finding]]:
        """A picture, and what it says."""
        before = self._anchors[0] if self._anchors else None
        return picture.survey, picture.judged(app=self._app, before=before)

    def seen(self, picture: Picture) -> None:
        """Take in the newest picture."""
        from strandline.survey.finding import troubles

        survey, found = self.judged(picture)
        self._survey, self._troubles = survey, troubles(found)
        self._rates.add(survey)
        newest = self._anchors[-1] if self._anchors else None
        still = picture.limits.still
        if newest is None or (survey.taken_at - newest.taken_at).total_seconds() >= still:
            self._anchors = [*self._anchors[-1:], survey]
        self._silent_since, self._error = None, ""

    def missed(self, error: Exception) -> None:
        """Note that there was no answer."""
        if self._silent_since is None:
            self._silent_since = time.monotonic()
        self._error = " ".join(str(error).split())

    def drawn(self, *, lines: int | None = None) -> Any:
        """The last picture, drawn."""
        from strandline.cli.top_panes import ALL, drawn

        return drawn(self._scene(), self._view, lines=ALL if lines is None else lines)

    def _scene(self) -> Scene:
        from strandline.cli import output
        from strandline.cli.top_panes import Scene

        outage = ""
        if self._silent_since is not None:
            since = output.duration(time.monotonic() - self._silent_since)
            outage = f"for {since}: {self._error}"
        return Scene(
            self._place,
            self._survey,
            self._troubles,
            self._rates.events,
            self._rates.jobs,
            outage,
            self._interval,
        )

    # ---- on a terminal

    async def shown(self) -> None:
        """Look and draw until `q` is pressed or a signal comes; an outage is waited out.

        Raises:
            Unavailable: There was no answer to the first look.
        """
        from rich.live import Live

        from strandline.cli import keys, output
        from strandline.cli.surveying import look

        self.seen(await look(self._db))
        keyboard = keys.Keyboard(self._pressed)
        console = output.console()
        live = Live(console=console, screen=True, auto_refresh=False, redirect_stderr=False)
        with _signals(self._changed.set, self._quit, lambda: self._aside(live, keyboard)):
            try:
                keyboard.take()
                live.start()
                await self._go_on(live)
            finally:
                live.stop()
                keyboard.leave()

    async def _go_on(self, live: Any) -> None:
        looking: asyncio.Task[None] | None = None
        due = time.monotonic() + self._interval
        try:
            while not self._view.is_over:
                self._changed.clear()
                live.update(self.drawn(lines=live.console.size.height), refresh=True)
                if looking is not None and looking.done():
                    looking.result()  # an error that is no outage ends it
                    looking = None
                now = time.monotonic()
                if looking is None and now >= due and not self._view.is_paused:
                    looking = asyncio.create_task(self._look(), name="strandline:top")
                    due = now + self._interval
                left = max(0.0, due - now) if looking is None else self._interval
                if self._view.is_paused:
                    left = self._interval
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(BLINK if self._error else 0.0, left)):
                        await self._changed.wait()
        finally:
            if looking is not None:
                looking.cancel()
                await asyncio.wait({looking})

    async def _look(self) -> None:
        from strandline.cli.surveying import look
        from strandline.errors import StrandlineError

        try:
            self.seen(await look(self._db))
        except (StrandlineError, OSError) as error:
            self.missed(error)
        finally:
            self._changed.set()

    def _aside(self, live: Any, keyboard: Keyboard) -> None:
        """Ctrl-Z: the terminal is the shell's until it is told to go on."""
        live.stop()
        keyboard.leave()
        loop = asyncio.get_running_loop()
        loop.remove_signal_handler(signal.SIGTSTP)
        os.kill(os.getpid(), signal.SIGTSTP)  # where no shell waits, it does nothing
        loop.add_signal_handler(signal.SIGTSTP, lambda: self._aside(live, keyboard))
        keyboard.take()
        live.start()
        self._changed.set()

    def _pressed(self, key: str) -> None:
        before, self._view = self._view, self._view.pressed(key)
        if self._view != before:
            self._changed.set()

    def _quit(self) -> None:
        self._pressed("q")


@contextmanager
def _signals(
    resized: Callable[[], None], end: Callable[[], None], aside: Callable[[], None]
) -> Iterator[None]:
    """A window of another size is drawn at once; who ends or stops the process has a clean terminal."""
    loop = asyncio.get_running_loop()
    taken = {
        signal.SIGWINCH: resized,
        signal.SIGTSTP: aside,
        signal.SIGTERM: end,
        signal.SIGHUP: end,
        signal.SIGINT: end,
    }
    for number, call in taken.items():
        loop.add_signal_handler(number, call)
    try:
        yield
    finally:
        for number in taken:
            loop.remove_signal_handler(number)
