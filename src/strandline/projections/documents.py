"""Documents of a projection: their table, loading, saving, querying."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from strandline.errors import InvalidDefinition, InvalidInput, UndecodableEvent
from strandline.postgres.operations import Call, Op, many, none, one
from strandline.postgres.statements import SqlFile, Statement, literal, moved_up, quoted
from strandline.projections.multi_stream import MultiStream
from strandline.projections.shadow import LIVE, Pair
from strandline.projections.single_stream import SingleStream

State = TypeVar("State")
Key = tuple[str, str]
"""Tenant and id of a document."""


@dataclass(frozen=True, slots=True)
class DocumentRow:
    """A document as it is stored."""

    tenant: str
    id: str
    data: str
    version: int
    position: int


@dataclass(frozen=True, slots=True)
class Count:
    """How many there are."""

    count: int


class Document(Generic[State]):
    """A document in memory: its state (None: there is none), and where it stands."""

    __slots__ = ("position", "state", "stored", "version")

    def __init__(self, state: State | None, version: int, position: int, *, stored: bool) -> None:
        self.state = state
        self.version = version
        self.position = position
        self.stored = stored


class _Saved(msgspec.Struct, gc=False):
    t: str
    i: str
    d: Any
    v: int
    p: int


class _Gone(msgspec.Struct, gc=False):
    t: str
    i: str


_sql = SqlFile(__name__)
_CREATE = _sql.none("create_documents")
_FIELD_INDEX = _sql.none("create_field_index")
_CONTAINMENT_INDEX = _sql.none("create_containment_index")
_EMPTY = _sql.none("empty_documents")
_DROP = _sql.none("drop_documents")
_LOAD = _sql.many("load_documents", DocumentRow)
_LOCK = _sql.many("lock_documents", DocumentRow)
_SAVE = _sql.none("save_documents")
_QUERY = _sql.many("query_documents", DocumentRow)
_COUNT = _sql.one("count_documents", Count)

_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
_encode = msgspec.json.Encoder().encode


class Documents(Generic[State]):
    """The documents of one projection. All methods answer operations for a session to run.

    Attributes:
        place: The schema of the table, as SQL.
        table: The table with its schema, as SQL.
    """

    def __init__(
        self, projection: SingleStream[State] | MultiStream[State], place: str = LIVE
    ) -> None:
        self.projection = projection
        self.place = place
        self.decode = projection.folder.decode
        table = f"{place}.{quoted(projection.table)}"
        self.table = table
        key = quoted(projection.table + "_pkey")
        self._create = [_CREATE.about(table=table, key=key), *self._indexes(table)]
        self._empty = _EMPTY.about(table=table)
        self._drop = _DROP.about(table=table)
        self._load = _LOAD.about(table=table, key=key)
        self._lock = _LOCK.about(table=table)
        self._save = _SAVE.about(table=table)
        self._pydantic = hasattr(projection.folder.state, "model_dump_json")

    def create(self) -> Op[None]:
        """Make the table and its declared indexes, unless they are there."""
        for statement in self._create:
            yield from none(statement)

    def empty(self) -> Op[None]:
        """Delete every document."""
        yield from none(self._empty)

    def drop(self) -> Op[None]:
        """Drop the table."""
        yield from none(self._drop)

    def tables(self) -> Sequence[Pair]:
        """See ``Swappable``. No operation."""
        live = f"{LIVE}.{quoted(self.projection.table)}"
        return (Pair(live, self.table, ("tenant", "id")),)

    def load(self, keys: Sequence[Key], *, lock: bool = False) -> Op[dict[Key, Document[State]]]:
        """The documents under *keys*, each with an entry; ``lock`` until the transaction ends."""
        statement = self._lock if lock else self._load
        rows = yield Call(statement, ([key[0] for key in keys], [key[1] for key in keys]))
        found: dict[Key, Document[State]] = {
            key: Document(None, 0, 0, stored=False) for key in keys
        }
        for tenant, name, data, version, position in rows:
            state = self.state(data, name)
            found[tenant, name] = Document(state, version, position, stored=True)
        return found

    def save(self, documents: Mapping[Key, Document[State]]) -> Op[None]:
        """Write what *documents* hold, inside the caller's transaction."""
        yield from self.save_changes(*self.changes(documents))

    def save_changes(self, saved: str, gone: str) -> Op[None]:
        """Write what ``changes`` has answered, inside the caller's transaction."""
        yield from none(self._save, saved, gone)

    def changes(self, documents: Mapping[Key, Document[State]]) -> tuple[str, str]:
        """What is to be upserted and deleted, as the JSON that the statements take."""
        saved = []
        gone = []
        pydantic = self._pydantic
        for (tenant, name), document in documents.items():
            state: Any = document.state
            if state is not None:
                if pydantic:
                    state = msgspec.Raw(state.model_dump_json().encode())
                saved.append(_Saved(tenant, name, state, document.version, document.position))
            elif document.stored:
                gone.append(_Gone(tenant, name))
        return _encode(saved).decode(), _encode(gone).decode() if gone else "[]"

    def state(self, data: str, name: str) -> State:
        """The state stored as *data*.

        Raises:
            UndecodableEvent: The stored document does not fit the class any more.
        """
        try:
            return self.decode(data)
        except Exception as error:  # msgspec and pydantic raise their own
            raise UndecodableEvent(
                f"document {name!r} of {self.projection.label}",
                f"{error}; a changed state class needs a new version of the projection",
            ) from error

    def query(
        self,
        where: Mapping[str, Any] | str | None,
        arguments: Sequence[Any],
        *,
        tenant: str,
        order_by: str | None = None,
        limit: int | None = None,
    ) -> Op[list[tuple[str, State]]]:
        """Ids and states of the documents that fit *where*. See ``app.query``."""
        condition, values = _condition(where, arguments)
        statement = _QUERY.about(
            table=self.table,
            condition=condition,
            order=order_by or "id",
            limit="ALL" if limit is None else str(int(limit)),
        )
        rows = yield from many(statement, tenant, *values)
        return [(row.id, self.state(row.data, row.id)) for row in rows]

    def count(
        self, where: Mapping[str, Any] | str | None, arguments: Sequence[Any], *, tenant: str
    ) -> Op[int]:
        """How many documents fit *where*."""
        condition, values = _condition(where, arguments)
        found = yield from one(_COUNT.about(table=self.table, condition=condition), tenant, *values)
        return found.count if found else 0

    def _indexes(self, table: str) -> Iterable[Statement[Any]]:
        for field in self.projection.indexes:
            name = quoted(_index_name(self.projection.table, field))
            if field == "*":
                yield _CONTAINMENT_INDEX.about(table=table, index=name)
            else:
                yield _FIELD_INDEX.about(table=table, index=name, field=field_expression(field))


def field_expression(field: str) -> str:
    """The SQL for a field of ``data`` as text: ``"address.city"`` → ``data #>> '{address,city}'``.

    Raises:
        InvalidDefinition: It is not a path of plain names.
    """
    if not _FIELD.fullmatch(field):
        raise InvalidDefinition(f"{field!r} is not a field like 'owner' or 'address.city'")
    path = field.split(".")
    if len(path) == 1:
        return f"data->>{literal(path[0])}"
    return f"data#>>{literal('{' + ','.join(path) + '}')}"


def _index_name(table: str, field: str) -> str:
    tail = hashlib.sha256(field.encode()).hexdigest()[:8]
    return f"{table}_{tail}_idx"


def _condition(
    where: Mapping[str, Any] | str | None, arguments: Sequence[Any]
) -> tuple[str, list[Any]]:
    """SQL and arguments of a where-clause; its parameters move up by one, behind the tenant."""
    if where is None:
        return "true", []
    if isinstance(where, str):
        return moved_up(where), list(arguments)
    parts: list[str] = []
    values: list[Any] = []
    rest: dict[str, Any] = {}
    for field, value in where.items():
        if isinstance(value, str) and _FIELD.fullmatch(field):
            values.append(value)  # the form a declared index serves
            parts.append(f"{field_expression(field)} = ${len(values) + 1}")
        elif "." in field:
            raise InvalidInput(f"where {field!r}: only texts can be compared under a path")
        else:
            rest[field] = value
    if rest:
        values.append(_encode(rest).decode())
        parts.append(f"data @> ${len(values) + 1}::text::jsonb")
    return " AND ".join(parts) or "true", values
