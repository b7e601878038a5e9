"""A part of the caller's transaction that leaves nothing behind when it fails."""

from __future__ import annotations

from contextlib import suppress

from strandline.postgres.operations import Answer, Op, none
from strandline.postgres.statements import SqlFile

_sql = SqlFile(__name__)
BEGIN_PART = _sql.none("begin_part")
UNDO_PART = _sql.none("undo_part")
KEEP_PART = _sql.none("keep_part")


def all_or_nothing(op: Op[Answer]) -> Op[Answer]:
    """Run *op*; when it fails, undo it, so that the transaction around it can go on without it."""
    yield from none(BEGIN_PART)
    try:
        done = yield from op
    except GeneratorExit:
        raise
    except BaseException:  # a cancellation too: the caller may catch it, and commit
        with suppress(Exception):  # what went wrong is being told already
            yield from none(UNDO_PART)
        raise
    yield from none(KEEP_PART)
    return done
