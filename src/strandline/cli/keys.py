"""Keys of a terminal as they are pressed, without waiting for Enter."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from contextlib import suppress

ARROWS = {
    **dict.fromkeys((b"\x1b[A", b"\x1bOA"), "up"),
    **dict.fromkeys((b"\x1b[B", b"\x1bOB"), "down"),
    b"\x1b[5~": "page up",
    b"\x1b[6~": "page down",
}
QUIT = "q"
AT_ONCE = 1024  # bytes


def read(pressed: bytes) -> list[str]:
    """The keys that *pressed* stands for. Sequences nobody knows are left out."""
    found = []
    while pressed:
        known = next((one for one in ARROWS if pressed.startswith(one)), None)
        if known is not None:
            found.append(ARROWS[known])
            pressed = pressed[len(known) :]
        elif pressed[:1] == b"\x1b":  # one without a name here: to its final byte
            end = next((at for at in range(2, len(pressed)) if 0x40 <= pressed[at] <= 0x7E), None)
            pressed = b"" if end is None else pressed[end + 1 :]
        else:
            found.append(pressed[:1].decode("ascii", "replace"))
            pressed = pressed[1:]
    return found


def are_there() -> bool:
    """Whether keys can be read and a picture be drawn: both ends are a terminal."""
    try:
        import termios
    except ImportError:  # Windows
        return False
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    with suppress(termios.error):
        termios.tcgetattr(sys.stdin.fileno())
        return True
    return False


class Keyboard:
    """Tells of each key while it is taken; the terminal is as before when it is left.

    A terminal that is gone counts as the key that quits.

    Args:
        on_key: Is told.
    """

    def __init__(self, on_key: Callable[[str], None]) -> None:
        import termios

        self._on_key = on_key
        self._place = sys.stdin.fileno()
        self._before = termios.tcgetattr(self._place)

    def take(self) -> None:
        """Begin."""
        import tty

        tty.setcbreak(self._place)
        asyncio.get_running_loop().add_reader(self._place, self._hear)

    def leave(self) -> None:
        """End."""
        import termios

        asyncio.get_running_loop().remove_reader(self._place)
        with suppress(termios.error):
            termios.tcsetattr(self._place, termios.TCSADRAIN, self._before)

    def _hear(self) -> None:
        try:
            pressed = os.read(self._place, AT_ONCE)
        except OSError:
            pressed = b""
        if not pressed:
            asyncio.get_running_loop().remove_reader(self._place)
        for key in read(pressed) or ([] if pressed else [QUIT]):
            self._on_key(key)
