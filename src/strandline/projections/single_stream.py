"""Projection of one document per stream."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Generic

from strandline.events.codec import EventTypes
from strandline.events.event import RecordedEvent
from strandline.projections.folding import Folder, State, compiled, state_class
from strandline.projections.handlers import handlers_of
from strandline.projections.projection import Projection


class SingleStream(Projection, Generic[State]):
    """One document per stream, folded from the stream's events.

    Its id is the stream's, its version the version of the last event it was folded from.
    """

    kind: ClassVar[str] = "single stream"
    folder: Folder[State]

    @property
    def table(self) -> str:
        """See ``Projection``."""
        return f"doc_{self.name}_v{self.version}"

    def bind(self, types: EventTypes, names: Mapping[str, Any] | None) -> None:
        """See ``Projection``."""
        state = state_class(type(self), SingleStream)
        handlers = handlers_of(self, names)
        self.take_waiting_handlers(handlers)
        self.folder = compiled(state, handlers, types, parts=self.upstream)

    @property
    def hears_upstream(self) -> bool:
        """See ``Projection``."""
        return any(cls in self.upstream for cls in self.event_classes)

    @property
    def event_classes(self) -> tuple[type[Any], ...]:
        """The event classes it handles."""
        return tuple(self.folder.steps)

    def fold(
        self, events: Iterable[RecordedEvent[Any]], state: State | None = None
    ) -> State | None:
        """Fold *events* in order, onto *state* when given; None when there is no document."""
        steps = self.folder.steps
        for event in events:
            found = steps.get(type(event.data))
            if found is not None:
                state = found[0](state, event.data, event)
        return state
