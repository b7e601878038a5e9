"""Whose the tasks are that an app begins, when there are several apps in one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from strandline.loops import Loops
from strandline.telemetry.journal import current_node
from strandline.telemetry.trace_context import apart


@contextmanager
def begun_for(node: str, loops: Loops) -> Iterator[None]:
    """What begins in the block belongs to *node* and *loops*, and to no span of whoever calls.

    What the caller's own task tells afterwards is of *node* as well, until another app takes over.
    """
    current_node.set(node)
    with apart(), loops.begun_here():
        yield
