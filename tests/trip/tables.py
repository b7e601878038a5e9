"""Journeys in tables: one folded inside PostgreSQL, one written by statements of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from strandline.app import App
from strandline.events.event import RecordedEvent
from strandline.projections.sql_projection import Sql, Statements, execute
from strandline.projections.table_declaration import Table
from strandline.projections.table_rules import column, count, greatest, on
from strandline.projections.table_values import STREAM
from trip.domain import Arrival, Travel, TripAborted, TripEnded, TripStarted
from trip.oracle import Stored

TourRow = tuple[int | None, str, int, int, int | None, int | None]


class Tour(Table):
    """One row per journey; gone when it was broken off, made anew by what comes after."""

    trip = column(str, key=STREAM)
    started_on = column(int)
    state = column(str, default="")
    arrivals = column(int, default=0)
    travels = column(int, default=0)
    last_day = column(int)
    ended_on = column(int)
    rules = (
        on(TripStarted, started_on="day"),
        on(Arrival, state="state", arrivals=count()),
        on(Travel, travels=count(), last_day=greatest("day")),
        on(TripEnded, ended_on="day", state="state"),
        on(TripAborted, delete=True),
    )


class Route(Sql):
    """One row per Travel event; a second time breaks the key."""

    tables = ("routes",)
    setup = """CREATE TABLE IF NOT EXISTS routes (tenant text, stream text, version bigint,
        day int, distance float8, PRIMARY KEY (tenant, stream, version))"""
    reset = "TRUNCATE routes"
    teardown = "DROP TABLE IF EXISTS routes"

    @execute
    def traveled(self, event: RecordedEvent[Travel], sql: Statements) -> None:
        total = sum(one.distance for one in event.data.movements)
        sql(
            "INSERT INTO routes VALUES ($1, $2, $3, $4, $5)",
            *(event.tenant, event.stream, event.version, event.data.day, total),
        )


TABLES = {"tours": Tour, "routes": Route}


def expected_tours(events: Iterable[Stored]) -> dict[str, TourRow]:
    """The rows by stream, worked out in plain Python."""
    found: dict[str, dict[str, Any]] = {}
    for stream, _, event in events:
        kind = type(event).__name__
        if kind == "TripAborted":
            found.pop(stream, None)
            continue
        if kind not in ("TripStarted", "Arrival", "Travel", "TripEnded"):
            continue
        row = found.setdefault(
            stream,
            {
                "started": None,
                "state": "",
                "arrivals": 0,
                "travels": 0,
                "last": None,
                "ended": None,
            },
        )
        if kind == "TripStarted":
            row["started"] = event.day
        elif kind == "Arrival":
            row["state"], row["arrivals"] = event.state, row["arrivals"] + 1
        elif kind == "Travel":
            row["travels"] += 1
            row["last"] = event.day if row["last"] is None else max(row["last"], event.day)
        else:
            row["ended"], row["state"] = event.day, event.state
    return {stream: tuple(row.values()) for stream, row in found.items()}  # type: ignore[misc]


def expected_routes(events: Iterable[Stored]) -> dict[tuple[str, int], tuple[int, float]]:
    """Day and distance by stream and version."""
    return {
        (stream, version): (event.day, sum(one.distance for one in event.movements))
        for stream, version, event in events
        if type(event).__name__ == "Travel"
    }


async def tours(app: App, tenant: str = "default") -> dict[str, TourRow]:
    """The rows of ``Tour`` by stream."""
    return {
        one.trip: (
            one.started_on,
            one.state,
            one.arrivals,
            one.travels,
            one.last_day,
            one.ended_on,
        )
        for one in await app.rows(Tour, tenant=tenant)
    }


async def routes(app: App, tenant: str = "default") -> dict[tuple[str, int], tuple[int, float]]:
    """The rows of ``Route`` by stream and version."""
    async with app.transaction() as tx:
        rows = await tx.fetch(
            "SELECT stream, version, day, distance FROM routes WHERE tenant = $1", tenant
        )
    return {(row["stream"], row["version"]): (row["day"], row["distance"]) for row in rows}
