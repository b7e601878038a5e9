"""Sessions of processes that stand still within a statement, which no time-out of the server ends.

The driver lets the server parse a statement, and runs it once that is answered. A process that is
frozen in between keeps the locks of its transaction: the server calls the session active, so that
neither ``statement_timeout`` nor ``idle_in_transaction_session_timeout`` fires.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from strandline.postgres.operations import Op, many
from strandline.postgres.statements import SqlFile


@dataclass(frozen=True, slots=True)
class Zombie:
    """A session that held something in a transaction of the past.

    Attributes:
        idle: Seconds in which nothing had happened.
        query: Its last one.
        ended: Whether it could be ended.
    """

    pid: int
    application: str
    client: str | None
    idle: float
    query: str
    ended: bool


_sql = SqlFile(__name__)
END_SILENT = _sql.many("end_silent", Zombie)


def end_silent(
    tables: Sequence[str], *, idle: float, applications: str = "strandline work%"
) -> Op[list[Zombie]]:
    """End sessions that were silent for *idle* seconds within a statement on one of *tables*.

    Args:
        tables: Their names as SQL has them.
        idle: Since the server was sent something.
        applications: Whose: a pattern of ``LIKE``.
    """
    return (yield from many(END_SILENT, list(tables), applications, idle))
