"""What a node's code has to say about a projection so that it can be built beside itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from strandline.daemon.batch import Processor
from strandline.daemon.rebuilds import Build
from strandline.projections.shadow import Swappable
from strandline.projections.slice import Slice


@dataclass(frozen=True, slots=True)
class Buildable:
    """How what a definition writes is built again, beside it.

    Attributes:
        model: Makes the model that writes to another place.
        processor: Makes what processes one shard of a build.
        speaks: Whether it raises side effects: then each event must have been processed by what
            serves before the swap, since a build raises none.
    """

    model: Callable[[str], Swappable]
    processor: Callable[[Build, Slice], Processor]
    speaks: bool = False
