"""Tells what is in a schema, as SQL that does not depend on the server's version.

``schema/current.sql`` is made by it: the sum of all migrations, for reading and for review.
"""

from __future__ import annotations

from dataclasses import dataclass

from strandline.postgres.operations import Op, many, none
from strandline.postgres.statements import SqlFile


@dataclass(frozen=True, slots=True)
class Made:
    """The SQL that makes one object."""

    text: str


_sql = SqlFile(__name__)
QUALIFY = _sql.none("qualify_names")
DUMP = _sql.many("dump_schema", Made)


def dump(schema: str) -> Op[str]:
    """The SQL that makes everything in *schema*, except for what stands in its rows.

    Run it inside a transaction: it sets the ``search_path`` until that ends.
    """
    yield from none(QUALIFY)
    found = yield from many(DUMP, schema)
    return "\n\n".join(one.text for one in found) + "\n"
