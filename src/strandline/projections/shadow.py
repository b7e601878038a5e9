"""Models that can be built a second time, beside the one that serves, and take its place.

A model writes to tables in one *place*: a schema, as SQL. What serves is in ``LIVE``; a build is in a
schema of its own, with tables of the same names, made and filled by the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from strandline.postgres.operations import Op

LIVE = "{schema}"
"""The place of what serves: the schema of all tables, filled in when a statement is rendered."""


class Pair(NamedTuple):
    """A table that serves and the one in the shadow, both as qualified names in SQL.

    Attributes:
        live: In its own schema; a user's table may stand without one.
        shadow: The same table in the model's place.
        keys: Columns of the primary key, unquoted, ``tenant`` first if there is one; empty: no key.
        name: What a row *d* is called in scopes and letters, as SQL; empty: as its key is written.
    """

    live: str
    shadow: str
    keys: tuple[str, ...]
    name: str = ""


class Swappable(Protocol):
    """A model whose tables can be built elsewhere, compared, and exchanged.

    Attributes:
        place: The schema of its tables, as SQL.
    """

    place: str

    def create(self) -> Op[None]:
        """Make its tables in its place, unless they are there."""
        ...

    def tables(self) -> Sequence[Pair]:
        """Its tables, each with the one that serves; empty if it cannot be exchanged. No operation."""
        ...
