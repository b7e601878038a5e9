"""What a review found: each of these went wrong once."""

from __future__ import annotations

import http.client
import json
import logging
import math
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from strandline.app.growth import Growth
from strandline.app.health import OpsPort
from strandline.app.part_checks import high_water, shards
from strandline.cli.health import _asked
from strandline.daemon.agent_parts import AgentStatistics
from strandline.daemon.definitions import DaemonStatistics
from strandline.events.detections import HighWaterStatistics
from strandline.loops import LoopStatistics
from strandline.settings import Settings
from strandline.telemetry import ops_server
from strandline.telemetry.log_format import JsonFormatter
from strandline.telemetry.metrics import Metrics
from strandline.telemetry.ops_server import MOST, OpsServer, Response, Route
from strandline.telemetry.signals import Signals

PATIENCE = 30.0
SETTINGS = Settings(series_limit=10)


# ---- the ops port


@pytest.mark.parametrize("target", ["http://[", "http://[::1/livez", "http://a]b/"])
def test_a_target_that_is_no_url_gets_an_answer(target: str) -> None:
    with serving() as server, socket.create_connection(address(server), PATIENCE) as client:
        client.sendall(f"GET {target} HTTP/1.1\r\n\r\n".encode())

        assert client.recv(100).startswith(b"HTTP/1.1 400 ")


def test_connections_that_say_nothing_do_not_keep_probes_from_their_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ops_server, "PATIENCE", 600.0)
    with serving() as server, ExitStack() as silent:
        for _ in range(2 * MOST):
            silent.enter_context(socket.create_connection(address(server), PATIENCE))
        until(lambda: len(open_at(server)) >= MOST)
        until(lambda: asked(server) == 200)

        assert [asked(server) for _ in range(2 * MOST)] == [200] * 2 * MOST


def test_pages_that_never_end_do_not_take_threads_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ops_server, "SHORT", 0.0)
    ends = threading.Event()
    with serving({"/hangs": lambda _: Response(str(ends.wait(PATIENCE)))}) as server:
        with ExitStack() as hanging:
            for _ in range(3 * MOST):
                client = socket.create_connection(address(server), PATIENCE)
                hanging.enter_context(client)
                client.sendall(b"GET /hangs HTTP/1.1\r\n\r\n")
            until(lambda: asked(server) == 503)
            assert len(open_at(server)) == 2 * MOST
            ends.set()
        until(lambda: asked(server) == 200)


def test_a_log_that_raises_does_not_end_the_thread_that_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Raising(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise RuntimeError(record.getMessage())

    filters = logging.getLogger("strandline.ops").filters
    monkeypatch.setattr(logging.getLogger("strandline.ops"), "filters", [*filters, Raising()])
    monkeypatch.setattr(logging.getLogger("strandline.ops"), "level", logging.DEBUG)
    with serving() as server:
        assert asked(server) == 200
    with socket.create_server(("127.0.0.1", 0)) as taken:
        late = OpsServer("127.0.0.1", taken.getsockname()[1], {}, again=0.05)
        late.start(wait=PATIENCE)
        until(lambda: bool(late.failure))
    try:
        until(lambda: late.address is not None)
    finally:
        late.stop(timeout=PATIENCE)


def test_liveness_asks_nothing_of_the_pulse() -> None:
    asked_for: list[str] = []

    def picture(wanted: Any) -> Any:
        asked_for.append(str(wanted))
        raise ArithmeticError

    port = OpsPort(picture, Metrics(Signals(), sources=dict))
    for page in ("/livez", "/readyz", "/healthz"):
        with pytest.raises(ArithmeticError):
            port._routes()[page](SimpleNamespace(query={}, accept=""))  # type: ignore[arg-type]

    assert asked_for == ["live", "ready", "whole"]


# ---- health


def test_a_mark_whose_own_detector_has_ended_or_fails_is_not_well() -> None:
    well = LoopStatistics("high-water", "high-water", True, 9, 0, 0, "", 0.1)
    for loop, expected in (
        (well, "ok"),
        (replace(well, running=False, is_dead=True), "fail"),
        (replace(well, consecutive_failures=2, seconds_since_success=1.0), "ok"),
        (replace(well, seconds_since_success=20.0), "warn"),  # a look that hangs
        (replace(well, consecutive_failures=5, seconds_since_success=5.0), "warn"),
        (replace(well, consecutive_failures=9, seconds_since_success=100.0), "fail"),
    ):
        seen = HighWaterStatistics(position=5, highest=9, loop=loop)
        check = high_water({"daemon": daemon(seen=seen, detects=True)}, SETTINGS, Growth())
        assert check is not None
        assert (check.outcome, loop) == (expected, loop)
        assert check.outcome == "ok" or check.runbook == "high-water-stalled"


def test_a_shard_that_cannot_be_claimed_is_not_said_to_run() -> None:
    claiming = AgentStatistics("orders:v1:all", "claiming", 0, 0, 0, 0, 0, "")
    failing = replace(claiming, attempts=3, reason="no answer")

    fine = shards({"daemon": daemon(claiming)}, SETTINGS, Growth())
    check = shards({"daemon": daemon(failing)}, SETTINGS, Growth())

    assert fine is not None and check is not None
    assert (fine.outcome, check.outcome) == ("ok", "warn")
    assert "no answer" in check.reason


def daemon(
    *agents: AgentStatistics, seen: HighWaterStatistics | None = None, detects: bool = False
) -> DaemonStatistics:
    return DaemonStatistics(
        mark=5, high_water=seen or HighWaterStatistics(), agents=agents, detects=detects
    )


# ---- metrics


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text;version=x",
        "text/plain;version=a.b.c;version=1.0.0",
        "text/plain;version=1.x.0;escaping=values",
    ],
)
def test_an_accept_that_makes_no_sense_gets_the_page_all_the_same(accept: str) -> None:
    pytest.importorskip("prometheus_client")
    metrics = counting()

    body, content_type = metrics.exposition(accept)

    assert b"strandline_ticks" in body or b"strandline_build_info" in body
    assert content_type.startswith("text/plain")


def test_a_label_that_cannot_be_encoded_does_not_cost_the_page() -> None:
    pytest.importorskip("prometheus_client")
    metrics = counting(node="shop-\udcff")  # as os.environ gives a name that is no UTF-8

    body, _ = metrics.exposition()

    assert b'node="shop-\\\\udcff"' in body


class Recorder:
    """A meter that keeps what is recorded in histograms."""

    def __init__(self) -> None:
        self.recorded: list[tuple[float, dict[str, str]]] = []

    def create_histogram(self, name: str, **_: Any) -> Any:
        wanted = name == "strandline_batch_seconds"
        return SimpleNamespace(
            record=lambda *one: self.recorded.append(one) if wanted else None  # type: ignore[func-returns-value]
        )

    def create_observable_gauge(self, *_: Any, **__: Any) -> None: ...

    create_observable_counter = create_observable_gauge


def test_opentelemetry_is_told_nothing_that_cannot_be_counted() -> None:
    pytest.importorskip("opentelemetry.metrics")
    meter, signals = Recorder(), Signals()
    metrics = Metrics(signals, sources=dict, settings=SETTINGS, meter=meter)
    metrics.start()
    for seconds in (math.nan, math.inf, -1.0, 0.5):
        signals.tell("batch_committed", shard="orders:v1:all", events=1, seconds=seconds)

    assert [one for one, _ in meter.recorded] == [0.5]


def test_the_histograms_of_opentelemetry_have_no_more_series_than_the_limit() -> None:
    pytest.importorskip("opentelemetry.metrics")
    meter, signals = Recorder(), Signals()
    metrics = Metrics(signals, sources=dict, settings=SETTINGS, meter=meter)
    metrics.start()
    for number in range(100):
        signals.tell("batch_committed", shard=f"p{number}:v1:all", events=1, seconds=0.5)

    assert len({one["projection"] for _, one in meter.recorded}) == SETTINGS.series_limit + 1
    assert {one["projection"] for _, one in meter.recorded} >= {"other", "p0:v1"}


def counting(node: str = "shop-1") -> Metrics:
    metrics = Metrics(Signals(), sources=lambda: {"node": node}, settings=SETTINGS)
    metrics.start()
    return metrics


# ---- logs


class Ratio(float):
    """As numpy.float64 is a float."""


class Number(int):
    """As an enum of a library may be an int."""


def test_a_number_of_a_class_of_its_own_does_not_cost_the_line() -> None:
    fields = {"ratio": Ratio(0.5), "number": Number(7), "deep": {"one": [Ratio(1.5)]}, "yes": True}
    record = logging.makeLogRecord({"msg": "seen", **fields})

    line = json.loads(JsonFormatter().format(record))

    assert {name: line[name] for name in fields} == fields


# ---- the command


def test_a_host_that_can_be_none_is_a_node_that_does_not_answer() -> None:
    assert "no answer" in _asked("http://a..b:1", "/livez", 1.0, "")


# ---- helpers


@contextmanager
def serving(routes: Mapping[str, Route] | None = None) -> Iterator[OpsServer]:
    pages = {"/livez": lambda _: Response("fine"), **(routes or {})}
    server = OpsServer("127.0.0.1", 0, pages)
    server.start(wait=PATIENCE)
    try:
        yield server
    finally:
        server.stop(timeout=PATIENCE)


def address(server: OpsServer) -> tuple[str, int]:
    assert server.address is not None
    return server.address


def open_at(server: OpsServer) -> Any:
    assert server._server is not None
    return server._server._open


def asked(server: OpsServer) -> int:
    client = http.client.HTTPConnection(*address(server), timeout=PATIENCE)
    try:
        client.request("GET", "/livez")
        return client.getresponse().status
    except ConnectionError:
        return 0
    finally:
        client.close()


def until(holds: Any) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)
