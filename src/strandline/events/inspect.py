"""The log as it is stored, for people: streams, events, types; knows no event class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from strandline.events.event import StreamState
from strandline.events.gaps import lost_row
from strandline.postgres.operations import Op, many, one
from strandline.postgres.statements import SqlFile

WINDOW = 50_000  # positions one statement looks through, so that rare types cannot time out


@dataclass(frozen=True, slots=True)
class Extent:
    """How far the log reaches, at ``now`` of the server's clock."""

    now: datetime
    mark: int
    settled_at: datetime
    highest: int


@dataclass(frozen=True, slots=True)
class TypeCount:
    """How many events of a type a part of the log has, and where."""

    type: str
    events: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class PositionSequence:
    """How positions are numbered."""

    cache: int
    increment: int
    cycles: bool


@dataclass(frozen=True, slots=True)
class _Tenant:
    tenant: str


@dataclass(frozen=True, slots=True)
class _Position:
    position: int


_sql = SqlFile(__name__)
_log_extent = _sql.one("log_extent", Extent)
_list_streams = _sql.many("list_streams", StreamState)
_list_streams_of_tenant = _sql.many("list_streams_of_tenant", StreamState)
_tenants_of_stream = _sql.many("tenants_of_stream", _Tenant)
_positions_of_id = _sql.many("positions_of_id", _Position)
_count_types = _sql.many("count_types", TypeCount)
_position_sequence = _sql.one("position_sequence", PositionSequence)


def log_extent() -> Op[Extent]:
    """Answer the mark and the highest visible position."""
    found = yield from one(_log_extent)
    if found is None:
        raise lost_row()
    return found


def list_streams(
    *, tenant: str | None, stream_type: str | None, after: tuple[str, str], most: int
) -> Op[list[StreamState]]:
    """Answer up to *most* streams by tenant and id, those after the key *after*."""
    if tenant is None:
        return (yield from many(_list_streams, *after, most, stream_type))
    return (yield from many(_list_streams_of_tenant, tenant, after[1], most, stream_type))


def tenants_of_stream(stream: str, most: int = 5) -> Op[list[str]]:
    """Answer tenants that have a stream of that id."""
    found = yield from many(_tenants_of_stream, stream, most)
    return [row.tenant for row in found]


def positions_of_id(name: UUID) -> Op[list[int]]:
    """Answer the positions of the events of that id: one for each tenant that has it."""
    found = yield from many(_positions_of_id, name)
    return [row.position for row in found]


def count_types(after: int, up_to: int) -> Op[list[TypeCount]]:
    """Answer how many events of each type lie above *after*, up to *up_to*."""
    return (yield from many(_count_types, after, up_to))


def position_sequence() -> Op[PositionSequence | None]:
    """Answer how positions are numbered; None if the column has no sequence."""
    return (yield from one(_position_sequence))


def windows(after: int, up_to: int, *, backwards: bool = False) -> Sequence[tuple[int, int]]:
    """Cut ``after < position <= up_to`` into windows that one statement can look through."""
    cuts = [(low, min(low + WINDOW, up_to)) for low in range(after, up_to, WINDOW)]
    return cuts[::-1] if backwards else cuts


def added(counts: Sequence[TypeCount]) -> list[TypeCount]:
    """Counts of several windows as one for each type, the most frequent first."""
    found: dict[str, TypeCount] = {}
    for one_count in counts:
        before = found.get(one_count.type, TypeCount(one_count.type, 0, one_count.first, 0))
        found[one_count.type] = TypeCount(
            one_count.type,
            before.events + one_count.events,
            min(before.first, one_count.first),
            max(before.last, one_count.last),
        )
    return sorted(found.values(), key=lambda count: (-count.events, count.type))
