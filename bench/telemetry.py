"""What being seen costs: ``python -m bench.telemetry [--events N] [--rounds N]``.

A catch-up over a log of which one event in a hundred belongs to a sampled trace, three ways in turn, each
run in a process and a database of its own:

* ``off``: setting ``metrics`` false, no provider of spans;
* ``metrics``: counted, and scraped four times a second by the Prometheus exposition;
* ``metrics_traces``: the same, with 1 % of traces sampled, and spans encoded as OTLP and thrown away.

Told are the medians of all rounds, and of each round the rate against that of ``off``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import strandline as sl
from bench import workload
from bench.harness import FULL, Place
from bench.results import Row, medians, write
from bench.run import server, temporary_database
from bench.strandline_peer import DOCUMENT_SUMS, analyze, bank_with_balances, check, event

VARIANTS = ("off", "metrics", "metrics_traces")
SHARE = 100  # one in so many
SCRAPE_EVERY = 0.25
PATIENCE = 600.0


@contextmanager
def spans_made() -> Iterator[None]:
    """1 % of traces are sampled, and exported into nothing."""
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    from strandline.telemetry import tracing

    class Nowhere(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            encode_spans(spans).SerializeToString()
            return SpanExportResult.SUCCESS

    provider = TracerProvider(sampler=ParentBasedTraceIdRatio(1 / SHARE), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    end = tracing.use(provider)
    try:
        yield
    finally:
        end()
        provider.shutdown()


async def stored(app: sl.App, events: int) -> None:
    """The log; one event in a hundred with the context of an append that was sampled."""
    entries = workload.stored_log(events // workload.ACCOUNTS)
    await app.import_events(
        sl.ImportedEvent(
            workload.stream_id(one[0]),
            event(one),
            metadata=None
            if number % SHARE
            else {"traceparent": f"00-{number + 1:032x}-{number + 1:016x}-01"},
        )
        for number, one in enumerate(entries)
    )
    await app.pools.work.run(analyze())


async def scraping(app: sl.App) -> None:
    """What a Prometheus server, impatient as it is, asks for."""
    while True:
        await asyncio.sleep(SCRAPE_EVERY)
        await asyncio.to_thread(app.metrics_page)


async def measured(variant: str, url: str, events: int) -> float:
    """Seconds that the catch-up takes in this process."""
    place = Place(url, FULL)
    async with bank_with_balances(place) as app:
        await stored(app, events)
        if variant != "off":
            app.metrics_page()  # what it imports, it imports once
        await place.ready()
        scraper = asyncio.create_task(scraping(app)) if variant != "off" else None
        began = time.perf_counter()
        await app.catch_up(timeout=PATIENCE)
        seconds = time.perf_counter() - began
        if scraper is not None:
            scraper.cancel()
            with suppress(asyncio.CancelledError):
                await scraper
    wanted = workload.expected(workload.stored_log(events // workload.ACCOUNTS))
    await check(place, "catch-up", DOCUMENT_SUMS, wanted)
    return seconds


def run_alone(variant: str, url: str, events: int) -> float:
    """``measured`` in a process of its own."""
    command = [sys.executable, "-m", "bench.telemetry", "--events", str(events)]
    command += ["--variant", variant, "--url", url]
    told = subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"STRANDLINE_METRICS": str(variant != "off").lower()},
    )
    return float(told.stdout.split()[-1])


def compared(root: str, events: int, rounds: int) -> list[Row]:
    """The medians, after *rounds* of all variants in turn, the first of which changes."""
    rows: list[Row] = []
    for number in range(rounds):
        turn = VARIANTS[number % len(VARIANTS) :] + VARIANTS[: number % len(VARIANTS)]
        rates: dict[str, float] = {}
        for variant in turn:
            with temporary_database(root) as url:
                rates[variant] = events / run_alone(variant, url, events)
        for variant in VARIANTS:
            rows.append(Row("catch_up", variant, "rate", rates[variant], "events/s"))
            if variant != "off":
                share = rates[variant] / rates["off"]
                rows.append(Row("catch_up", variant, "of off", share, ""))
        print(", ".join(f"{one} {rates[one]:,.0f}/s" for one in VARIANTS), flush=True)
    return medians(rows)


def main() -> None:
    """Run what the command line says; print and write the figures."""
    parser = argparse.ArgumentParser(prog="bench.telemetry", description=__doc__)
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        if options.variant == "metrics_traces":
            with spans_made():
                print(asyncio.run(measured(options.variant, options.url, options.events)))
        else:
            print(asyncio.run(measured(options.variant, options.url, options.events)))
        return
    with server() as root:
        rows = compared(root, options.events, options.rounds)
    for row in rows:
        print(f"{row.system:15} {row.metric:7} {row.value:,.3f} {row.unit}")
    if options.out:
        write(options.out, rows)


if __name__ == "__main__":
    main()
