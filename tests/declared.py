"""A projection registered without an app, for tests of its rules."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from strandline.events.codec import EventTypes
from strandline.projections.documents import Document
from strandline.projections.fold import PageFold
from strandline.projections.registry import Registry

AT = datetime(2030, 1, 1, tzinfo=UTC)


def types_of(*events: type[Any]) -> EventTypes:
    """Types registered under their class names."""
    types = EventTypes()
    for cls in events:
        types.register(cls, cls.__name__)
    return types


def declared(projection: type[Any], *events: type[Any]) -> tuple[Any, EventTypes]:
    """The bound definition; annotations may name locals of the caller."""
    registry = Registry(types=types_of(*events))
    definition = projection()
    definition.named("it", 1, "async")
    registry.add_projection(definition, sys._getframe(1).f_locals)
    return definition, registry.types


def rows_of(types: EventTypes, *events: Any, stream: str = "s") -> list[tuple[Any, ...]]:
    """The rows of *events*: positions and versions from 1. ``("other", event)`` names a stream."""
    rows = []
    for number, one in enumerate(events, 1):
        name, event = one if isinstance(one, tuple) else (stream, one)
        kind, data = types.encode(event)
        rows.append((number, "t", name, number, kind, data.decode(), AT, UUID(int=number), None))
    return rows


def folded(definition: Any, types: EventTypes, *events: Any) -> dict[str, Any]:
    """The states by id after one page of *events*."""
    fold = PageFold(definition, types)
    pieces = fold.group(rows_of(types, *events))
    found = {piece[0]: Document(None, 0, 0, stored=False) for piece in pieces}
    fold.apply(pieces, found)
    return {key[1]: one.state for key, one in found.items() if one.state is not None}
