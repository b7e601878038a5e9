"""An app with every kind of projection and subscription that fails at the same events."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tally import connected

import strandline as sl
from strandline.app import App

LABELS = ("steps:v1", "thirds:v1", "written:v1", "told", "called")


@dataclass(frozen=True)
class Step:
    number: int
    poison: bool = False


@dataclass
class Seen:
    numbers: list[int] = field(default_factory=list)


TABLES = """CREATE TABLE IF NOT EXISTS public.written (n bigserial, stream text, number int);
            CREATE TABLE IF NOT EXISTS public.told (n bigserial, stream text, number int)"""


def poisoned_app(url: str | None, *, on_error: Any = None, **settings: Any) -> App:
    """The app; it rests only a moment after failures. ``app.called`` is what the last one was given."""
    app = App("poisoned", url, **{"failure_pause": 0.1, **settings})
    app.event("step")(Step)
    called: list[Any] = []
    app.called = called  # type: ignore[attr-defined]  # for tests

    @app.projection("steps", on_error=on_error)
    class Steps(sl.SingleStream[Seen]):
        @sl.apply
        def step(self, seen: Seen, event: Step) -> None:
            if event.poison:
                raise ValueError(f"cannot digest {event.number}")
            seen.numbers.append(event.number)

    @app.projection("thirds", on_error=on_error)
    class Thirds(sl.MultiStream[Seen]):
        @sl.key
        def third(self, event: Step) -> str:
            return str(event.number % 3)

        @sl.apply
        def step(self, seen: Seen, event: Step) -> None:
            if event.poison:
                raise ValueError(f"cannot digest {event.number}")
            seen.numbers.append(event.number)

    @app.projection("written", on_error=on_error)
    class Written(sl.Sql):
        @sl.execute
        def step(self, event: sl.RecordedEvent[Step], db: sl.Statements) -> None:
            number = 1 / 0 if event.data.poison and event.data.number % 2 else event.data.number
            db(
                "INSERT INTO public.written (stream, number)"
                " SELECT $1, $2::int / CASE WHEN $3 THEN 0 ELSE 1 END",
                event.stream,
                number,
                event.data.poison,
            )

    @app.subscription("told", on_error=on_error)
    async def told(batch: sl.EventBatch, tx: sl.Transaction) -> None:
        for event in batch.of(Step):
            if event.data.poison:
                raise ValueError(f"cannot tell {event.data.number}")
            await tx.execute(
                "INSERT INTO public.told (stream, number) VALUES ($1, $2)",
                event.stream,
                event.data.number,
            )

    @app.subscription("called", on_error=on_error)
    async def call(batch: sl.EventBatch) -> None:
        for event in batch.of(Step):
            if event.data.poison:
                raise ValueError(f"cannot call {event.data.number}")
        called.extend((event.stream, event.data.number) for event in batch.of(Step))

    return app


async def letters(url: str) -> dict[str, list[tuple[str, int, str, str | None]]]:
    """Label → key, position, status and category of its dead letters, by position."""
    async with connected(url) as operator:
        rows = await operator.fetch(
            """SELECT label, key, position, status, category FROM strandline.dead_letters
                ORDER BY label, position, key"""
        )
    found: dict[str, list[tuple[str, int, str, str | None]]] = {}
    for row in rows:
        found.setdefault(row["label"], []).append(
            (row["key"], row["position"], row["status"], row["category"])
        )
    return found


async def applied(app: App, url: str) -> dict[str, list[tuple[str, int]]]:
    """Label → stream (or key) and number of what was applied, by stream and in order."""
    async with connected(url) as operator:
        found = {
            name: [
                (row["stream"], row["number"])
                for row in await operator.fetch(f"SELECT stream, number FROM {name} ORDER BY n")
            ]
            for name in ("written", "told")
        }
    documents = {label: dict(await app.query(label)) for label in ("steps", "thirds")}
    return {
        "steps:v1": [(key, n) for key, seen in documents["steps"].items() for n in seen.numbers],
        "thirds:v1": [(key, n) for key, seen in documents["thirds"].items() for n in seen.numbers],
        "written:v1": sorted(found["written"], key=lambda one: one[0]),
        "told": sorted(found["told"], key=lambda one: one[0]),
        "called": sorted(app.called, key=lambda one: one[0]),  # type: ignore[attr-defined]  # see above
    }
