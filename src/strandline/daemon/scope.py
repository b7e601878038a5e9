"""Which part of a projection a build is about: all of it, a tenant, some streams, some keys.

A build of a part reads no more than it must:

* **streams** of a single-stream projection: these streams alone, by the index on tenant and stream;
* **keys** of a multi-stream projection: which events they have is known only after decoding, so every
  event of the tenant that the projection wants is read, and what belongs to other keys is dropped;
* **keys** of a table: every event is looked at inside PostgreSQL, and other rows are left out;
* **a tenant**: every event of the log is looked at, and those of others never leave PostgreSQL.

What it built then takes the place of the live documents of that part, and of nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace

import msgspec

from strandline.daemon.feed import Appetite
from strandline.errors import InvalidInput
from strandline.events.event import DEFAULT_TENANT
from strandline.projections.multi_stream import MultiStream
from strandline.projections.projection import Projection
from strandline.projections.single_stream import SingleStream
from strandline.projections.slice import Slice
from strandline.projections.table_declaration import Table
from strandline.projections.table_fold import Within

MOST = 10_000  # names in one scope: beyond that the whole projection is built sooner


@dataclass(frozen=True, slots=True)
class Scope:
    """A part of a projection; everything when nothing is set.

    Attributes:
        tenant: Documents of this tenant only; set whenever *streams* or *keys* are.
        streams: Of a single-stream projection.
        keys: Of a multi-stream projection, or of a table: there a key is the JSON array of its values.
    """

    tenant: str | None = None
    streams: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()

    def __str__(self) -> str:
        """In words."""
        named = [*self.streams, *self.keys]
        what = f"{'stream' if self.streams else 'key'}{'s' * (len(named) > 1)} " if named else ""
        shown = ", ".join(named[:3]) + (f" and {len(named) - 3:,} more" if len(named) > 3 else "")
        where = f"tenant {self.tenant}" if self.tenant not in (None, DEFAULT_TENANT) else ""
        if self.tenant == DEFAULT_TENANT and not named:
            where = f"tenant {self.tenant}"
        return " of ".join(one for one in (what + shown, where) if one) or "everything"

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the projection."""
        return self.tenant is None

    @property
    def ids(self) -> list[str] | None:
        """The ids of its documents; None when it is not a matter of ids."""
        return list(self.streams or self.keys) or None

    def json(self) -> str:
        """As it is stored in ``rebuilds.scope``."""
        found = {
            "tenant": self.tenant,
            "streams": list(self.streams),
            "keys": list(self.keys),
        }
        return msgspec.json.encode({name: one for name, one in found.items() if one}).decode()

    @classmethod
    def parsed(cls, text: str) -> Scope:
        """What ``json`` wrote."""
        found = msgspec.json.decode(text)
        return cls(
            found.get("tenant"), tuple(found.get("streams", ())), tuple(found.get("keys", ()))
        )

    def holds(self, tenant: str, key: str) -> bool:
        """Whether the document *key* of *tenant* is in it."""
        if self.tenant is None:
            return True
        return tenant == self.tenant and (self.ids is None or key in (self.streams or self.keys))

    def narrowed(self, appetite: Appetite) -> Appetite:
        """What a build of this part wants in its pages: never a page that others share.

        A shared page may be older than an event that turned up late, for which the build is made.
        """
        return replace(appetite, tenant=self.tenant, streams=self.streams, shares=False)

    @property
    def within(self) -> Within:
        """The rows of a table that are in it."""
        return Within(self.tenant, self.keys)


EVERYTHING = Scope()


@dataclass(frozen=True, slots=True)
class Kept:
    """The documents that one shard of a build keeps of what it reads: those of its slice and scope.

    Stands for a ``Slice`` where documents are told apart after grouping.
    """

    slice: Slice
    scope: Scope

    @property
    def parts(self) -> int:
        """More than 1 when something of a page may have to be dropped."""
        return 2 if self.scope.keys else self.slice.parts

    def holds(self, tenant: str, key: str) -> bool:
        """Whether it keeps the document *key*."""
        return self.scope.holds(tenant, key) and self.slice.holds(tenant, key)


def scope_of(
    projection: Projection,
    *,
    tenant: str | None = None,
    streams: Iterable[str] | None = None,
    keys: Iterable[str] | None = None,
) -> Scope:
    """The part of *projection* that a caller means; without a *tenant* names are of the default one.

    Args:
        projection: The projection.
        tenant: Only its documents.
        streams: Of a single-stream projection.
        keys: Ids of documents, which are the streams of a single-stream projection; rows of a table,
            each as the JSON array of its key's values, as dead letters name them.

    Raises:
        InvalidInput: A projection of its kind has no such parts.
    """
    named = _names(projection, "streams", streams)
    ids = _names(projection, "keys", keys)
    if tenant is not None and not tenant:
        raise InvalidInput(
            f"{projection.label}: tenant='' is no tenant; leave it out for all of them"
        )
    if tenant is None and not named and not ids:
        return EVERYTHING
    if isinstance(projection, SingleStream):
        chosen = tuple(dict.fromkeys((*named, *ids)))
        return Scope(tenant or DEFAULT_TENANT, streams=chosen)
    if not isinstance(projection, MultiStream | Table):
        raise InvalidInput(
            f"{projection.label} is a {projection.kind} projection: it is built as a whole, without"
            " tenant=, streams= or keys="
        )
    if named:
        raise InvalidInput(
            f"{projection.label} gathers events of many streams: name what is to be built by keys=, not"
            " by streams="
        )
    if isinstance(projection, Table) and not all(one.startswith("[") for one in ids):
        raise InvalidInput(
            f"{projection.label}: name rows by their key's values as a JSON array, like '[\"NL\", 7]'"
        )
    if isinstance(projection, Table):
        ids = tuple(_as_stored(one) for one in ids)
    return Scope(tenant or DEFAULT_TENANT, keys=ids)


def _as_stored(key: str) -> str:
    """A row's key spaced as PostgreSQL does; one that was shortened stays as it is."""
    try:
        return json.dumps(json.loads(key), ensure_ascii=False)
    except ValueError:
        return key


def _names(projection: Projection, what: str, given: Iterable[str] | None) -> tuple[str, ...]:
    if given is None:
        return ()
    if isinstance(given, str):
        raise InvalidInput(f"{projection.label}: {what}= takes a list of names, not {given!r}")
    names = tuple(dict.fromkeys(given))
    if not names or not all(isinstance(one, str) and one for one in names):
        raise InvalidInput(f"{projection.label}: {what}= takes one or more names")
    if len(names) > MOST:
        raise InvalidInput(f"{projection.label}: {len(names):,} {what}: rebuild all of it instead")
    return names
