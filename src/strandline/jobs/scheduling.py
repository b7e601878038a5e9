"""Makes scheduled jobs available when their time has come, by the server's clock."""

from __future__ import annotations

from dataclasses import dataclass

from strandline.jobs.right import Right
from strandline.postgres.operations import Op, one
from strandline.postgres.statements import SqlFile

AT_ONCE = 5_000  # jobs made available by one statement


@dataclass(frozen=True, slots=True)
class Promoted:
    """What one look at the scheduled jobs did.

    Attributes:
        moved: Jobs that are available now.
        queues: Theirs.
        next_in: Seconds until the next one is due; None: there is none.
    """

    held: bool
    moved: int
    queues: list[str]
    next_in: float | None


_sql = SqlFile(__name__)
PROMOTE_DUE = _sql.one("promote_due", Promoted)


def promote_due(right: Right, *, most: int = AT_ONCE) -> Op[Promoted]:
    """Make jobs available that are due; fewer than *most*: no more are due.

    Raises:
        LeaseLost: Another one leads, or nobody; nothing was written.
    """
    done = yield from one(PROMOTE_DUE, right.me, right.epoch, most)
    right.check("promote_due", held=done is not None and done.held)
    assert done is not None
    return done
