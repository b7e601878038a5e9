"""Spans without a database: what is told of them, and what they cost when nobody looks."""

from __future__ import annotations

import asyncio
import timeit
from typing import Any

import pytest
from spans import Seen, attribute, ids, is_child, seen

from strandline.cluster.shutdown import Shutdown, Step
from strandline.telemetry import tracing
from strandline.telemetry.signals import Signals
from strandline.telemetry.span_notices import Tracing
from strandline.telemetry.trace_context import (
    apart,
    continued,
    current_ids,
    current_traceparent,
    parsed,
)

pytest.importorskip("opentelemetry.sdk.trace")

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


def told(**settings: Any) -> Signals:
    """Notices that become spans of node n1."""
    signals = Signals()
    Tracing(signals, node=lambda: "n1").start()
    return signals


def test_without_a_provider_a_span_is_nothing_and_costs_next_to_nothing() -> None:
    with tracing.span("strandline.append", stream="a") as span:
        span.set(events=1)

        assert span is tracing.NOTHING
        assert not span.is_recording
        assert current_traceparent() is None

    def spanned() -> None:
        with tracing.span("strandline.append", stream="a"):
            pass

    seconds = min(timeit.repeat(spanned, number=1_000, repeat=20)) / 1_000
    assert seconds < 5e-6  # 0.3 us where nobody else works


def test_a_span_has_the_kind_and_the_keys_of_the_catalogue() -> None:
    with seen() as spans:
        with tracing.span("strandline.append", tenant=None, stream="order-1", events=2) as span:
            span.set(stream_version=7)

        found = spans.only("append")
        assert found.kind.name == "PRODUCER"
        assert found.attributes == {
            "db.system.name": "postgresql",
            "strandline.stream": "order-1",
            "strandline.events.count": 2,
            "strandline.stream.version": 7,
        }


def test_an_error_is_told_and_goes_on() -> None:
    with seen() as spans:
        with pytest.raises(LookupError), tracing.span("strandline.append"):
            raise LookupError("gone")
        with pytest.raises(asyncio.CancelledError), tracing.span("strandline.append"):
            raise asyncio.CancelledError

        failed, cancelled = spans.named("append")
        assert failed.attributes is not None
        assert failed.attributes["error.type"] == "LookupError"
        assert failed.status.description == "gone"
        assert cancelled.status.is_unset


def test_whatever_a_sampler_does_the_code_goes_on() -> None:
    class Raises:
        def start_span(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError("no sampler")

        def get_tracer(self, *_: Any) -> Raises:
            return self

    end = tracing.use(Raises())
    try:
        with tracing.span("strandline.append") as span:
            assert span is tracing.NOTHING
        tracing.record("strandline.plan", 1.0, 2.0)
    finally:
        end()


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        (PARENT, True),
        (f"00-{TRACE}-{SPAN}-03", True),
        (f"01-{TRACE}-{SPAN}-01-more", True),
        (f"00-{TRACE}-{SPAN}-00", False),  # nobody sees it
        (f"00-{TRACE}-{SPAN}-01-more", False),
        (f"ff-{TRACE}-{SPAN}-01", False),
        (f"00-{'0' * 32}-{SPAN}-01", False),
        (f"00-{TRACE.upper()}-{SPAN}-01", False),
        (f"00-{TRACE}{SPAN}-01-", False),
        ("x" * 55, False),
        ("", False),
        (None, False),
        (7, False),
    ],
)
def test_a_traceparent_is_read_with_care(text: object, is_one: bool) -> None:
    assert (parsed(text) is not None) is is_one


def test_a_context_is_continued_and_left() -> None:
    with continued(PARENT):
        assert current_traceparent() == PARENT
        assert current_ids() == (TRACE, SPAN)
        with apart():
            assert current_ids() is None
        assert current_traceparent() == PARENT
    assert current_ids() is None


def test_a_span_follows_from_a_context_or_from_nobody() -> None:
    with seen() as spans:
        with spans.tracer.start_as_current_span("request") as request:
            with tracing.span("strandline.job", parent=PARENT, links=[PARENT, "nonsense"]):
                pass
            with tracing.span("strandline.job", parent=tracing.ROOT):
                pass
            with tracing.span("strandline.job"):
                pass

        followed, root, inner = spans.named("job")
        assert followed.parent is not None
        assert (followed.parent.trace_id, followed.parent.span_id) == (
            int(TRACE, 16),
            int(SPAN, 16),
        )
        assert len(followed.links) == 1
        assert root.parent is None
        assert inner.parent is not None
        assert ids(inner)[0] == request.get_span_context().trace_id


def test_an_election_is_a_span_of_its_length() -> None:
    with seen() as spans:
        signals = told()
        signals.tell("election", outcome="won", seconds=0.25, error="")
        signals.tell("election", outcome="timed_out", seconds=5.0, error="no answer")

        won, late = spans.named("election")
        assert attribute(won, "outcome") == "won"
        assert attribute(won, "node") == "n1"
        assert _seconds(won) == pytest.approx(0.25, abs=1e-3)
        assert won.status.is_ok
        assert (late.status.description, late.status.is_ok) == ("no answer", False)


def test_a_detection_tells_mark_position_difference_and_what_it_skipped() -> None:
    with seen() as spans:
        facts = {"mark": 10, "highest": 17, "settled": 12, "difference": 5, "holders": 1}
        told().tell("high_water_detected", **facts, stale=True, skipped=2, forced=0, seconds=0.01)

        assert spans.only("high_water").attributes == {
            "strandline.node": "n1",
            "strandline.high_water.mark": 10,
            "strandline.high_water.highest": 17,
            "strandline.high_water.position": 12,
            "strandline.high_water.difference": 5,
            "strandline.high_water.stale": True,
            "strandline.high_water.holders.count": 1,
            "strandline.skipped_events.count": 2,
            "strandline.skipped_events.forced": 0,
        }


def test_a_rebuild_is_a_span_from_its_first_step_to_its_end() -> None:
    with seen() as spans:
        signals = told()
        for state in ("building", "sealed", "done"):
            signals.tell("rebuild", label="orders:v1", number=3, state=state, reason="")
        signals.tell("rebuild", label="orders:v1", number=4, state="building", reason="")

        found = spans.only("rebuild")
        assert attribute(found, "build.number") == 3
        assert attribute(found, "state") == "done"


def test_a_notice_that_cannot_be_told_hurts_nobody() -> None:
    with seen() as spans:
        told().tell("planned")

        assert spans.all == ()


async def test_a_stop_is_a_span_with_one_for_each_step() -> None:
    with seen() as spans:
        stop = Shutdown(total=5.0, reserve=1.0, fast=1.0, signals=told())

        async def broken() -> None:
            raise LookupError("no such part")

        stop.part(Step("leave", _nothing, cap=1.0, needed=True))
        stop.part(Step("drain", broken, cap=1.0))
        await stop.run("SIGTERM")

        whole = spans.only("shutdown")
        steps = spans.named("shutdown.step")
        assert [attribute(one, "shutdown.step") for one in steps] == ["drain", "leave"]
        assert [attribute(one, "status") for one in steps] == ["error", "ok"]
        assert all(is_child(one, whole) for one in steps)
        assert attribute(whole, "result") == "degraded"
        assert attribute(whole, "reason") == "SIGTERM"
        assert not whole.status.is_ok
        assert not steps[0].status.is_ok


async def _nothing() -> None: ...


def _seconds(span: Any) -> float:
    return float(span.end_time - span.start_time) / 1e9


def test_spans_of_a_provider_of_ones_own_end_with_it() -> None:
    with seen() as spans:
        assert isinstance(spans, Seen)
        assert tracing.is_on()
    assert not tracing.is_on()
