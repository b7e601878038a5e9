"""What a later stage of a composite is told of documents of earlier stages.

    @sl.key    def branch(self, event: sl.Updated[Account] | sl.Deleted[Account]) -> str
    @sl.apply  def counted(self, summary: Summary, event: sl.Updated[Account]) -> None

A document is told of once per page at most, as it is then: after one event, or after a thousand.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar

from strandline.errors import InvalidDefinition

S = TypeVar("S")


@dataclass(frozen=True)
class Updated(Generic[S]):
    """A document of an earlier stage was made or changed.

    Attributes:
        tenant: Of the document.
        id: Of the document.
        state: The document, a copy.
        position: Of the last event that it includes.
        version: Of that event in its stream.
        member: Name of the projection in the composite.
    """

    tenant: str
    id: str
    state: S
    position: int
    version: int
    member: str


@dataclass(frozen=True)
class Deleted(Generic[S]):
    """A document of an earlier stage was deleted.

    Attributes:
        tenant: Of the document.
        id: Of the document.
        position: Of the event that deleted it.
        version: Of that event in its stream.
        member: Name of the projection in the composite.
    """

    tenant: str
    id: str
    position: int
    version: int
    member: str


def is_upstream(annotation: Any) -> bool:
    """Whether *annotation* is ``Updated[...]`` or ``Deleted[...]``, or one of them bare."""
    return annotation in (Updated, Deleted) or typing.get_origin(annotation) in (Updated, Deleted)


def upstream_class(annotation: Any) -> type[Any]:
    """The class whose objects *annotation* stands for: one for each class of documents.

    Raises:
        InvalidDefinition: It does not say of which documents.
    """
    inner = typing.get_args(annotation)
    if len(inner) != 1 or not isinstance(inner[0], type):
        name = getattr(annotation, "__name__", annotation)
        raise InvalidDefinition(f"{name}: say of which documents, as in sl.Updated[Account]")
    return concrete(typing.get_origin(annotation), inner[0])


def concrete(kind: Any, state: Any) -> type[Any]:
    """The class of ``Updated`` or ``Deleted`` objects of documents that are a *state*."""
    found: type[Any] = _concrete(kind, state)
    return found


@cache  # one class for each, whoever asks
def _concrete(kind: Any, state: Any) -> Any:
    return type(f"{kind.__name__}[{state.__name__}]", (kind,), {"__doc__": kind.__doc__})
