"""What the environment asks for, and how long anybody waits for a collector."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from strandline.telemetry import otlp
from strandline.telemetry.exporting import Exporting, Watch

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


class Provider:
    """Flushes as it is told."""

    def __init__(self, *, hangs: bool = False, answer: Any = True) -> None:
        self.let_go = threading.Event()
        self.asked: list[int] = []
        self._hangs = hangs
        self._answer = answer

    def force_flush(self, timeout_millis: int) -> Any:
        self.asked.append(timeout_millis)
        if self._hangs:
            self.let_go.wait(30)
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    def shutdown(self) -> None:
        self.asked.append(0)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Without a word of OpenTelemetry."""
    import os

    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    yield monkeypatch


@pytest.mark.parametrize(
    ("given", "traces", "metrics"),
    [
        ({}, False, False),
        ({ENDPOINT: "http://c:4318"}, True, True),
        ({ENDPOINT: " "}, False, False),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True, False),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c:4318/v1/metrics"}, False, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True, False),
        ({"OTEL_METRICS_EXPORTER": "console,otlp"}, False, True),
        ({ENDPOINT: "http://c:4318", "OTEL_METRICS_EXPORTER": "none"}, True, False),
        ({ENDPOINT: "http://c:4318", "OTEL_SDK_DISABLED": "True"}, False, False),
        ({ENDPOINT: "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, False, False),
        ({ENDPOINT: "http://c", "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "grpc"}, True, False),
        ({ENDPOINT: "http://c", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, True, True),
    ],
)
def test_the_standard_variables_say_what_goes_out(
    environment: pytest.MonkeyPatch, given: dict[str, str], traces: bool, metrics: bool
) -> None:
    for name, value in given.items():
        environment.setenv(name, value)

    assert (otlp.is_wanted("traces"), otlp.is_wanted("metrics")) == (traces, metrics)


def test_nothing_is_set_up_where_nobody_asks(environment: pytest.MonkeyPatch) -> None:
    assert otlp.from_environment("shop") is None
    assert otlp.installed() is None
    with otlp.exporting("shop", "n1"):
        pass


def test_a_flush_that_goes_well_says_so() -> None:
    traces, metrics = Provider(), Provider()

    assert Exporting(traces, metrics, {}).flush(5.0)
    assert 4000 < traces.asked[0] <= 5000
    assert Exporting(traces, None, {}).stop(5.0)
    assert traces.asked[1:] == [0]


@pytest.mark.parametrize("answer", [False, RuntimeError("no")])
def test_a_flush_that_fails_says_so(answer: Any) -> None:
    assert not Exporting(Provider(), Provider(answer=answer), {}).flush(5.0)


def test_a_flush_that_hangs_is_left_behind() -> None:
    hanging = Provider(hangs=True)
    began = time.monotonic()

    assert not Exporting(hanging, None, {}).flush(0.3)

    assert time.monotonic() - began < 5.0
    hanging.let_go.set()


def test_a_collector_that_was_away_last_time_is_waited_for_only_briefly() -> None:
    watch, hanging = Watch(), Provider(hangs=True)
    with pytest.raises(ConnectionError):
        watch.over(_refused)
    began = time.monotonic()

    assert not Exporting(hanging, None, {"traces": watch}).flush(60.0)

    assert time.monotonic() - began < 10.0
    assert watch.seems_away
    watch.over(lambda: None)
    assert watch.seems_away is True  # what is no success is none
    watch.over(lambda: _Success())
    assert not watch.seems_away
    hanging.let_go.set()


class _Success:
    name = "SUCCESS"


def _refused() -> None:
    raise ConnectionError("refused")
