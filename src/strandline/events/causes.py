"""What was under way when a job was enqueued."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cause:
    """What jobs that are enqueued now follow from.

    Attributes:
        causation: ``event:POSITION``: of the last event of the batch that is being handled.
        correlation: What all that follows from one request shares; the causation if empty.
    """

    causation: str
    correlation: str = ""


CAUSE: ContextVar[Cause | None] = ContextVar("strandline cause", default=None)


@contextmanager
def caused_by(position: int) -> Iterator[None]:
    """What is enqueued inside follows from the event at *position*; from none if it is 0."""
    if not position:
        yield
        return
    token = CAUSE.set(Cause(f"event:{position}"))
    try:
        yield
    finally:
        CAUSE.reset(token)
