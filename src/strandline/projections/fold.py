"""Folds a page of stored events into documents: group, then apply.

Pure: rows in, changed documents out. Where rows come from and where documents go is the caller's.
A row is ``(position, tenant, stream, version, type, data, recorded_at, id, metadata)``; the last
three may be missing while no handler wants the envelope.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from strandline.errors import TO_THE_PROCESS, ApplyFailed, UndecodableEvent, shown
from strandline.events.codec import EventTypes
from strandline.events.event import EnrichedEvent, RecordedEvent
from strandline.projections.documents import Document, Key
from strandline.projections.folding import Step
from strandline.projections.multi_stream import MultiStream
from strandline.projections.single_stream import SingleStream
from strandline.projections.upstream import Deleted, Updated

Row = Sequence[Any]
POSITION, TENANT, STREAM, VERSION, TYPE, DATA, RECORDED_AT, ID, METADATA = range(9)

Piece = tuple[Key, Step, Any, Any, int, int]
"""Key, step, event object, envelope or None, version, position."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a fold does with events stored under one name."""

    decode: Callable[[str], Any]
    step: Step | None
    envelope: bool


def envelope_of(
    row: Row, data: Any, looked_up: Mapping[int, Any] | None = None
) -> RecordedEvent[Any]:
    """The ``RecordedEvent`` of a full *row*, with what was looked up for it."""
    if looked_up is not None:
        return EnrichedEvent(
            data=data,
            type=row[TYPE],
            stream=row[STREAM],
            version=row[VERSION],
            position=row[POSITION],
            tenant=row[TENANT],
            recorded_at=row[RECORDED_AT],
            id=row[ID],
            raw_metadata=row[METADATA],
            found=looked_up.get(row[POSITION]),
        )
    return RecordedEvent(
        data=data,
        type=row[TYPE],
        stream=row[STREAM],
        version=row[VERSION],
        position=row[POSITION],
        tenant=row[TENANT],
        recorded_at=row[RECORDED_AT],
        id=row[ID],
        raw_metadata=row[METADATA],
    )


class PageFold:
    """The fold of one projection over pages of rows.

    Args:
        projection: Whose.
        types: The registered events.
        full: Whether every piece gets its envelope, whatever the handlers want.
    """

    def __init__(
        self,
        projection: SingleStream[Any] | MultiStream[Any],
        types: EventTypes,
        *,
        full: bool = False,
    ) -> None:
        self.projection = projection
        self._full = full
        self.wanted: dict[str, Wanted] = {}
        for cls in projection.event_classes:
            if cls not in types.names:
                continue  # a part that events are fanned out into, stored nowhere
            step, envelope = projection.folder.steps.get(cls, (None, False))
            for name in types.stored_names(cls):
                self.wanted[name] = Wanted(types.decoders[name], step, envelope or full)
        self._multi = projection if isinstance(projection, MultiStream) else None

    @property
    def names(self) -> tuple[str, ...]:
        """The stored names of the events it handles."""
        return tuple(self.wanted)

    @property
    def wants_envelope(self) -> bool:
        """Whether rows must have all nine columns."""
        if self._full:
            return True
        if self._multi is None:
            return any(one.envelope for one in self.wanted.values())
        wanting = [*self._multi.keys.values(), *self._multi.fans.values()]
        steps = self._multi.folder.steps.values()
        return any(one[1] for one in wanting) or any(one[1] for one in steps)

    def decoded(self, rows: Sequence[Row]) -> tuple[list[Row], list[RecordedEvent[Any]]]:
        """Those of the full *rows* that it handles, decoded, and the same as events.

        Raises:
            UndecodableEvent: An event's JSON does not fit its class.
        """
        kept: list[Row] = []
        events: list[RecordedEvent[Any]] = []
        for row in rows:
            found = self.wanted.get(row[TYPE])
            if found is None:
                continue
            data = row[DATA]
            if type(data) is str:
                try:
                    data = found.decode(data)
                except Exception as error:  # msgspec, pydantic and upcasters raise their own
                    raise UndecodableEvent(row[TYPE], str(error), position=row[POSITION]) from error
            kept.append((*row[:DATA], data, *row[DATA + 1 :]))
            events.append(envelope_of(row, data))
        return kept, events

    def group(self, rows: Sequence[Row], looked_up: Mapping[int, Any] | None = None) -> list[Piece]:
        """Decode *rows* and say which document each belongs to, in order.

        Args:
            rows: Stored events.
            looked_up: By position what is found in envelopes.

        Raises:
            UndecodableEvent: An event's JSON does not fit its class.
            ApplyFailed: A key or fan-out method raised.
        """
        if self._multi is None:
            return self._group_single(rows, looked_up)
        return self._group_multi(rows, looked_up)

    def group_upstream(self, told: Sequence[Updated[Any] | Deleted[Any]]) -> list[Piece]:
        """Say which document each of these belongs to; those without handlers are passed over.

        Raises:
            ApplyFailed: A key or fan-out method raised.
        """
        projection = self.projection
        steps = projection.folder.steps
        pieces: list[Piece] = []
        for one in told:
            try:
                if self._multi is None:
                    if found := steps.get(type(one)):
                        pieces.append(
                            ((one.tenant, one.id), found[0], one, None, one.version, one.position)
                        )
                    continue
                for piece in self._multi.pieces(one, None):
                    for name in self._multi.keys_of(piece, None):
                        step = steps[type(piece)][0]
                        pieces.append(
                            ((one.tenant, name), step, piece, None, one.version, one.position)
                        )
            except TO_THE_PROCESS:
                raise
            except BaseException as error:  # the user's methods raise anything
                raise ApplyFailed(projection.label, shown(error), position=one.position) from error
        return pieces

    def apply(self, pieces: Sequence[Piece], documents: Mapping[Key, Document[Any]]) -> None:
        """Apply *pieces* in order to *documents*, in place.

        Raises:
            ApplyFailed: A handler raised. The documents are then half changed: throw them away.
        """
        position = 0
        try:
            for key, step, event, envelope, version, position in pieces:
                document = documents[key]
                document.state = step(document.state, event, envelope)
                document.version = version
                document.position = position
        except TO_THE_PROCESS:
            raise
        except BaseException as error:  # the user's handlers raise anything
            raise ApplyFailed(self.projection.label, shown(error), position=position) from error

    def _group_single(
        self, rows: Sequence[Row], looked_up: Mapping[int, Any] | None
    ) -> list[Piece]:
        wanted = self.wanted
        pieces: list[Piece] = []
        add = pieces.append
        row: Row = ()
        try:
            for row in rows:
                found = wanted.get(row[TYPE])
                if found is not None:
                    data = row[DATA]  # a shared page is decoded already
                    event = found.decode(data) if type(data) is str else data
                    envelope = envelope_of(row, event, looked_up) if found.envelope else None
                    key = (row[TENANT], row[STREAM])
                    add((key, found.step, event, envelope, row[VERSION], row[POSITION]))  # type: ignore[arg-type]  # single-stream steps are never None
        except Exception as error:  # msgspec, pydantic and upcasters raise their own
            raise UndecodableEvent(row[TYPE], str(error), position=row[POSITION]) from error
        return pieces

    def _group_multi(self, rows: Sequence[Row], looked_up: Mapping[int, Any] | None) -> list[Piece]:
        projection = self._multi
        assert projection is not None
        full = self.wants_envelope
        pieces: list[Piece] = []
        for row in rows:
            found = self.wanted.get(row[TYPE])
            if found is None:
                continue
            position = row[POSITION]
            try:
                data = row[DATA]
                event = found.decode(data) if type(data) is str else data
            except Exception as error:
                raise UndecodableEvent(row[TYPE], str(error), position=position) from error
            envelope = envelope_of(row, event, looked_up) if full else None
            tenant = row[TENANT]
            try:
                for piece in projection.pieces(event, envelope):
                    step, _ = projection.folder.steps[type(piece)]
                    for name in projection.keys_of(piece, envelope):
                        key = (tenant, name)
                        pieces.append((key, step, piece, envelope, row[VERSION], position))
            except TO_THE_PROCESS:
                raise
            except BaseException as error:  # the user's methods raise anything
                raise ApplyFailed(projection.label, shown(error), position=position) from error
        return pieces
