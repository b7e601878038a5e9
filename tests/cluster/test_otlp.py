"""A real node sends real OTLP over HTTP, by nothing but the standard environment variables."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tally import connected, holds

from strandline.app import App
from strandline.testing.nodes import NodeProcess

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

from collector import black_hole, collecting, plain

HERE = Path(__file__).parent
PATIENCE = 40.0
QUICK = {"pulse_interval": 0.2, "poll_interval": 0.1, "job_poll_interval": 0.1}
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@dataclass(frozen=True)
class Ordered:
    item: str


def node(url: str, endpoint: str, log: Path, **environment: str) -> NodeProcess:
    told = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_METRIC_EXPORT_INTERVAL": "300",
        **environment,
    }
    return NodeProcess(
        "traced_node:app",
        url,
        name="n1",
        settings=QUICK,
        environment=told,
        folder=HERE,
        log=log,
    )


async def ordered(url: str, **metadata: Any) -> None:
    """An order, by a program without an SDK that was told whose trace it belongs to."""
    app = App("orders", url)
    app.event("ordered")(Ordered)
    async with app:
        await app.append("order-1", Ordered("book"), metadata=metadata)


async def result_of_the_job(url: str) -> str | None:
    async with connected(url) as connection:
        return await connection.fetchval(
            "SELECT result::jsonb #>> '{}' FROM strandline.job_history WHERE kind = 'weigh'"
        )


async def test_a_node_sends_its_traces_and_metrics_to_the_collector(
    database_url: str, tmp_path: Path
) -> None:
    log = tmp_path / "node.log"
    with collecting() as collector:
        async with node(database_url, collector.url, log) as running:
            await running.until("active", timeout=PATIENCE)
            await ordered(database_url, traceparent=PARENT)
            await holds(lambda: collector.named("job"), PATIENCE)
            await holds(lambda: "strandline_batches_total" in collector.metrics, PATIENCE)
            inside = await holds(lambda: result_of_the_job(database_url), PATIENCE)
            running.terminate()
            assert await running.gone(timeout=PATIENCE) == 0
        await holds(lambda: collector.named("shutdown"), PATIENCE)

        (job,) = collector.named("job")
        batches = [one for one in collector.named("batch") if one.links]
        assert {one.trace_id.hex() for one in [job, *batches]} == {TRACE}
        assert {one.parent_span_id.hex() for one in batches} == {"b7ad6b7169203331"}
        assert {plain(one.attributes)["strandline.projection"] for one in batches} == {
            "orders:v1",
            "weighing",
        }
        (enqueued,) = collector.named("enqueue")
        assert job.parent_span_id == enqueued.span_id
        assert inside is not None
        assert inside.startswith(f"00-{TRACE}-{job.span_id.hex()}-")  # in a process of its own
        (stop,) = collector.named("shutdown")
        steps = collector.named("shutdown.step")
        assert {one.parent_span_id for one in steps} == {stop.span_id}
        assert "flush telemetry" in {
            plain(one.attributes)["strandline.shutdown.step"] for one in steps
        }
        assert {
            (one["service.name"], one["service.instance.id"]) for one in collector.resources
        } == {("traced", "n1")}
        assert collector.metrics["strandline_batches_total"].sum.is_monotonic
        assert "traces and metrics go out by OTLP" in log.read_text()


async def test_a_collector_that_never_answers_holds_up_neither_the_work_nor_the_stop(
    database_url: str, tmp_path: Path
) -> None:
    log = tmp_path / "node.log"
    with black_hole() as endpoint:
        async with node(database_url, endpoint, log) as running:
            await running.until("active", timeout=PATIENCE)
            await ordered(database_url, traceparent=PARENT)
            await holds(lambda: result_of_the_job(database_url), PATIENCE)
            await holds(lambda: "node n1 is up" in log.read_text(), PATIENCE)
            began = time.monotonic()
            running.terminate()
            assert await running.gone(timeout=PATIENCE) == 0

        assert time.monotonic() - began < 9.0  # an export waits for 10 s
        assert "not all telemetry was sent" in log.read_text()
