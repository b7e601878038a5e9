"""A collector of OTLP over HTTP, as far as a test needs one."""

from __future__ import annotations

import gzip
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Collector(ThreadingHTTPServer):
    """Keeps what it is sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.spans: list[Any] = []
        self.metrics: dict[str, Any] = {}
        self.resources: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        """For ``OTEL_EXPORTER_OTLP_ENDPOINT``."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def take(self, path: str, data: bytes) -> None:
        """Decode one export."""
        if path == "/v1/traces":
            for part in ExportTraceServiceRequest.FromString(data).resource_spans:
                self.resources.append(plain(part.resource.attributes))
                self.spans += [one for scope in part.scope_spans for one in scope.spans]
        elif path == "/v1/metrics":
            for part in ExportMetricsServiceRequest.FromString(data).resource_metrics:
                self.metrics |= {
                    one.name: one for scope in part.scope_metrics for one in scope.metrics
                }

    def named(self, name: str) -> list[Any]:
        """The spans called ``strandline.name``."""
        return [one for one in list(self.spans) if one.name == f"strandline.{name}"]


class Receiver(BaseHTTPRequestHandler):
    """One export."""

    server: Collector

    def do_POST(self) -> None:
        """Take it."""
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            data = gzip.decompress(data)
        self.server.take(self.path, data)
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        """Say nothing."""


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector that listens."""
    collector = Collector()
    thread = threading.Thread(target=collector.serve_forever, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        collector.shutdown()
        collector.server_close()


@contextmanager
def black_hole() -> Iterator[str]:
    """A URL where everything is taken and nothing ever answered."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def plain(attributes: Any) -> dict[str, str]:
    """Attributes of OTLP with values of text."""
    return {one.key: one.value.string_value for one in attributes}
