"""The App of a node on the tally's read models: ``tally_node:app``, as the variable ``TALLY`` says.

Words of ``TALLY``: ``counters=FILE`` writes the counters there again and again, ``version=2``,
``shards=4``, ``hooks=raise,hang``, ``leaks=2`` transactions held for ``leak_seconds=4`` once the
file ``leak_when`` is there.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

from crowd import counting_app
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from tally import Ticked

from strandline.errors import Unavailable

TALLY = dict(word.split("=") for word in os.environ.get("TALLY", "").split())
COUNT_EVERY = 0.1

log = logging.getLogger("strandline.tally")
app = counting_app(
    None, version=int(TALLY.get("version", 1)), shards=int(TALLY.get("shards", 1)), log_level="INFO"
)
tasks: set[Any] = set()


def count(path: Path) -> None:
    """Write the counters of this process to *path*, as whoever scrapes them would see them."""
    reader = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider(metric_readers=[reader]))

    def look() -> None:
        while True:
            time.sleep(COUNT_EVERY)
            found: dict[str, dict[str, float]] = {}
            data: Any = reader.get_metrics_data()
            scopes = data.resource_metrics[0].scope_metrics if data else []
            for one in (metric for scope in scopes for metric in scope.metrics):
                for point in one.data.data_points:
                    value = getattr(point, "value", None)
                    if value is not None:
                        found.setdefault(one.name, {})[str(dict(point.attributes))] = value
            part = path.with_suffix(".part")
            part.write_text(json.dumps(found))
            part.replace(path)

    threading.Thread(target=look, daemon=True).start()


async def careless_report(seconds: float) -> None:
    """Holds a transaction that it should have ended."""
    async with app.transaction() as tx:
        await tx.fetch("SELECT 'a careless report'")
        await asyncio.sleep(seconds)


async def leak(number: int, seconds: float, when: Path) -> None:
    while not when.exists():
        await asyncio.sleep(0.02)
    held = [asyncio.create_task(careless_report(seconds)) for _ in range(number)]
    await asyncio.sleep(0.3)
    while not all(one.done() for one in held):
        try:
            await app.append("elsewhere", Ticked())
        except Unavailable as error:
            log.error("an append failed: %s: %s", type(error).__name__, error)
        await asyncio.sleep(0.2)
    log.info("all reports ended: %s", [one.exception() for one in held])


def misbehave(how: str) -> Any:
    if how == "raise":
        raise RuntimeError("the hook failed")
    return asyncio.Event().wait()


if "counters" in TALLY:
    count(Path(TALLY["counters"]))
for number, how in enumerate(TALLY["hooks"].split(",") if "hooks" in TALLY else []):

    def hook(how: str = how) -> Any:
        return misbehave(how)

    hook.__name__ = f"{how}_{number}"
    app.on_stop(hook)
if "leaks" in TALLY:

    def heard(notice: Any) -> None:
        if notice.name == "joined" and not tasks:
            given = float(TALLY["leak_seconds"]), Path(TALLY["leak_when"])
            tasks.add(asyncio.get_running_loop().create_task(leak(int(TALLY["leaks"]), *given)))

    app.signals.listen(heard)
