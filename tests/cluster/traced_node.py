"""The App of a node whose work is traced: ``traced_node:app``."""

from __future__ import annotations

from dataclasses import dataclass, field

import strandline as sl
from strandline.telemetry.trace_context import current_traceparent

app = sl.App("traced", log_level="INFO")


@app.event("ordered")
@dataclass(frozen=True)
class Ordered:
    item: str


@dataclass
class Parcel:
    items: list[str] = field(default_factory=list)


@app.projection("orders", version=1)
class Orders(sl.SingleStream[Parcel]):
    @sl.apply
    def ordered(self, parcel: Parcel, event: Ordered) -> None:
        parcel.items.append(event.item)


@app.job(executor="process", keep="all")
def weigh(item: str) -> str | None:
    """The context that it has, in a process of its own."""
    return current_traceparent()


@app.subscription("weighing", types=[Ordered])
async def weighing(batch: sl.EventBatch, tx: sl.Transaction) -> None:
    for event in batch:
        await tx.enqueue(weigh, event.data.item)
