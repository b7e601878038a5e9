"""Findings about the server: connections, transactions that stay open, snapshots that hold vacuum."""

from __future__ import annotations

from collections.abc import Iterator

from strandline.clock import in_words
from strandline.survey.case import Case
from strandline.survey.facts import ServerFacts, TransactionFacts
from strandline.survey.finding import FAIL, OK, WARN, Finding, counted


def server_findings(case: Case) -> Iterator[Finding]:
    """Connections, transactions; and which parts of the survey could not be read."""
    survey = case.survey
    if survey.missing:
        yield Finding(
            "survey",
            WARN,
            f"{' and '.join(survey.missing)} could not be read in time",
            "the database is slow, or a lock is held",
            "strandline doctor",
            "survey-missing",
        )
    if survey.server is not None:
        yield from _connections(survey.server, case)
        yield from _transactions(survey.server, case)


def _connections(server: ServerFacts, case: Case) -> Iterator[Finding]:
    room = server.room
    if room.connections >= case.limits.full * server.most:
        yield Finding(
            "connections",
            FAIL if room.connections >= server.most else WARN,
            f"{room.connections} of {server.most} connections are in use, {room.ours} by apps of"
            " strandline",
            "new ones are refused soon, and beats need one after an outage",
            "raise max_connections, lower work_connections, or put PgBouncer before the server",
            "connections-short",
        )


def _transactions(server: ServerFacts, case: Case) -> Iterator[Finding]:
    bad = [one for one in server.transactions if not one.holds_mark and _is_long(one, case)]
    for one in bad:
        yield _transaction(one)
    if server.horizon > case.limits.horizon and not any(
        one.age > case.limits.horizon for one in bad
    ):
        yield Finding(
            "snapshots",
            WARN,
            f"an old snapshot keeps dead rows from being removed for {in_words(server.horizon)}",
            "tables of jobs and of shards grow, and every look at them is slower; it is a transaction"
            " of another database, or the slot of a replica that is away",
            "SELECT pid, application_name, backend_xmin FROM pg_stat_activity WHERE backend_xmin IS NOT"
            " NULL ORDER BY age(backend_xmin) DESC",
            "old-snapshot",
        )
    if not bad:
        open_now = counted(len(server.transactions), "open transaction")
        yield Finding("transactions", OK, f"{open_now}, none of them too long")


def _is_long(one: TransactionFacts, case: Case) -> bool:
    if one.state == "prepared":
        return one.age > case.limits.waiting
    return one.idle > case.limits.idle if one.is_idle else one.age > case.limits.long


def _transaction(one: TransactionFacts) -> Finding:
    who = f"{one.application or 'a program'!r}, user {one.user!r}"
    if one.state == "prepared":
        gid = one.prepared.replace("'", "''")
        return Finding(
            "transactions",
            WARN,
            f"prepared transaction {one.prepared!r} is {in_words(one.age)} old",
            "it keeps its locks over restarts until somebody ends it",
            f"ROLLBACK PREPARED '{gid}'",
            "idle-transaction",
        )
    last = f"; last query {' '.join(one.query.split())[:80]!r}" if one.query else ""
    if one.is_idle:
        text = f"pid {one.pid} ({who}) is idle in transaction for {in_words(one.idle)}"
        leak = "leaked: nobody ended it" if one.is_ours else "its client has forgotten to end it"
        why = f"{leak}, and it keeps its locks and dead rows{last}"
    else:
        text = f"pid {one.pid} ({who}) is in a transaction for {in_words(one.age)}"
        why = f"it keeps dead rows from being removed{last}"
    cure = f"SELECT pg_terminate_backend({one.pid})"
    page = "old-snapshot"
    if one.is_idle:
        page = "transaction-leaked" if one.is_ours else "idle-transaction"
    return Finding("transactions", WARN, text, why, cure, page)
