"""Makes the providers of the OpenTelemetry SDK. Needs the extra ``otlp``."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

from opentelemetry import metrics as metrics_api
from opentelemetry import trace as trace_api
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from strandline.telemetry.exporting import Exporting, Watch
from strandline.telemetry.journal import Journal

log = Journal("strandline.telemetry")


class WatchedSpans(OTLPSpanExporter):
    """Exports spans, watched."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def export(self, spans: Any) -> Any:
        """See ``OTLPSpanExporter``."""
        return self._watch.over(lambda: super(WatchedSpans, self).export(spans))


class WatchedMetrics(OTLPMetricExporter):
    """Exports metrics, watched."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def export(self, metrics_data: Any, *args: Any, **options: Any) -> Any:
        """See ``OTLPMetricExporter``."""
        return self._watch.over(
            lambda: super(WatchedMetrics, self).export(metrics_data, *args, **options)
        )


def begin(wanted: Collection[str], service: str, instance: str) -> Exporting | None:
    """Set up a provider for each of *wanted* that has none; None if all have."""
    resource = _resource(service, instance)
    watches: dict[str, Watch] = {}
    traces = metrics = None
    # Neither waits at the interpreter's exit: the node's stop flushes, and has a limit.
    if "traces" in wanted and isinstance(
        trace_api.get_tracer_provider(), trace_api.ProxyTracerProvider
    ):
        watches["traces"] = Watch()
        traces = TracerProvider(resource=resource, shutdown_on_exit=False)
        traces.add_span_processor(BatchSpanProcessor(WatchedSpans(watches["traces"])))
    if "metrics" in wanted and type(metrics_api.get_meter_provider()).__name__.startswith("_Proxy"):
        watches["metrics"] = Watch()
        reader = PeriodicExportingMetricReader(WatchedMetrics(watches["metrics"]))
        metrics = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
    if not watches:
        return None
    if traces is not None:  # once all that may fail has been done
        trace_api.set_tracer_provider(traces)
    if metrics is not None:
        metrics_api.set_meter_provider(metrics)
    log.tell("otlp_begun", what=" and ".join(watches))
    return Exporting(traces, metrics, watches)


def _resource(service: str, instance: str) -> Resource:
    """What the environment says of this process, and what it leaves out."""
    found = Resource.create()
    told = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    own: dict[str, str] = {}
    if str(found.attributes.get("service.name", "")).startswith("unknown_service"):
        own["service.name"] = service
    if instance and "service.instance.id" not in told:
        own["service.instance.id"] = instance
    return found.merge(Resource(own))
