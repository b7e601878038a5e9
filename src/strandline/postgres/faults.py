"""SQLSTATE → our errors: the only place that knows the codes and the drivers' exceptions.

Our own SQL functions raise SQLSTATEs of class ``SL`` with the facts as JSON in DETAIL:
``SL001`` wrong version, ``SL002`` archived stream, ``SL003`` duplicate event id,
``SL004`` invalid argument.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from typing import Any

import asyncpg

from strandline.errors import (
    AnswerTimedOut,
    DatabaseReadOnly,
    DatabaseUnavailable,
    DiskFull,
    DuplicateEvent,
    InvalidEvent,
    InvalidInput,
    InvalidSetting,
    OutcomeUnknown,
    SchemaOutOfDate,
    StrandlineError,
    StreamArchived,
    WrongVersion,
)

# Classes that mean "not now": connection, resources, operator intervention, system error.
_WAIT_CLASSES = ("08", "53", "57", "58")
OVER = "the transaction is over: nothing more can be done in it, and this was not done"
READ_ONLY = "25006"  # a standby, after a fail-over
DISK_FULL = "53100"
_WAIT_CODES = {
    "40001",  # serialization failure
    "40P01",  # deadlock detected
    "55P03",  # lock not available
    "25P03",  # idle-in-transaction time-out
    "XX000",
}
_BAD_DATA = ("22", "54")  # NUL characters, numbers out of range, bad JSON; JSON nested too deeply
_FULL = (  # 53300 in words, for a driver that does not tell the code of a refused connection
    "too many clients already",
    "too many connections for",
    "remaining connection slots are reserved",
)
USERS_SQL = {"your SQL", "query_documents", "count_documents"}  # a missing column is the user's
_MISSING = {"42P01", "42883", "3F000", "42703"}  # table, function, schema, column


@cache
def _asyncpg_errors() -> tuple[type[Exception], ...]:
    return (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


def driver_errors() -> tuple[type[Exception], ...]:
    """The exceptions that ``translated`` understands; psycopg's too once it is imported."""
    psycopg = sys.modules.get("psycopg")
    known = (*_asyncpg_errors(), OSError, TimeoutError)
    return (*known, psycopg.Error) if psycopg is not None else known


def translated(error: Exception, what: str) -> Exception:
    """The strandline error for a driver's *error* during *what*; the driver's is its cause.

    An error that tells of a mistake in SQL, ours or the user's, is answered unchanged.
    """
    ours = _translated(error, what)
    if ours is not error:
        ours.__cause__ = error
    return ours


def _translated(error: Exception, what: str) -> Exception:  # noqa: PLR0911 - a list of cases
    state = sqlstate(error)
    if state.startswith("SL"):
        return _own(error, state)
    if state == "57014" or isinstance(error, TimeoutError):
        return AnswerTimedOut(f"{what}: no answer in time ({error or 'timed out'})")
    if refused := _refused(error, state, what) or _unwritable(error, state, what):
        return refused
    if state in _WAIT_CODES or state[:2] in _WAIT_CLASSES:
        return DatabaseUnavailable(f"{what}: {error} (SQLSTATE {state}); wait and try again")
    if state == "23505" and "events_id" in _constraint(error):
        return DuplicateEvent(f"{what}: an event id is already stored in another place: {error}")
    if state[:2] in _BAD_DATA:
        return InvalidEvent(f"{what}: PostgreSQL cannot store this: {error}")
    if state in _MISSING and what not in USERS_SQL:
        return SchemaOutOfDate(
            f"{what}: {error}; run `strandline migrate apply` with this version of strandline"
        )
    if not state and _lost(error):
        return DatabaseUnavailable(f"{what}: {error or type(error).__name__}; wait and try again")
    return error


def _refused(error: Exception, state: str, what: str) -> StrandlineError | None:
    """A connection that the server or a pooler does not take, with what to do about it."""
    words = f"{error}"
    if "unsupported startup parameter" in words:
        return InvalidSetting(
            "pooler",
            "none",
            f"{what}: database_url leads to a pooler, which says {words!r}: set"
            ' pooler="transaction", and direct_url to a way past it',
        )
    if state == "53300" or any(one in words for one in _FULL):
        return DatabaseUnavailable(
            f"{what}: the server takes no more connections ({words}): raise max_connections or the"
            " CONNECTION LIMIT, lower work_connections, close other clients, or put PgBouncer"
            " before it; `strandline doctor` shows who has how many"
        )
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return DatabaseReadOnly(
            f"{what}: none of the servers takes writes now (each is a standby, or read-only by"
            " default_transaction_read_only); wait and try again"
        )
    if "no more connections allowed" in words:
        return DatabaseUnavailable(
            f"{what}: the pooler takes no more clients ({words}): raise its max_client_conn, or"
            " lower work_connections"
        )
    return None


def _unwritable(error: Exception, state: str, what: str) -> StrandlineError | None:
    """A server that answers but takes no writes, with what to do about it."""
    if state == READ_ONLY:
        return DatabaseReadOnly(
            f"{what}: the server takes no writes now ({error}): it is a standby, or"
            " default_transaction_read_only is set; wait for the fail-over, or reset it"
        )
    if state == DISK_FULL:
        return DiskFull(
            f"{what}: the server has no room left ({error}): make room on its disk, then it goes on"
        )
    return None


def commit_failed(error: Exception) -> Exception:
    """The strandline error for a COMMIT that raised the driver's *error*."""
    ours = translated(error, "commit")
    if not (is_connection_loss(error) or isinstance(ours, AnswerTimedOut)):
        return ours
    unknown = OutcomeUnknown(
        f"the transaction may or may not be committed, its COMMIT got no answer: {error!r};"
        " look whether it took effect before you try again (appends with ids= are safe to repeat)"
    )
    unknown.__cause__ = error
    return unknown


def is_taken(error: BaseException, constraint: str) -> bool:
    """Whether *error* says that there is such a row already, by *constraint*."""
    return sqlstate(error) == "23505" and _constraint(error) == constraint


def sqlstate(error: BaseException | None) -> str:
    """The SQLSTATE of a driver's error, or an empty text."""
    return getattr(error, "sqlstate", None) or ""


def is_connection_loss(error: BaseException) -> bool:
    """Whether the server may or may not have done what was asked when *error* came."""
    seen: BaseException | None = error
    while seen is not None:
        state = sqlstate(seen)
        if state[:2] == "08" or state in {"57P01", "57P02", "57P05", "25P03"}:
            return True
        if not state and not isinstance(seen, StrandlineError) and _lost(seen):
            return True
        seen = seen.__cause__
    return False


def _lost(error: BaseException) -> bool:
    """A connection that broke, or that could not be opened, without word from the server."""
    if isinstance(error, OSError | TimeoutError | asyncpg.InternalClientError):
        return True
    if isinstance(error, asyncpg.InterfaceError):
        return "connection" in str(error)
    psycopg = sys.modules.get("psycopg")
    return psycopg is not None and isinstance(
        error, psycopg.OperationalError | psycopg.InterfaceError
    )


def _constraint(error: BaseException) -> str:
    diagnostic: Any = getattr(error, "diag", error)
    return getattr(diagnostic, "constraint_name", None) or ""


def _own(error: Exception, state: str) -> Exception:
    diagnostic: Any = getattr(error, "diag", error)
    detail = getattr(diagnostic, "message_detail", None) or getattr(diagnostic, "detail", None)
    facts = json.loads(detail or "{}")
    message = getattr(diagnostic, "message_primary", None) or str(error)
    if state == "SL001":
        return WrongVersion(
            facts["stream"],
            expected=facts["expected"],
            actual=facts["actual"],
            tenant=facts["tenant"],
        )
    if state == "SL002":
        return StreamArchived(facts["stream"], tenant=facts["tenant"])
    if state == "SL003":
        return DuplicateEvent(message)
    return InvalidInput(message)
