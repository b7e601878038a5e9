"""Reads what the oracle judges, by SQL of its own, from one snapshot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import asyncpg

from chaos import job_oracle
from chaos.oracle import Event, Evidence, Sample, Violation

DOCUMENTS = ("accounts", "branches", "sliced", "sliced_branches")
LISTS = ("ledger", "journal", "notes")
OPEN_LETTERS = "SELECT count(*) FROM strandline.dead_letters WHERE status IN ('parked', 'skipped')"
RECORDER = Path(__file__).with_name("recorder.sql")

EVENTS = """
    SELECT position, stream, version, type, (data->>'number')::bigint, (data->>'amount')::bigint, data->>'branch'
      FROM strandline.events WHERE position > $1 ORDER BY position
"""
WRITE_ERROR = """
    CREATE OR REPLACE FUNCTION chaos.write() RETURNS trigger LANGUAGE plpgsql AS $body$
    BEGIN
        {} RETURN NULL;
    END
    $body$
"""
RAISE = """
    IF TG_TABLE_NAME = ANY ('{}') THEN
        RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100';
    END IF;
"""


async def install(url: str) -> None:
    """Make the checker's own tables and triggers in the migrated database at *url*."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(RECORDER.read_text())
        await connection.execute(job_oracle.TABLES)
    finally:
        await connection.close()


async def fail_writes(connection: Any, tables: Sequence[str]) -> None:
    """Let every write to *tables* fail as on a full disk; none of them: let all succeed again."""
    body = RAISE.format("{" + ",".join(tables) + "}") if tables else ""
    await connection.execute(WRITE_ERROR.format(body))


class Journal(Protocol):
    """A writer's: what was acknowledged.

    Attributes:
        journal: The file.
        forgiven: Its lines that a fail-over has lost, as was to be expected.
    """

    journal: Path
    forgiven: set[bytes]


async def forgive(journals: Sequence[tuple[Journal, int]], url: str) -> None:
    """Forgive the loss of what stands in *journals* after a place in each, and is not stored."""
    connection = await asyncpg.connect(url)
    try:
        for writer, begun in journals:
            lines = writer.journal.read_bytes()[begun:].splitlines(keepends=True)
            wanted = {line: int(line.split()[2]) for line in lines}
            rows = await connection.fetch(
                "SELECT position FROM strandline.events WHERE position = ANY ($1)",
                list(wanted.values()),
            )
            stored = {row["position"] for row in rows}
            writer.forgiven |= {line for line, at in wanted.items() if at not in stored}
    finally:
        await connection.close()


class Collector:
    """Collects evidence from the database at a URL, each time what is new."""

    def __init__(self, journals: Sequence[Journal] = (), enqueuers: Sequence[Journal] = ()) -> None:
        self._read = [(one, 0) for one in journals]
        self._enqueuers = enqueuers
        self._position = 0
        self._seen = {"violations": 0, **dict.fromkeys(LISTS, 0)}
        self.samples: list[Sample] = []

    async def collect(self, url: str) -> Evidence:
        """What there is now; writers must rest."""
        connection = await asyncpg.connect(url)
        try:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                return await self._collect(connection)
        finally:
            await connection.close()

    async def _collect(self, connection: Any) -> Evidence:
        events = [Event(*row) for row in await connection.fetch(EVENTS, self._position)]
        lists = {}
        for name in LISTS:
            rows = await connection.fetch(
                f"SELECT seq, position, stream, number FROM chaos.{name} WHERE seq > $1 ORDER BY seq",
                self._seen[name],
            )
            lists[name] = [tuple(row)[1:] for row in rows]
            self._seen[name] = max([self._seen[name], *(row["seq"] for row in rows)])
        samples, self.samples = self.samples, []
        if events:
            self._position = events[-1].position
        return Evidence(
            events=events,
            documents={name: await _documents(connection, name) for name in DOCUMENTS},
            turnover={
                row["branch"]: tuple(row)[1:]
                for row in await connection.fetch(
                    "SELECT branch, bookings, balance, latest FROM strandline.table_turnover_v1"
                )
            },
            lists=lists,
            gaps=[
                tuple(row)
                for row in await connection.fetch("SELECT first, last FROM strandline.gaps")
            ],
            mark=await connection.fetchval("SELECT position FROM strandline.high_water"),
            accusations=await self._accusations(connection),
            acknowledged=self._acknowledged(),
            samples=samples,
            open_letters=await connection.fetchval(OPEN_LETTERS),
            jobs=await job_oracle.collect(connection, [one.journal for one in self._enqueuers])
            if self._enqueuers
            else None,
        )

    async def _accusations(self, connection: Any) -> list[Violation]:
        rows = await connection.fetch(
            "SELECT id, invariant, words, extract(epoch FROM at)::float8 AS at"
            " FROM chaos.violations WHERE id > $1 ORDER BY id",
            self._seen["violations"],
        )
        self._seen["violations"] = max([self._seen["violations"], *(row["id"] for row in rows)])
        return [Violation(row["invariant"], row["words"], row["at"]) for row in rows]

    def _acknowledged(self) -> list[tuple[str, int, int]]:
        """The new lines of the writers' journals: stream, number, position."""
        found = []
        for at, (writer, begun) in enumerate(self._read):
            if not writer.journal.exists():
                continue
            with writer.journal.open("rb") as file:
                file.seek(begun)
                text = file.read()
            place = begun
            for line in text[: text.rfind(b"\n") + 1].splitlines(keepends=True):
                place += len(line)
                stream, number, position = line.decode().split()
                if line not in writer.forgiven:
                    found.append((stream, int(number), int(position)))
            self._read[at] = (writer, place)
        return found


async def _documents(connection: Any, name: str) -> dict[str, dict[str, Any]]:
    rows = await connection.fetch(
        f"SELECT id, data::text AS data, version, position FROM strandline.doc_{name}_v1"
    )
    return {
        row["id"]: {
            **json.loads(row["data"]),
            "version": row["version"],
            "position": row["position"],
        }
        for row in rows
    }
