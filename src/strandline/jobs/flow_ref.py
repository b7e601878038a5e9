"""What enqueueing a flow answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class FlowRef:
    """The jobs of a flow that has been enqueued.

    Attributes:
        last: Reference of the job that ends it; None if a batch without callbacks does.
        jobs: References by the names in a dag; of inner dags as ``outer.inner``.
        ids: Of all its jobs, parents before their children.
    """

    last: Any
    jobs: Mapping[str, Any] = field(default_factory=dict)
    ids: tuple[int, ...] = ()
