"""A named consumer of events: a function called with batches, in order."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from strandline.errors import InvalidDefinition
from strandline.events.codec import EventTypes
from strandline.events.event import RecordedEvent
from strandline.projections.failure_policy import ErrorPolicy, checked_policy
from strandline.projections.projection import checked_name, checked_shards

E = TypeVar("E")

Handle = Callable[..., Awaitable[None]]


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Events for a subscription, in the order of their positions.

    Attributes:
        events: The events.
        floor: Everything up to this position was handled before.
        ceiling: With this batch, everything up to this position is handled.
        epoch: Grows with every new owner of the shard: hand it to outside systems with the shard's
            name as a fencing token, so that they can refuse a frozen predecessor.
        shard: The shard whose events these are, e.g. ``notifier:all`` or ``notifier:3/4``.
    """

    events: tuple[RecordedEvent[Any], ...]
    floor: int
    ceiling: int
    epoch: int
    shard: str = ""

    def __iter__(self) -> Iterator[RecordedEvent[Any]]:
        """Iterate over the events."""
        return iter(self.events)

    def __len__(self) -> int:
        """How many events there are."""
        return len(self.events)

    @property
    def last(self) -> int:
        """The position of the last event; 0 if there is none."""
        return self.events[-1].position if self.events else 0

    def of(self, cls: type[E]) -> list[RecordedEvent[E]]:
        """The events whose data is a *cls*."""
        return [event for event in self.events if isinstance(event.data, cls)]


@dataclass(frozen=True, slots=True)
class Subscription:
    """A named function over batches of events.

    Attributes:
        handle: ``async def f(batch)``: at least once, its checkpoint follows; or
            ``async def f(batch, tx)``: what it does by ``tx`` commits with the checkpoint.
        types: Only events of these classes; empty for all.
        start: Where a new subscription begins: ``"beginning"``, ``"present"`` or a position.
        batch_events: Events in a batch at the most.
        shards: Into how many shards its streams are cut.
        on_error: What is done about events that it cannot process; None: what the settings say.
    """

    name: str
    handle: Handle
    takes_transaction: bool
    types: tuple[type[Any], ...] = ()
    start: str | int = "beginning"
    batch_events: int | None = None
    shards: int = 1
    on_error: ErrorPolicy | None = None

    @property
    def label(self) -> str:
        """Its name."""
        return self.name

    def names(self, types: EventTypes) -> tuple[str, ...] | None:
        """The stored names it wants; None for all."""
        if not self.types:
            return None
        return tuple(name for cls in self.types for name in types.stored_names(cls))


def subscription(
    name: str,
    handle: Handle,
    *,
    types: Iterable[type[Any]] = (),
    start: str | int = "beginning",
    batch_events: int | None = None,
    shards: int = 1,
    on_error: ErrorPolicy | None = None,
) -> Subscription:
    """Check and make a subscription.

    Raises:
        InvalidDefinition: The function or an option cannot be used.
    """
    checked_name(name)
    if not inspect.iscoroutinefunction(handle):
        raise InvalidDefinition(f"subscription {name!r}: the function must be `async def`")
    count = len(inspect.signature(handle).parameters)
    if count not in (1, 2):
        raise InvalidDefinition(f"subscription {name!r}: the function takes (batch) or (batch, tx)")
    known = start in ("beginning", "present") or (
        isinstance(start, int) and not isinstance(start, bool) and start >= 0
    )
    if not known:
        raise InvalidDefinition(
            f"subscription {name!r}: start={start!r} is not 'beginning', 'present' or a position"
        )
    checked_shards(shards, f"subscription {name!r}")
    checked_policy(on_error, f"subscription {name!r}")
    return Subscription(
        name, handle, count == 2, tuple(types), start, batch_events, shards, on_error
    )
