"""What commands write: tables for people, JSON for programs, progress for the patient."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from strandline.clock import in_words

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
PIPED_WIDTH = 240  # columns when nobody looks: nothing is folded
GAP = 2  # blanks between columns
LEAST = 10  # columns that a folded column should have at least
RIGHT = ">"  # a column header that begins so is set flush right
PATIENCE = 5.0  # seconds between lines of progress where no bar can be drawn


@cache
def _console(name: str) -> Console:
    from rich.console import Console

    width = None if _has_width(name) else PIPED_WIDTH
    return Console(file=getattr(sys, name), width=width, highlight=False)


def _has_width(name: str) -> bool:
    return getattr(sys, name).isatty() or "COLUMNS" in os.environ


def console() -> Console:
    """Rich's console on stdout as it is now (tests replace it)."""
    if _console("stdout").file is not sys.stdout or _console("stderr").file is not sys.stderr:
        _console.cache_clear()
    return _console("stdout")


def write_json(value: Any) -> None:
    """Write *value* as indented JSON."""
    import msgspec

    print(msgspec.json.format(encoded(value), indent=2).decode())


def write_json_line(value: Any) -> None:
    """Write *value* as one line of JSON, at once."""
    print(encoded(value).decode(), flush=True)


def encoded(value: Any) -> bytes:
    """*value* as JSON."""
    import msgspec

    return msgspec.json.encode(value)


def raw(text: str | None) -> Any:
    """JSON text to be written inside other JSON as it is; other text, as text."""
    import msgspec

    if not text:
        return None
    try:
        return msgspec.json.decode(text, type=msgspec.Raw)
    except msgspec.DecodeError:  # a column of text, which anybody may have written
        return text


def plain(value: object) -> str:
    """*value* as text that cannot move the cursor or turn the line around."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", str(value))


def table(
    headers: Sequence[str], rows: Iterable[Sequence[object]], *, gives: str = "", cut: bool = False
) -> None:
    """Write a table.

    Args:
        headers: One that begins with ``>`` is set flush right.
        rows: Cells are texts, styled texts, or None for nothing.
        gives: The column that is folded where the terminal is narrow; the last when empty.
        cut: It is cut instead.

    Where even that is too wide, every row becomes a block of lines.
    """
    from rich.table import Table

    cells = [[cell(value) for value in row] for row in rows]
    names = [header.removeprefix(RIGHT) for header in headers]
    giving = names.index(gives) if gives else len(names) - 1
    widths = [
        max([len(name), *(row[place].cell_len for row in cells)]) + GAP
        for place, name in enumerate(names)
    ]
    room = console().width - (sum(widths) - widths[giving])  # else the others would give way
    if room < LEAST and cells:
        _blocks(names, cells)
        return
    made = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for place, header in enumerate(headers):
        made.add_column(
            names[place],
            justify="right" if header.startswith(RIGHT) else "left",
            no_wrap=cut or place != giving,
            max_width=max(LEAST, room - GAP) if place == giving else None,
            overflow="ellipsis" if cut and place == giving else "fold",
        )
    for row in cells:
        made.add_row(*row)
    emit(made)


def _blocks(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    from rich.text import Text

    for row in rows:
        for name, cell in zip(names, row, strict=True):
            if cell.cell_len:
                cell.overflow = "fold"
                emit(Text.assemble((f"{name}: ", "bold"), cell))
        emit(Text())


def emit(renderable: Any) -> None:
    """Write something of Rich's; without blanks at the ends of lines where nobody looks."""
    shown = console()
    if shown.is_terminal:
        shown.print(renderable)
        return
    with shown.capture() as captured:
        shown.print(renderable)
    for line in captured.get().splitlines():
        print(line.rstrip())


def say(text: str = "", style: str | None = None) -> None:
    """Write a line for people; long ones are folded at words."""
    console().print(text, style=style, markup=False, soft_wrap=not _has_width("stdout"))


def styled(text: str, style: str) -> Text:
    """A cell in colour."""
    from rich.text import Text

    return Text(plain(text), style=style)


def cell(value: object) -> Text:
    """A cell of a table: styled text as it is, all else as plain text."""
    from rich.text import Text

    if isinstance(value, Text):
        return value
    return Text("" if value is None else plain(value))


# ---- numbers and times


def moment(at: datetime | None) -> str:
    """A time in UTC to the second."""
    if at is None:
        return ""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def duration(seconds: float | None) -> str:
    """A length of time in two units at the most; nothing for None."""
    return "" if seconds is None else in_words(seconds)


def short(seconds: float | None) -> str:
    """A length of time for a table: ``0.3s``, ``4m10s``, ``2d3h``."""
    return duration(seconds).replace(" min", "m").replace(" ", "")


def number(value: float | None) -> str:
    """A number with thousands set apart; nothing for None."""
    return "" if value is None else f"{value:,.0f}"


# ---- progress


@dataclass(slots=True)
class Bar:
    """Tells how far a long command is."""

    total: int
    done: int = 0
    move: Any = None

    def at(self, done: int) -> None:
        """So much is done now."""
        self.done = done
        self.move(self)


@contextmanager
def progress(what: str, total: int) -> Iterator[Bar]:
    """A bar on stderr with rate and time left; lines every few seconds where it is no terminal."""
    bar = Bar(total)
    if not sys.stderr.isatty():
        bar.move = _lines(what)
        yield bar
        return
    from rich import progress as bars

    columns = (
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(bar_width=None),
        bars.TaskProgressColumn(),
        bars.TextColumn("{task.fields[rate]}"),
        bars.TimeRemainingColumn(compact=True),
    )
    console()  # forgets streams that have been replaced
    begun = time.monotonic()
    with bars.Progress(*columns, console=_console("stderr"), transient=True) as shown:
        task = shown.add_task(what, total=total or None, rate="")

        def move(now: Bar) -> None:
            rate = now.done / max(time.monotonic() - begun, 0.001)
            shown.update(task, completed=now.done, total=now.total or None, rate=f"{rate:,.0f}/s")

        bar.move = move
        yield bar


def _lines(what: str) -> Any:
    begun = told = time.monotonic()

    def move(now: Bar) -> None:
        nonlocal told
        if time.monotonic() - told < PATIENCE:
            return
        told = time.monotonic()
        rate = now.done / (told - begun)
        left = duration((now.total - now.done) / rate) if rate else "?"
        print(
            f"{what}: {now.done:,} of {now.total:,} ({rate:,.0f}/s, {left} left)",
            file=sys.stderr,
            flush=True,
        )

    return move


def fields_of(row: Any, names: Iterable[str], **more: Any) -> dict[str, Any]:
    """The attributes *names* of *row* as a dict, with *more*."""
    found: Mapping[str, Any] = {name: getattr(row, name) for name in names}
    return {**found, **more}
