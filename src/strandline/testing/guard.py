"""Ends a process when the one that started it is gone, however that ended."""

from __future__ import annotations

import contextlib
import subprocess

# The shell waits for the end of its standard input, which only this process holds open.
_SCRIPT = 'cat >/dev/null; kill -"$2" "$1" 2>/dev/null'


class Guard:
    """A small shell that ends process *pid* by signal *name* if this process ends before."""

    def __init__(self, pid: int, name: str = "KILL") -> None:
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT, "guard", str(pid), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """The process has ended: its number may soon be another's."""
        self._shell.kill()
        with contextlib.suppress(OSError):
            if self._shell.stdin is not None:
                self._shell.stdin.close()
        self._shell.wait()
