"""A node: one process start, and the states it passes through.

*joining* → *active* ⇄ *stalled* → *draining* → *left*, and from any of the first four → *dead*.
*left* and *dead* are final; a process that goes on afterwards joins again under a new id.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID


class NodeState(StrEnum):
    """Where a node is in its life."""

    JOINING = "joining"  # beats, and takes no work yet
    ACTIVE = "active"  # takes work
    STALLED = "stalled"  # beats, but its event loop does not: gets no work
    DRAINING = "draining"  # gives its work back
    LEFT = "left"  # went by itself
    DEAD = "dead"  # was declared dead


@dataclass(frozen=True, slots=True)
class Identity:
    """What a node says of itself when it joins.

    Attributes:
        id: Random, of this process start; never used again.
        name: Stable over restarts where it is set; work returns to it.
        labels: What it offers: the labels of its code, and the operator's own.
        capacity: Its share of the work.
        priority: Higher leads sooner; below 0 never.
        mode: ``cluster`` or ``follower``.
        version: Of strandline.
        host: Where it runs.
        pid: Its process.
    """

    id: UUID
    name: str
    labels: tuple[str, ...] = ()
    capacity: float = 1.0
    priority: int = 0
    mode: str = "cluster"
    version: str = ""
    host: str = ""
    pid: int = 0


def default_name(app: str) -> str:
    """The name of a node that was given none."""
    return f"{app}@{socket.gethostname()}:{os.getpid()}"
