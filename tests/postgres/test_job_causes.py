"""Jobs that follow from events, events that follow from jobs: exactly once, and noted as the cause."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tally import connected, holds

from strandline.app import App, Transaction
from strandline.projections.subscription import EventBatch


@dataclass(frozen=True)
class Ordered:
    item: str


@dataclass(frozen=True)
class Shipped:
    item: str


def shop(url: str) -> App:
    """An order enqueues a job, which enqueues another one and appends an event."""
    app = App("shop", url, job_poll_interval=0.1, poll_interval=0.1)
    app.event("ordered")(Ordered)
    app.event("shipped")(Shipped)
    tries: list[int] = []

    @app.job(keep="all")
    async def tell(item: str) -> str:
        return item

    @app.job(keep="all")
    async def ship(item: str) -> None:
        await app.append(f"parcel-{item}", Shipped(item))
        await tell.enqueue(item)

    @app.subscription("shipping", types=[Ordered])
    async def orders(batch: EventBatch, tx: Transaction) -> None:
        for event in batch:
            await tx.enqueue(ship, event.data.item)
        tries.append(len(batch))
        if len(tries) == 1:
            raise RuntimeError("the first try is rolled back, with what it enqueued")

    return app


async def history(url: str) -> list[Any]:
    async with connected(url) as connection:
        return list(
            await connection.fetch(
                "SELECT id, kind, args, meta FROM strandline.job_history ORDER BY finished_at, id"
            )
        )


async def test_what_follows_from_an_event_happens_once_and_names_its_cause(
    database_url: str, impatient: None
) -> None:
    async with shop(database_url) as app:
        done = await app.append("order-1", Ordered("a"))
        await app.start()

        async def both() -> bool:
            return len(await history(database_url)) >= 2

        await holds(both, 30)
        (shipped,) = await app.read_stream("parcel-a")

    ship, tell = await history(database_url)
    event = f"event:{done.position}"
    assert (ship["kind"], tell["kind"]) == ("ship", "tell")
    assert json.loads(ship["meta"]) == {"causation": event, "correlation": event}
    assert json.loads(tell["meta"]) == {"causation": f"job:{ship['id']}", "correlation": event}
    assert shipped.metadata.causation == f"job:{ship['id']}"
    assert shipped.metadata.correlation == event
