"""Processor time of the server, of a process with its children, and of the whole machine, from /proc."""

from __future__ import annotations

import os
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
PROC = Path("/proc")


def of_tree(root: int) -> float:
    """Seconds that process *root* and everything below it has used, ended children included."""
    parents, used = _processes()
    below = {root}
    while grown := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= grown
    return sum(used.get(pid, 0) for pid in below) / TICK


def of_machine() -> float:
    """Seconds that all cores have been busy; 0 where /proc does not tell."""
    try:
        ticks = [int(word) for word in (PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return 0.0
    return (sum(ticks) - ticks[3] - ticks[4]) / TICK


def of_this() -> float:
    """Seconds of this process and of its ended children."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def find_postmaster(backend: int) -> int | None:
    """The process above the *backend*; None if the server is on another machine or hidden."""
    try:
        if (PROC / str(backend) / "comm").read_text().strip() != "postgres":
            return None
        return _stat(backend)[0]
    except OSError:
        return None


def _processes() -> tuple[dict[int, int], dict[int, int]]:
    """Parents, and ticks used, of all processes."""
    parents, used = {}, {}
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)], used[int(folder.name)] = _stat(int(folder.name))
            except OSError:
                continue  # it has ended
    return parents, used


def _stat(pid: int) -> tuple[int, int]:
    """The parent of a process, and the ticks that it and its ended children have used."""
    words = (PROC / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
    return int(words[1]), sum(int(word) for word in words[11:15])
